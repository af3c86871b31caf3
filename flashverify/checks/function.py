"""Function: the kernel's float64 instantiation computes exact attention, where rounding cannot hide anything.

    |X64 - mid| <= radius + B64      for X in out, lse, dq, dk, dv, dbias, dsink

The enclosure mid ± radius is rigorous: Arb balls where the case is small enough, else the float64 oracle with its proven
a-priori error. B64 is the hard budget of the float64 contract. Low-precision cases are checked too, with the same input values
in float64: what their kernel computes is the same source.
"""

from __future__ import annotations

from collections.abc import Iterator

from flashverify.cases.case import AttentionCase
from flashverify.cases.tensors import Outputs
from flashverify.checks.comparison import Comparison, judge, measure
from flashverify.checks.examination import Examination
from flashverify.checks.reference import Reference, end_to_end
from flashverify.checks.registry import register
from flashverify.numerics.conditioning import magnitudes
from flashverify.numerics.formats import FP64
from flashverify.records.measurement import CheckResult, Verdict

BALL_OPERATIONS = 2**19
"""Multiplications of QKᵀ up to which a case goes to the ball oracle: about 0.1 s."""


@register("function")
def function(examination: Examination) -> CheckResult | None:
    """The float64 instantiation lies inside the enclosure; None for large cases of lower precision."""
    if examination.case.dtype != "fp64" and not _is_small(examination.case):
        return None
    if examination.draws_its_own is not None:
        return CheckResult(check="function", verdict=Verdict.UNSUPPORTED, reason=examination.draws_its_own)
    double = examination.doubled
    declined = double.kernel.declines(double.case)
    if declined is not None:
        return CheckResult(check="function", verdict=Verdict.UNSUPPORTED, reason=f"float64: {declined}")
    reference = end_to_end(double)
    out_of_range = reference.range_violation(double)
    if out_of_range is not None:
        return CheckResult(check="function", verdict=Verdict.UNSUPPORTED, reason=out_of_range)
    measurements = [measure(comparison) for comparison in _inside(double, reference)]
    verdict, reason = judge(measurements)
    return CheckResult(check="function", verdict=verdict, reason=reason, measurements=tuple(measurements))


def comparisons(examination: Examination) -> Iterator[Comparison]:
    """Each tensor of a float64 case beside its enclosure."""
    return _inside(examination, end_to_end(examination))


def _inside(examination: Examination, reference: Reference) -> Iterator[Comparison]:
    mids, radii = _enclosure(examination, reference)
    sizes = magnitudes(examination.case, examination.inputs, reference.truth.lse)
    for name, mid in mids.items():
        if name == "lse" and not examination.kernel.returns_lse:
            continue
        yield Comparison(
            tensor=name,
            mode="enclosure",
            value=getattr(examination.outputs, name),
            truth=mid,
            radius=getattr(radii, name),
            budget=getattr(reference.budget, name),
            format=FP64,
            magnitude=getattr(sizes, name),
        )


def _is_small(case: AttentionCase) -> bool:
    pairs = case.batch * case.heads_q * case.seqlen_q * case.seqlen_k
    return pairs * max(case.head_dim, case.value_dim) <= BALL_OPERATIONS


def _enclosure(examination: Examination, reference: Reference) -> tuple[Outputs, Outputs]:
    if not _is_small(examination.case):
        return reference.truth, reference.radius
    from flashverify.oracles import ball

    with examination.stopwatch.stage("inputs"):
        inputs = examination.inputs.to("cpu")
    with examination.stopwatch.stage("oracle"):
        enclosure = ball.attention(examination.case, inputs)
        return _moved(enclosure.mid, examination), _moved(enclosure.radius, examination)


def _moved(outputs: Outputs, examination: Examination) -> Outputs:
    return Outputs(**{name: tensor.to(examination.kernel.device) for name, tensor in outputs.items()})
