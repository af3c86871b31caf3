"""Whether an intermediate may exceed the largest finite number of its format: then no error bound has a meaning.

Checked are bounds of every number that the contract's arithmetic forms: scores, logits and their distances, weights, dP, D
and their difference, the unnormalised output, dS (where fp16 overflows first), the gradients before and after the scale, and
what is stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from flashverify.cases.case import AttentionCase
from flashverify.cases.tensors import Inputs, Outputs
from flashverify.numerics.coefficients import Coefficients
from flashverify.numerics.contract import LOG2E, Contract
from flashverify.numerics.dots import SplitProducts
from flashverify.numerics.exponents import LARGEST_EXPONENT
from flashverify.numerics.formats import Format
from flashverify.numerics.hard_backward import ScoreGradients, score_gradients
from flashverify.numerics.hard_forward import ForwardBudget
from flashverify.numerics.rotation import Turning
from flashverify.numerics.tiles import TILE_ELEMENTS, Lanes


def range_violation(
    case: AttentionCase,
    inputs: Inputs,
    truth: Outputs,
    budget: Outputs,
    contract: Contract,
    tile_elements: int = TILE_ELEMENTS,
) -> str | None:
    """The first intermediate or output that may overflow, or None.

    Args:
        case: the case.
        inputs: its inputs, any dtype, taken as exact.
        truth: true outputs, float64.
        budget: allowed errors, float64 (gradients: end-to-end mode).
        contract: the arithmetic.
        tile_elements: scores in a tile, at most.

    Returns:
        None, or a reason such as "range: dS may reach 7.1e+04, the largest fp16 is 6.55e+04".

    Raises:
        ValueError: if tile_elements is less than 1.
    """
    underflow = _pieces_underflow(inputs, contract)
    if underflow is not None:
        return underflow
    for name, reach, target in _reaches(case, inputs, truth, budget, contract, tile_elements):
        if not reach <= target.largest:
            return f"range: {name} may reach {reach:.3g}, the largest {target.name} is {target.largest:.3g}"
    return None


def _pieces_underflow(inputs: Inputs, contract: Contract) -> str | None:
    """Which input has numbers that pieces do not add up to, where products are made of pieces, or None."""
    dot = contract.dot
    if not isinstance(dot, SplitProducts):
        return None
    for name, values in (("q", inputs.q), ("k", inputs.k), ("v", inputs.v), ("dO", inputs.dout)):
        small = (values != 0.0) & (values.abs() < dot.smallest_operand)
        if bool(small.any()):
            found = float(values[small].abs().min())
            return (
                f"range: {name} has {found:.3g}, whose pieces underflow in {dot.pieces.name} below {dot.smallest_operand:.3g}"
            )
    return None


def _reaches(
    case: AttentionCase, inputs: Inputs, truth: Outputs, budget: Outputs, contract: Contract, tile_elements: int
) -> Iterator[tuple[str, float, Format]]:
    """Name, largest possible magnitude and format of every number that a kernel forms."""
    lanes = Lanes.of(case, inputs)
    dk, dv = torch.zeros_like(lanes.k), torch.zeros_like(lanes.v)
    forward = ForwardBudget(budget.out, budget.lse)
    coefficients = Coefficients(contract)
    # exp(x - lse) with an lse that is too small by its budget: what a backward pass is a function of, cut or not
    yield "a weight recomputed from lse", math.exp(min(_largest(budget.lse), LARGEST_EXPONENT)), contract.accumulator
    for gradients in score_gradients(lanes, inputs, truth.out, truth.lse, coefficients, forward, tile_elements):
        yield from _tile_reaches(gradients, contract)
        tile = gradients.tile
        dk[tile.place.lanes] += (gradients.ds.abs() + gradients.error).mT @ tile.q.abs()
        # before and after dropout's factor, which is 1 at least unless everything is dropped
        dv[tile.place.lanes] += max(tile.rescale, 1.0) * (
            (tile.kept_of(gradients.weights.p) + gradients.weight_error).mT @ tile.dout.abs()
        )
    dk, dv = dk[:, : case.seqlen_k], dv[:, : case.seqlen_k]
    yield "dk before the scale", _largest(dk), contract.accumulator
    yield "dv as accumulated", _largest(dv), contract.accumulator
    stored = dict.fromkeys(("out", "dq", "dk", "dv", "dbias"), contract.stored)
    for (name, true), (_, allowed) in zip(truth.items(), budget.items(), strict=True):
        finite = torch.isfinite(true)
        reach = torch.where(finite, true.abs() + allowed, 0.0)
        yield name, _largest(reach), stored.get(name, contract.accumulator)


def _tile_reaches(gradients: ScoreGradients, contract: Contract) -> Iterator[tuple[str, float, Format]]:
    """The numbers that one tile forms; sums are bounded by their sums of magnitudes, so in any order."""
    tile, accumulator = gradients.tile, contract.accumulator
    factor = max(tile.rescale, 1.0)
    folded = factor if contract.rescale == "folded" else 1.0
    operands = contract.dot.pieces if isinstance(contract.dot, SplitProducts) else accumulator
    slack = 1.0 + gradients.coefficients.plain_dot(tile.k.shape[1] + max(tile.q.shape[-1], tile.v.shape[-1]))
    turning = Turning.of(tile, gradients.coefficients)
    if turning is not None:
        for name, values in (("a turned q", turning.q_reach), ("a turned k", turning.k_reach)):
            yield name, _largest(values), contract.storage
    scores = slack * _largest(tile.score_magnitude if turning is None else turning.magnitude)
    yield "a score", scores, accumulator
    if tile.cap is not None:
        yield "what tanh is taken of", scores * abs(tile.softmax_scale) / tile.cap.size, accumulator
        scores = 1.0 + gradients.coefficients.tanh
    if tile.bias_of_score is not None:
        scores = scores + slack * _largest(tile.bias_of_score)
    logits = scores * abs(tile.scale) * LOG2E
    yield "a logit", logits, accumulator
    if contract.exponent == "shifted":
        # the heaviest key's weight is 1, but the distance of two raw scores is formed before it is scaled
        yield "the distance of two scores", 2.0 * scores, accumulator
        yield "an unnormalised weight", folded, contract.probability or operands
    else:
        # the heaviest key's exponent is 0 up to the rounding of a fused product
        residual = accumulator.unit_roundoff * logits
        yield "an unnormalised weight", folded * 2.0 ** min(residual, 1000.0), contract.probability or operands
    for name, values in (("q", tile.q), ("k", tile.k), ("v", tile.v), ("dO", tile.dout)):
        yield name, _largest(values.abs()), operands
    products = tile.dout.abs() @ tile.v.abs().mT
    yield "dP", slack * factor * _largest(products), accumulator
    yield "a weight of the backward pass", folded * _largest(gradients.weights.largest), contract.probability or operands
    yield "delta", slack * _largest(gradients.delta_reach), accumulator
    yield "dP - delta", slack * _largest(gradients.difference_reach), accumulator
    # a row's weights are at most 1 each before they are normalised
    heaviest = tile.v.abs().sum(1).max() if tile.v.numel() else tile.v.new_zeros(())
    yield "the unnormalised output", slack * factor * float(heaviest), accumulator
    ds = gradients.ds.abs() + gradients.error
    yield "dS", _largest(ds), contract.score_gradient or operands
    yield "dq before the scale", slack * _largest(ds @ tile.k.abs()), accumulator


def _largest(values: torch.Tensor) -> float:
    """The largest value; 0 for an empty tensor, and where the truth itself is not a number."""
    return float(values.nan_to_num(nan=0.0, posinf=torch.inf).max()) if values.numel() else 0.0
