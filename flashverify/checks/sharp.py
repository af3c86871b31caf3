"""Sharp: every element lies within the probabilistic budget of the kernel's own contract (T2).

    |X^ - X*| + rho <= bias + lambda·deviation + (half a spacing)

lambda is such that a whole certificate raises a false alarm less often than once in a million, if the model holds (`rates.py`).
Where the model says nothing of a case, this check does not apply, and says why.
"""

from __future__ import annotations

from collections.abc import Iterator

from flashverify.checks.comparison import Comparison, judge, measure_sharply
from flashverify.checks.examination import Examination
from flashverify.checks.rates import SHARE
from flashverify.checks.reference import end_to_end
from flashverify.checks.registry import register
from flashverify.checks.views import View, views
from flashverify.numerics.sharp import factor, inapplicable_to
from flashverify.records.measurement import CheckResult, Verdict


@register("sharp")
def sharp(examination: Examination) -> CheckResult | None:
    """Every element within T2; None for float64 cases."""
    if examination.case.dtype == "fp64":
        return None
    if examination.draws_its_own is not None:
        return CheckResult(check="sharp", verdict=Verdict.UNSUPPORTED, reason=examination.draws_its_own)
    with examination.stopwatch.stage("sharp"):
        return _examine(examination)


def _examine(examination: Examination) -> CheckResult:
    reason = examination.not_sharp or end_to_end(examination).range_violation(examination)
    if reason is not None:
        return CheckResult(check="sharp", verdict=Verdict.UNSUPPORTED, reason=reason)
    measurements = [measure_sharply(comparison) for comparison in comparisons(examination)]
    verdict, reason = judge(measurements)
    return CheckResult(check="sharp", verdict=verdict, reason=reason, sharp=tuple(measurements))


def comparisons(examination: Examination) -> Iterator[Comparison]:
    """Each tensor of the case that the model says something of beside the float64 oracle's truth, with its sharp budget."""
    for view in views(examination):
        if inapplicable_to(view.tensor, examination.case, examination.walked) is None:
            yield compared(view)


def compared(view: View) -> Comparison:
    """A tensor beside its sharp budget; where any error is one, the budget is 0."""
    allowed = view.spread.allowed(view.truth, view.stored, factor(view.truth.numel(), SHARE))
    return Comparison(
        tensor=view.tensor,
        mode=view.mode,
        value=view.value,
        truth=view.truth,
        radius=view.radius,
        budget=allowed.masked_fill(view.exact, 0.0),
        format=view.stored,
    )
