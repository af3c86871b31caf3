"""What a certificate lets a reader conclude, and what it does not, in words."""

from __future__ import annotations

from flashverify.records.certificate import Certificate
from flashverify.records.measurement import Verdict
from flashverify.records.summary import CERTIFIED, FAILED, INCONCLUSIVE, Summary
from flashverify.report.text import count

WORDS = {CERTIFIED: "certified", FAILED: "FAILED", INCONCLUSIVE: "inconclusive"}


def verdict_word(summary: Summary) -> str:
    """The verdict of the whole in a word or two."""
    return WORDS.get(summary.exit_code, "nothing ran")


def verdict_sentence(certificate: Certificate, summary: Summary) -> str:
    """What was certified and where, or what went wrong, in a sentence or two."""
    where = certificate.environment.gpu or "this processor, in Triton's interpreter"
    passed, failed = summary.verdicts[Verdict.PASS], summary.verdicts[Verdict.FAIL]
    kernel = certificate.plan.kernel
    if summary.exit_code == CERTIFIED:
        limit = " The compiled kernel was not examined." if certificate.environment.interpreter else ""
        return (
            f"{count(passed, 'case')} passed and none failed: on {where}, the kernel “{kernel}” computes exact "
            f"attention, every element within its error budget.{limit}"
        )
    if summary.exit_code == FAILED:
        ran = passed + failed + summary.verdicts[Verdict.INCONCLUSIVE]
        return f"{count(failed, 'case')} of {ran:,} failed: on {where}, the kernel “{kernel}” is outside its contract."
    if certificate.axioms is not None and certificate.axioms.unexplained:
        names = ", ".join(line.name for line in certificate.axioms.unexplained)
        return f"Nothing is certified: arithmetic of {where} fits no model that budgets could stand on ({names})."
    if summary.exit_code == INCONCLUSIVE:
        open_cases = summary.verdicts[Verdict.INCONCLUSIVE]
        return (
            f"Nothing failed, but nothing is certified either: on {where}, {count(open_cases, 'case')} ended without a "
            f"verdict and {count(summary.not_run, 'planned case was', 'planned cases were')} not run; "
            f"{count(passed, 'case')} passed."
        )
    return f"No case of the kernel “{kernel}” ran on {where}: nothing is certified."


def verdict_caveats(certificate: Certificate, summary: Summary) -> tuple[str, ...]:
    """What a reader must not conclude."""
    environment = certificate.environment
    caveats = []
    if environment.interpreter:
        caveats.append(
            "Triton's interpreter ran the kernel's source on the processor. This examines the algebra: the function, "
            "the masks, the schedules. It says nothing of the compiled kernel: compiler, tensor cores and memory "
            "accesses of a GPU were not examined."
        )
    else:
        caveats.append(
            "It holds for this GPU, driver, CUDA, PyTorch, Triton and these kernel sources. Another combination needs "
            "a certificate of its own."
        )
    caveats.append(
        "Cases are a sample. Every element that was computed was held to its budget; the worst known error is the "
        "largest that was seen, not the largest that exists."
    )
    declined = summary.verdicts[Verdict.UNSUPPORTED]
    if declined:
        caveats.append(f"{count(declined, 'case')} declined by the kernel, with reasons given below.")
    if summary.not_run:
        caveats.append(f"{count(summary.not_run, 'planned case')} not run: no statement is made of them.")
    if not (summary.forward_distance and summary.backward_distance):
        caveats.append("No distance from rigorous enclosures was measured in both directions: see the function check.")
    if certificate.axioms is None:
        caveats.append("The device's own arithmetic was not measured: budgets stand on published figures.")
    if environment.dirty:
        caveats.append("The checkout had changes beyond its commit: the hashes of the sources say what ran.")
    return tuple(caveats)
