"""Statistics: the forward mask of a kernel with a generator of its own has the right rate, and its bits are independent.

Four masks are tested together: of two seeds, and two calls of each where the kernel can be called again without setting its
generator's state. The tests are exact (`dropout/statistics.py`). Cases whose pairs are not all visible, or that have too few,
show no such mask; a mask that the host predicts needs no statistics.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from flashverify.adapters.kernel import Kernel
from flashverify.cases.case import AttentionCase
from flashverify.cases.tensors import Inputs, Outputs
from flashverify.checks.examination import Examination
from flashverify.checks.probes import ForwardMask, forward_mask
from flashverify.checks.rates import DROPOUT_SHARE
from flashverify.checks.registry import register
from flashverify.dropout.statistics import SMALLEST_SAMPLE, MaskTest, describe, examine
from flashverify.records.dropout import Statistic
from flashverify.records.measurement import CheckResult, Verdict

QUESTIONS = ("rate", "independence")


@register("statistics")
def statistics(examination: Examination) -> CheckResult | None:
    """Rate and independence; None without dropout, and for kernels whose mask is predicted."""
    case = examination.case
    if case.dropout is None or examination.kernel.predictable:
        return None
    bits = case.batch * case.heads_q * case.seqlen_q * case.seqlen_k
    calls = 2 * (1 + hasattr(examination.kernel, "run_again"))
    if bits * calls < SMALLEST_SAMPLE:
        return _unsupported(f"too few bits: {bits} in each of {calls} calls, {SMALLEST_SAMPLE} say something")
    masks = list(_masks(examination))
    if not all(bool(mask.known.all()) for mask in masks):
        return _unsupported("not every pair's bit can be told")
    tests = examine(torch.stack([mask.kept for mask in masks]), case.dropout, DROPOUT_SHARE)
    reason = describe(tests)
    return CheckResult(
        check="statistics",
        verdict=Verdict.FAIL if reason else Verdict.PASS,
        reason=reason,
        statistics=tuple(_least_likely(question, tests, bits * calls) for question in QUESTIONS),
    )


def _masks(examination: Examination) -> Iterator[ForwardMask]:
    """The masks of two seeds, and of a further call of each."""
    kernel, case = examination.kernel, examination.case
    for of_seed in (examination, examination.probe(case.replace(seed=case.seed + 1))):
        yield forward_mask(of_seed)
        if hasattr(kernel, "run_again"):
            yield ForwardMask(Examination(SecondCall(kernel), of_seed.case, examination.arithmetic, examination.stopwatch))


class SecondCall:
    """A kernel whose every run is the second of two calls."""

    def __init__(self, kernel: Kernel) -> None:
        """Wrap a kernel that has `run_again`."""
        self._kernel = kernel
        self.name, self.device, self.sources = kernel.name, kernel.device, kernel.sources
        self.returns_lse, self.saves_outputs, self.predictable = kernel.returns_lse, kernel.saves_outputs, False
        self.declines, self.contract, self.configuration = kernel.declines, kernel.contract, kernel.configuration

    def run(self, case: AttentionCase, inputs: Inputs) -> Outputs:
        """The second call; see `Kernel.run`."""
        self._kernel.run(case, inputs)
        outputs: Outputs = self._kernel.run_again(case, inputs)  # type: ignore[attr-defined]  # optional in the protocol
        return outputs


def _least_likely(question: str, tests: list[MaskTest], bits: int) -> Statistic:
    asked = [test for test in tests if test.question == question]
    worst = min(asked, key=lambda test: test.p)
    return Statistic(
        question=question,
        tests=len(asked),
        bits=bits,
        name=worst.name,
        trials=worst.trials,
        events=worst.events,
        expected=worst.expected,
        p=worst.p,
        allowed=worst.allowed,
    )


def _unsupported(reason: str) -> CheckResult:
    return CheckResult(check="statistics", verdict=Verdict.UNSUPPORTED, reason=reason)
