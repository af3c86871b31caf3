"""Sign bit: the probabilities that a kernel returns carry the predicted mask in their signs, and are right beside it.

Every pair has its bit, visible or not. It is read as a bit (`dropout/signbit.py`); how many bits a comparison with 0 would have
lost is counted. Magnitudes are held to the hard budget of P as the backward pass forms it, from an lse that may be off by the
forward pass's budget, and rounded to the case's dtype (docs/numerics.md, lemma 7). In float64 the oracle is no sharper than the
kernel: there the signs alone are compared.
"""

from __future__ import annotations

import torch

from flashverify.adapters.kernel import KernelDefectError
from flashverify.checks import mask
from flashverify.checks.comparison import Comparison, judge, measure
from flashverify.checks.examination import Examination
from flashverify.checks.reference import end_to_end
from flashverify.checks.registry import register
from flashverify.dropout.of_case import kept
from flashverify.dropout.signbit import decode, lost_by_value
from flashverify.numerics.coefficients import Coefficients
from flashverify.numerics.contract import ORACLE_FLOAT64, Contract
from flashverify.numerics.exponents import backward_exponent, evaluation_slack, perturbed_weights
from flashverify.numerics.formats import FORMATS, TORCH_DTYPES
from flashverify.numerics.tiles import TILE_ELEMENTS, Lanes
from flashverify.records.dropout import Bits
from flashverify.records.measurement import CheckResult, Verdict

MOST_PAIRS = 2**26
"""Pairs up to which the check applies: it takes a dozen float64 numbers for each."""

PROBABILITIES = "probabilities"


@register("sign_bit")
def sign_bit(examination: Examination) -> CheckResult | None:
    """Signs and magnitudes; None without dropout, for kernels that return no probabilities, and for very large cases."""
    case, kernel = examination.case, examination.kernel
    returned = getattr(kernel, "signed_probabilities", None)
    pairs = case.batch * case.heads_q * case.seqlen_q * case.seqlen_k
    if case.dropout is None or returned is None or not 0 < pairs <= MOST_PAIRS:
        return None
    inputs = examination.inputs
    with examination.stopwatch.stage("kernel"):
        signed = returned(case, inputs)
    if signed is None:
        return None
    _require_form(examination, signed)
    bits = signs(examination, signed)
    found = mask.judge("sign_bit", (bits,))
    if case.dtype == "fp64":
        return found
    out_of_range = end_to_end(examination).range_violation(examination)
    if out_of_range is not None:
        return found if found.verdict is Verdict.FAIL else _unsupported(out_of_range, bits)
    measurement = measure(magnitudes(examination, decode(signed)[0]))
    verdict, reason = judge([measurement])
    return CheckResult(
        check="sign_bit",
        verdict=Verdict.worst([found.verdict, verdict]),
        reason="; ".join(filter(None, (found.reason, reason))),
        measurements=(measurement,),
        bits=(bits,),
    )


def signs(examination: Examination, signed: torch.Tensor) -> Bits:
    """The sign bits beside the host's mask."""
    case, device = examination.case, signed.device
    rows, columns = (torch.arange(size, device=device) for size in (case.seqlen_q, case.seqlen_k))
    entries, heads = (torch.arange(size, device=device) for size in (case.batch, case.heads_q))
    with examination.stopwatch.stage("oracle"):
        expected = kept(case, entries[:, None, None, None], heads[:, None, None], rows[:, None], columns)
    assert expected is not None
    wrong = decode(signed)[1] != expected
    differing = int(wrong.sum())
    return Bits(
        tensor=PROBABILITIES,
        mode="predicted",
        compared=wrong.numel(),
        differing=differing,
        first=tuple(int(place) for place in wrong.nonzero()[0]) if differing else None,
        lost_by_value=lost_by_value(signed),
    )


def magnitudes(examination: Examination, probabilities: torch.Tensor) -> Comparison:
    """The probabilities beside the oracle's, with their hard budget; all (batch, heads_q, seqlen_q, seqlen_k)."""
    reference = end_to_end(examination)
    with examination.stopwatch.stage("budget"):
        truth, budget = _allowed(examination, examination.contract, reference.budget.lse)
        _, radius = _allowed(examination, ORACLE_FLOAT64, reference.radius.lse)
    return Comparison(
        tensor=PROBABILITIES,
        mode="forward",
        value=probabilities,
        truth=truth,
        radius=radius,
        budget=budget,
        format=FORMATS[examination.case.dtype],
    )


def _allowed(examination: Examination, contract: Contract, lse_error: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """True probabilities, and how far a kernel's with this contract and such errors of lse may be from them."""
    case, lse = examination.case, end_to_end(examination).truth.lse
    coefficients, lanes = Coefficients(contract), Lanes.of(case, examination.inputs)
    of_lanes = (case.batch * case.heads_kv, case.group_size, case.seqlen_q)
    lses, errors = lse.reshape(of_lanes), lse_error.reshape(of_lanes)
    truth, budget = (lse.new_zeros(*of_lanes, case.seqlen_k) for _ in range(2))
    for tile in lanes.tiles(TILE_ELEMENTS):
        row, row_error = (tile.place.take(x)[..., None] for x in (lses, errors))
        row = torch.where(row.isneginf(), 0.0, row)
        weights = perturbed_weights(tile, row, backward_exponent(tile, coefficients, row, row_error))
        error = weights.excess + coefficients.tiny
        error = error + coefficients.stored(weights.p + error)
        error = torch.where(weights.unbounded, torch.inf, error * (1.0 + evaluation_slack(tile, row)))
        error = torch.where(tile.seen, error, 0.0)
        tile.place.put(truth, weights.p[..., : case.seqlen_k])
        tile.place.put(budget, error[..., : case.seqlen_k])
    shape = (case.batch, case.heads_q, case.seqlen_q, case.seqlen_k)
    return truth.reshape(shape), budget.reshape(shape)


def _unsupported(reason: str, bits: Bits) -> CheckResult:
    return CheckResult(check="sign_bit", verdict=Verdict.UNSUPPORTED, reason=reason, bits=(bits,))


def _require_form(examination: Examination, signed: torch.Tensor) -> None:
    case, dtype = examination.case, TORCH_DTYPES[examination.case.dtype]
    shape = (case.batch, case.heads_q, case.seqlen_q, case.seqlen_k)
    if not isinstance(signed, torch.Tensor):
        raise KernelDefectError(f"{PROBABILITIES}: got {type(signed).__name__}, accepted are tensors")
    if signed.shape != shape:
        raise KernelDefectError(f"{PROBABILITIES}: got shape {tuple(signed.shape)}, accepted is {shape}")
    if signed.dtype != dtype:
        raise KernelDefectError(f"{PROBABILITIES}: got {signed.dtype}, accepted is {dtype}")
