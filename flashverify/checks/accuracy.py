"""Accuracy: every element of every tensor lies within the hard budget of the kernel's own contract.

    |X^ - X*| + rho <= B_X   for X in out, lse (forward), dq, dk, dv, dbias, dsink (modular and end-to-end)

X* is the float64 oracle's, rho its a-priori error: the same bound with the oracle's own contract (docs/numerics.md). Modular:
the backward pass as a function of the kernel's own out and lse, where it is one (`Kernel.saves_outputs`). End-to-end: from the
inputs alone. The float64 instantiation is held to rigorous enclosures by the *function* check instead: against it the float64
oracle is no truth.
"""

from __future__ import annotations

from collections.abc import Iterator

from flashverify.cases.tensors import BACKWARD, FORWARD, OF_FEATURES
from flashverify.checks.comparison import Comparison, judge, measure
from flashverify.checks.examination import Examination
from flashverify.checks.reference import Reference, end_to_end, is_usable, modular
from flashverify.checks.registry import register
from flashverify.records.measurement import CheckResult, Verdict


@register("accuracy")
def accuracy(examination: Examination) -> CheckResult | None:
    """Every element within T1; None for float64 cases."""
    if examination.case.dtype == "fp64":
        return None
    if examination.draws_its_own is not None:
        return CheckResult(check="accuracy", verdict=Verdict.UNSUPPORTED, reason=examination.draws_its_own)
    reference = end_to_end(examination)
    out_of_range = reference.range_violation(examination)
    if out_of_range is not None:
        return CheckResult(check="accuracy", verdict=Verdict.UNSUPPORTED, reason=out_of_range)
    measurements = [measure(comparison) for comparison in _against(examination, reference)]
    verdict, reason = judge(measurements)
    return CheckResult(check="accuracy", verdict=verdict, reason=reason, measurements=tuple(measurements))


def comparisons(examination: Examination) -> Iterator[Comparison]:
    """Each tensor of the case beside the float64 oracle's truth: forward, then backward in both modes."""
    return _against(examination, end_to_end(examination))


def _against(examination: Examination, reference: Reference) -> Iterator[Comparison]:
    has_lse = examination.kernel.returns_lse
    yield from _compare(examination, reference, "forward", FORWARD if has_lse else FORWARD[:1])
    if examination.case.forward_only:
        return
    if has_lse and examination.kernel.saves_outputs and is_usable(examination, reference):
        yield from _compare(examination, modular(examination), "modular", (*BACKWARD, *OF_FEATURES))
    yield from _compare(examination, reference, "end-to-end", (*BACKWARD, *OF_FEATURES))


def _compare(examination: Examination, reference: Reference, mode: str, tensors: tuple[str, ...]) -> Iterator[Comparison]:
    contract = examination.contract
    for name in tensors:
        if getattr(reference.truth, name) is None:
            continue
        yield Comparison(
            tensor=name,
            mode=mode,
            value=getattr(examination.outputs, name),
            truth=getattr(reference.truth, name),
            radius=getattr(reference.radius, name),
            budget=getattr(reference.budget, name),
            format=contract.accumulator if name in {"lse", "dsink"} else contract.stored,
        )
