"""Distribution: the errors of a tensor have the predicted size and no direction (T3).

With standard scores z = (X^ - X*) / predicted deviation, over a whole tensor:

    rms(z) within its range,   |t| of the rows' mean z and of their mean z·sign(X*) below the quantile + what bias explains

A small systematic error that no element's budget can see moves these by many standard errors. Both sides count where the
roundings of P and dS dominate: errors that are too small mean that something else was compared, or is computed.
"""

from __future__ import annotations

import math

import torch

from flashverify.checks.examination import Examination
from flashverify.checks.rates import SHARE
from flashverify.checks.reference import end_to_end
from flashverify.checks.registry import register
from flashverify.checks.views import View, views
from flashverify.numerics.calibration import accuracy_of_model
from flashverify.numerics.contract import Contract
from flashverify.numerics.scores import FEWEST_ELEMENTS, FEWEST_ROWS, Clustered, by_row, quantile, residual
from flashverify.numerics.sharp import inapplicable_to
from flashverify.records.measurement import CheckResult, Distribution, Verdict

LARGEST_EXPLAINED = 1.0
"""Bias, in deviations, up to which scores say something: beyond it, nothing that they can show is surprising."""


@register("distribution")
def distribution(examination: Examination) -> CheckResult | None:
    """Errors of the predicted size, without direction; None for float64 cases."""
    if examination.case.dtype == "fp64":
        return None
    if examination.draws_its_own is not None:
        return CheckResult(check="distribution", verdict=Verdict.UNSUPPORTED, reason=examination.draws_its_own)
    with examination.stopwatch.stage("sharp"):
        return _examine(examination)


def _examine(examination: Examination) -> CheckResult:
    reason = examination.not_sharp or end_to_end(examination).range_violation(examination)
    if reason is not None:
        return CheckResult(check="distribution", verdict=Verdict.UNSUPPORTED, reason=reason)
    found, reasons = [], []
    for view in views(examination):
        why = inapplicable_to(view.tensor, examination.case, examination.walked) or not_generic(view)
        if why is None:
            found.append(statistics(view, examination.walked))
        else:
            reasons.append(why)
    if not found:
        return CheckResult(check="distribution", verdict=Verdict.UNSUPPORTED, reason=reasons[0])
    failed = [(one, one.defects) for one in found if one.defects]
    verdict = Verdict.FAIL if failed else Verdict.PASS
    explained = "; ".join(f"{one.tensor} ({one.mode}): {', '.join(defects)}" for one, defects in failed)
    return CheckResult(check="distribution", verdict=verdict, reason=explained, distributions=tuple(found))


def _present(view: View) -> torch.Tensor:
    """Elements that have a score, by row: those whose truth is a number that the format does not hold exactly."""
    inexact = residual(view.truth.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0), view.stored) != 0.0
    return by_row(view.truth.isfinite() & inexact)


def not_generic(view: View) -> str | None:
    """Why scores of a tensor have no known distribution, or None.

    The final rounding is modelled as uniform: then the truth's own distances from the format's numbers have to be.
    """
    present = _present(view)
    rows, elements = int(present.any(1).sum()), int(present.sum())
    if rows < FEWEST_ROWS or elements < FEWEST_ELEMENTS:
        return f"too few scores: {elements} in {rows} rows, at least {FEWEST_ELEMENTS} in {FEWEST_ROWS} say something"
    truth = by_row(view.truth)
    distances = residual(truth.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0), view.stored)
    limit = quantile(rows, SHARE)
    uneven = max(
        abs(Clustered.of(12.0 * distances.square() - 1.0, present).t),
        abs(Clustered.of(distances * truth.sign(), present).t),
        abs(Clustered.of(distances, present).t),
    )
    if not uneven <= limit:
        return "the true values themselves lie unevenly between the format's numbers"
    size = by_row(view.spread.size(view.truth, view.stored))
    if not bool(size[present].isfinite().all()):
        return "the model gives no deviation"
    explained = by_row(view.spread.bias) / size
    if not Clustered.of(explained, present).mean <= LARGEST_EXPLAINED:
        return "what is common to all errors may be larger than their deviation"
    return None


def _shared(view: View, size: torch.Tensor, present: torch.Tensor) -> float:
    """Share of the errors' variance that all rows have in common.

    With a share f, the mean over n rows varies 1 + n·f times as much as independent rows say, at most, and the mean square by
    sqrt(2)·f besides (if all that is shared is one number).
    """
    if view.spread.shared is None:
        return 0.0
    return Clustered.of((by_row(view.spread.shared) / size).square(), present).mean


def statistics(view: View, contract: Contract) -> Distribution:
    """The statistics of a tensor's scores, with their ranges."""
    present = _present(view)
    size = by_row(view.spread.size(view.truth, view.stored))
    score = by_row(view.error()) / size
    sign = by_row(view.truth).sign()
    squares, means, signed = (Clustered.of(x, present) for x in (score.square(), score, score * sign))
    explained = Clustered.of(by_row(view.spread.bias) / size, present).mean
    limit = quantile(squares.rows, SHARE)
    accuracy = accuracy_of_model(view.tensor, contract)
    bias_squared = Clustered.of((by_row(view.spread.bias) / size).square(), present).mean
    shared = _shared(view, size, present)
    noise = limit * (squares.error + math.sqrt(2.0) * shared)
    largest = accuracy.largest**2 + bias_squared + 2.0 * accuracy.largest * math.sqrt(bias_squared) + noise
    # what is estimated from above may be smaller: only the known roundings have to be there
    known = Clustered.of((by_row(view.spread.known(view.truth, view.stored)) / size).square(), present).mean
    smallest = max(accuracy.smallest**2 * known - noise, 0.0)
    limit = limit * math.sqrt(1.0 + squares.rows * shared)
    return Distribution(
        tensor=view.tensor,
        mode=view.mode,
        elements=int(present.sum()),
        rows=squares.rows,
        rms=math.sqrt(squares.mean),
        smallest_rms=math.sqrt(smallest),
        largest_rms=math.sqrt(largest),
        mean=means.mean,
        t=means.t,
        largest_t=limit + explained / means.error if means.error else limit,
        shrinkage=signed.mean,
        t_sign=signed.t,
        largest_t_sign=limit + explained / signed.error if signed.error else limit,
    )
