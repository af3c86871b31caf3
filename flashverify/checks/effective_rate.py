"""Effective rate: the rate that a kernel's rescaling assumes is the rate that its mask has.

Scores are 0 and v is c, a power of two. A weight is 1 before normalisation, and 1 / visible after it, which is exact too where
the row sees a power of two of keys; elsewhere it may be rounded before it multiplies v. Sums of equal weights are exact (below
2^precision terms). So out = r·c·kept / visible but for that and for the roundings of r, of its product, of the division and of
the result. Each row bounds r, and all rows together bound it far better. The mask's rate is known where the host predicts it,
and else what the dropped pairs of the kernel's own forward mask do not rule out.
"""

from __future__ import annotations

import math

import torch

from flashverify.checks.examination import Examination
from flashverify.checks.probes import Probes, forward_mask, probes
from flashverify.checks.rates import DROPOUT_SHARE
from flashverify.checks.registry import register
from flashverify.dropout.effective import EffectiveRate, confidence, known, rescaling
from flashverify.dropout.mask import stream_of
from flashverify.dropout.of_case import kept
from flashverify.numerics.coefficients import Coefficients
from flashverify.numerics.contract import Contract
from flashverify.records.dropout import Rates
from flashverify.records.measurement import CheckResult, Verdict

ROUNDINGS = 4
"""Of r, of its product, of a reciprocal that takes a division's place, and of the product with that."""


@register("effective_rate")
def effective_rate(examination: Examination) -> CheckResult | None:
    """Whether both rates may be one; None without dropout, without pairs, and where weights are not all 1."""
    case = examination.case
    stream = stream_of(case)
    if stream is None or case.alibi is not None or 0 in (case.batch, case.seqlen_q, case.seqlen_k):
        return None
    made = probes(examination)
    keeps, pairs, told = _counts(examination, made)
    if not told:
        return CheckResult(check="effective_rate", verdict=Verdict.UNSUPPORTED, reason="not every pair's bit can be told")
    out = made.out_of_constant()
    of_rows, weights = (x[..., None].expand(out.shape) for x in (keeps, pairs + int(case.sink)))
    factor = rescaling(out, of_rows, weights, made.c, relative_error(examination.contract, weights))
    if examination.kernel.predictable:
        rate = known(stream.effective_rate)
    elif int(pairs.sum()):
        rate = confidence(int((pairs - keeps).sum()), int(pairs.sum()), DROPOUT_SHARE)
    else:
        return CheckResult(check="effective_rate", verdict=Verdict.UNSUPPORTED, reason="no pair is visible")
    found = EffectiveRate(rate, factor)
    return CheckResult(
        check="effective_rate",
        verdict=Verdict.PASS if found.agrees else Verdict.FAIL,
        reason="" if found.agrees else found.describe(),
        rates=Rates(
            mask_low=rate.low,
            mask_high=rate.high,
            assumed_low=_finite(found.assumed.low),
            assumed_high=_finite(found.assumed.high),
        ),
    )


def relative_error(contract: Contract, weights: torch.Tensor) -> torch.Tensor:
    """Largest relative error of out in rows of so many equal weights, float64."""
    coefficients = Coefficients(contract)
    computed = (1.0 + coefficients.growth(ROUNDINGS)) * (1.0 + coefficients.division)
    computed = computed * (1.0 + contract.stored.unit_roundoff)
    cast = 0.0 if contract.probability is None else contract.probability.unit_roundoff
    is_exact = weights & (weights - 1) == 0  # powers of two have one bit
    return torch.where(is_exact, computed, computed * (1.0 + cast)).double() - 1.0


def _counts(examination: Examination, made: Probes) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Kept and visible pairs of every row, int64 (batch, heads_q, seqlen_q), and whether all that are visible are known."""
    case, device = examination.case, examination.kernel.device
    entries, heads, rows = (torch.arange(size, device=device) for size in (case.batch, case.heads_q, case.seqlen_q))
    keeps, pairs = (torch.zeros(case.batch, case.heads_q, case.seqlen_q, dtype=torch.int64, device=device) for _ in range(2))
    told = True
    for start in range(0, case.seqlen_k, case.head_dim):
        columns = torch.arange(start, min(start + case.head_dim, case.seqlen_k), device=device)
        visible = made.visible(heads, rows, columns)
        if examination.kernel.predictable:
            bits = kept(case, entries[:, None, None, None], heads[:, None, None], rows[:, None], columns)
            assert bits is not None
        else:
            mask = forward_mask(examination)
            bits = mask.kept[..., columns]
            told = told and bool((mask.known[..., columns] | ~visible).all())
        keeps += (bits & visible).sum(-1)
        pairs += visible.sum(-1)
    return keeps, pairs, told


def _finite(bound: float) -> float | None:
    return bound if math.isfinite(bound) else None
