"""The hard budget of the forward pass: the largest error of out and lse that a contract's arithmetic can make.

    budget(out) = cast(|out| + pre) + pre,    pre = quotient + value + row sum + division terms (docs/numerics.md, theorem 1)

Every term is an upper bound for all inputs, not an expectation. It is evaluated tile by tile with matrix products alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from flashverify.cases.case import AttentionCase
from flashverify.cases.tensors import Inputs
from flashverify.numerics.centred import centred_sum
from flashverify.numerics.coefficients import Coefficients
from flashverify.numerics.contract import LN2, LOG2E, Contract
from flashverify.numerics.exponents import (
    Weights,
    evaluation_slack,
    forward_exponent,
    logit_error,
    perturbed_weights,
    row_maximum,
    weight_error,
)
from flashverify.numerics.tiles import TILE_ELEMENTS, Lanes, Tile, by_lane


@dataclass(frozen=True, slots=True)
class ForwardBudget:
    """Allowed errors of the forward pass, float64, >= 0; infinite where nothing can be promised.

    Attributes:
        out: (batch, heads_q, seqlen_q, value_dim).
        lse: (batch, heads_q, seqlen_q), natural units.
    """

    out: torch.Tensor
    lse: torch.Tensor


def forward_budget(
    case: AttentionCase,
    inputs: Inputs,
    out: torch.Tensor,
    lse: torch.Tensor,
    contract: Contract,
    tile_elements: int = TILE_ELEMENTS,
) -> ForwardBudget:
    """The largest errors of out and lse that a kernel with this contract can make, element by element.

    Args:
        case: the case.
        inputs: its inputs, any dtype, taken as exact.
        out: true out, (batch, heads_q, seqlen_q, value_dim).
        lse: true lse, (batch, heads_q, seqlen_q); -inf where a row sees no key.
        contract: the arithmetic.
        tile_elements: scores in a tile, at most.

    Returns:
        The budget, on the inputs' device. A row that sees no key has budget 0: it must be exact.

    Raises:
        ValueError: if tile_elements is less than 1.
    """
    coefficients = Coefficients(contract)
    lanes = Lanes.of(case, inputs)
    true_out, true_lse = by_lane(case, out), by_lane(case, lse)
    out_budget, lse_budget = torch.zeros_like(true_out), torch.zeros_like(true_lse)
    for tile in lanes.tiles(tile_elements):
        row = _Rows.of(tile, coefficients, tile.place.take(true_lse)[..., None])
        tile.place.put(out_budget, row.settle(_out_error(row, tile.place.take(true_out))))
        tile.place.put(lse_budget, row.settle(_lse_error(row)).squeeze(-1))
    return ForwardBudget(out_budget.reshape(out.shape), lse_budget.reshape(lse.shape))


@dataclass(frozen=True, slots=True)
class _Rows:
    """A tile with what all terms of the forward pass share; r stacked rows, (c, r, 1) unless stated.

    Attributes:
        tile: the tile.
        coefficients: the contract's coefficients.
        lse: true lse, 0 for rows that see no key.
        omega: exponent error, (c, r, n).
        weights: true probabilities and their largest change, (c, r, n).
        rescales: (r, 1), how often the running maximum may move after a row's first block.
        retained: lower bound of sum_j p_j·e^xi_j, the denominator in units of the true one.
        inverse_sum: upper bound of 1 / (computed row sum before its own roundings), relative to the computed maximum.
        row_sum: upper bound of the row sum's relative error.
        bounded: bool, whether all perturbed weights of the row are bounded.
    """

    tile: Tile
    coefficients: Coefficients
    lse: torch.Tensor
    omega: torch.Tensor
    weights: Weights
    rescales: torch.Tensor
    retained: torch.Tensor
    inverse_sum: torch.Tensor
    row_sum: torch.Tensor
    bounded: torch.Tensor

    @classmethod
    def of(cls, tile: Tile, coefficients: Coefficients, lse: torch.Tensor) -> _Rows:
        """Exponent errors, weights and row sums of a tile."""
        blocks = _blocks(tile, coefficients.contract)
        rescales = (blocks - 1.0).clamp(min=0.0)
        error = weight_error(tile, coefficients)
        omega = forward_exponent(tile, coefficients, error, rescales)
        weights = perturbed_weights(tile, lse, omega)
        retained = (weights.p * torch.exp(-omega)).sum(-1, keepdim=True)
        inverse_sum = _inverse_sum(tile, coefficients, lse, error, rescales, retained)
        return cls(
            tile=tile,
            coefficients=coefficients,
            lse=lse,
            omega=omega,
            weights=weights,
            rescales=rescales,
            retained=retained,
            inverse_sum=inverse_sum,
            row_sum=_row_sum_error(tile, coefficients, blocks, inverse_sum),
            bounded=~weights.unbounded.any(-1, keepdim=True) & (retained > 0.0),
        )

    def settle(self, error: torch.Tensor) -> torch.Tensor:
        """Add the slack of the evaluation itself; 0 for rows that see no key, infinity in place of NaN."""
        settled = torch.nan_to_num(error * (1.0 + evaluation_slack(self.tile, self.lse)), nan=torch.inf, posinf=torch.inf)
        return torch.where(self.tile.lengths > 0, settled, 0.0)


def _out_error(row: _Rows, out: torch.Tensor) -> torch.Tensor:
    """Budget of out for the rows of a tile, (c, r, d) (theorem 1; with dropout, lemma 16).

    Up to the last line but two all is what it is before the factor that makes up for dropped pairs. A row that keeps no key is
    a sum of zeros.
    """
    coefficients, factor = row.coefficients, row.tile.rescale
    undropped = out / factor if factor else torch.zeros_like(out)
    quotient = _quotient_term(row, undropped)
    value = _value_term(row)
    reached = undropped.abs() + quotient + value
    pre = quotient + value + reached * _reciprocal_growth(row.row_sum)
    pre = pre + coefficients.division * (undropped.abs() + pre) + coefficients.tiny
    pre = _rescaled(pre, out, coefficients, factor)
    return torch.where(row.tile.lengths_kept > 0, pre + coefficients.stored(out.abs() + pre), 0.0)


def _rescaled(error: torch.Tensor, value: torch.Tensor, coefficients: Coefficients, factor: float) -> torch.Tensor:
    """The error of a value after its product with dropout's factor, from that before; the value is the one after it."""
    if factor == 1.0:
        return error
    error = factor * error
    return error + coefficients.rescaled_after(factor) * (value.abs() + error) + coefficients.tiny


def _quotient_term(row: _Rows, out: torch.Tensor) -> torch.Tensor:
    """Effect of the exponent errors on a quotient of sums with the same weights, (c, r, d) (lemma 5).

    |sum_j p_j·e^xi_j·v_j / sum_j p_j·e^xi_j - out| <= sum_j a_j·|v_j - out| / sum_j p_j·e^-omega_j, a = p·(e^omega - 1).
    The heaviest key's summand is taken as it is (near one-hot rows would be overestimated without bound), the others'
    sum by the triangle inequality or by Cauchy-Schwarz. A convex combination also stays in the values' hull, whatever
    its weights. The values of dropped keys are 0.
    """
    tile = row.tile
    heaviest = row.weights.p.argmax(-1, keepdim=True)
    heaviest_values = tile.v.gather(1, heaviest.expand(*heaviest.shape[:2], out.shape[-1]))
    largest, smallest = tile.v.amax(1, keepdim=True), tile.v.amin(1, keepdim=True)
    if tile.kept is not None:
        heaviest_values = torch.where(tile.kept.gather(-1, heaviest), heaviest_values, 0.0)
        drops = tile.lengths_kept < tile.lengths
        largest, smallest = (
            torch.where(drops, x, y) for x, y in ((largest.clamp(min=0), largest), (smallest.clamp(max=0), smallest))
        )
    alone = row.weights.excess.gather(-1, heaviest) * (heaviest_values - out).abs()
    others = row.weights.excess.scatter(-1, heaviest, 0.0)
    apart = alone + centred_sum(tile.kept_of(others), tile.v, out) + tile.dropped_of(others) * out.abs()
    centred = apart / row.retained
    hull = torch.maximum(largest - out, out - smallest).clamp(min=0.0)
    return torch.where(row.bounded, torch.minimum(centred, hull), hull)


def _value_term(row: _Rows) -> torch.Tensor:
    """Errors of the numerator: cast of P, underflow of weights, accumulation of P·V, divided by the row sum, (c, r, d)."""
    tile, coefficients, magnitude = row.tile, row.coefficients, row.tile.v.abs()
    largest, everything = magnitude.amax(1, keepdim=True), magnitude.sum(1, keepdim=True)
    weights = tile.kept_of(torch.where(row.bounded, row.weights.largest / row.retained, 1.0).clamp(max=1.0))
    weighted = torch.minimum(weights @ magnitude, largest)
    cast = _cast_term(row, weights, magnitude, largest)
    underflow = (1.0 + row.rescales) * coefficients.tiny * row.inverse_sum * everything
    accumulation = coefficients.walked_dot(tile.lengths_kept, tile.spans, row.rescales) * (weighted + cast + underflow)
    events = 2.0 * tile.lengths_kept + 2.0 * row.rescales + 2.0
    return cast + underflow + accumulation + events * coefficients.tiny * row.inverse_sum


def _cast_term(row: _Rows, weights: torch.Tensor, magnitude: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """Error by the cast of P to the contract's probability format, relative to the row sum, (c, r, d)."""
    probability, factor = row.coefficients.contract.probability, row.tile.rescale
    folded = row.coefficients.contract.rescale == "folded" and factor != 1.0
    if probability is None and not folded:
        return torch.zeros_like(row.retained * largest)
    cast = row.coefficients.weight_cast(weights, factor, row.inverse_sum) @ magnitude
    if probability is None or folded:
        return cast
    # the weights sum to 1, and no cast changes one by more than itself
    floor = (row.tile.lengths_kept * row.inverse_sum * probability.smallest_subnormal).clamp(max=1.0)
    return torch.minimum(cast, (probability.unit_roundoff + floor) * largest)


def _lse_error(row: _Rows) -> torch.Tensor:
    """Budget of lse for the rows of a tile, natural units, (c, r, 1) (theorem 2)."""
    coefficients = row.coefficients
    logits = torch.maximum(torch.log1p(row.weights.excess.sum(-1, keepdim=True)), -torch.log(row.retained))
    largest_omega = row_maximum(row.omega, row.tile.seen)
    logits = torch.where(row.bounded, torch.minimum(logits, largest_omega), largest_omega)
    error = logits - torch.log1p(-row.row_sum.clamp(max=1.0))
    maximum = row_maximum(row.tile.logit, row.tile.seen)
    maximum_error = LN2 * row_maximum(logit_error(row.tile, coefficients), row.tile.seen)
    logarithm = (row.lse - maximum).abs() + error + maximum_error
    error = error + coefficients.logarithm(logarithm)
    # a kernel may convert the maximum and the logarithm to natural units before adding them, and their sum may cancel
    error = error + coefficients.growth(2.0) * (maximum.abs() + maximum_error + logarithm + coefficients.logarithm(logarithm))
    return error + coefficients.growth(3.0) * (row.lse.abs() + error) + 3.0 * coefficients.tiny


def _row_sum_error(tile: Tile, coefficients: Coefficients, blocks: torch.Tensor, inverse_sum: torch.Tensor) -> torch.Tensor:
    """Relative error of the row sum l: additions in any order inside a block, then over blocks, rescaling, underflow."""
    contract = coefficients.contract
    inside = tile.lengths
    if contract.block_k is not None and contract.block_k_exact:
        inside = inside.clamp(max=float(contract.block_k))
    roundings = inside + 2.0 * blocks
    underflow = (tile.lengths * blocks + roundings) * coefficients.tiny * inverse_sum
    return torch.expm1(roundings * coefficients.unit) * (1.0 + underflow) + underflow


def _inverse_sum(
    tile: Tile,
    coefficients: Coefficients,
    lse: torch.Tensor,
    error: torch.Tensor,
    rescales: torch.Tensor,
    retained: torch.Tensor,
) -> torch.Tensor:
    """Upper bound of 1/l^ where l^ is relative to the computed maximum, (c, r, 1) (lemma 6).

    Two lower bounds of l^: the true sum, shrunk by the exponent errors and by the maximum's own; and the weight of the key
    that holds the computed maximum, whose exponent is 0 up to the rounding of a fused product (exactly 0 for shifted scores).
    """
    seen = tile.seen
    maximum = row_maximum(tile.logit, seen)
    largest_error = row_maximum(error, seen)
    from_sum = torch.exp((maximum - lse + LN2 * largest_error).clamp(max=LARGEST_LOG)) / retained
    largest_logit = abs(tile.scale) * LOG2E * row_maximum(tile.score.abs(), seen) + largest_error
    residual = 0.0 if coefficients.contract.exponent == "shifted" else coefficients.unit * largest_logit
    shrink = LN2 * (residual + coefficients.tiny) + (1.0 + rescales) * coefficients.exponential
    return torch.minimum(from_sum, torch.exp(shrink.clamp(max=LARGEST_LOG)))


def _blocks(tile: Tile, contract: Contract) -> torch.Tensor:
    """Number of blocks of the walk that hold keys seen by each row, (r, 1) or (c, r, 1); a sink is one by itself.

    Blocks lie on a grid from the first key on. If they may be larger than stated, keys that begin later may meet one edge more
    than the distance from the first to the last tells.
    """
    block = contract.block_k
    if block is None:
        return torch.ones_like(tile.lengths) + float(tile.case.sink)
    seen = tile.seen[..., : tile.keys]
    if contract.block_k_exact:
        whole = pad(seen, (0, -tile.keys % block))
        touched = whole.reshape(*whole.shape[:-1], -1, block).any(-1).sum(-1, keepdim=True).double()
    else:
        place = torch.arange(tile.keys, device=seen.device)
        last = torch.where(seen, place, -1).amax(-1, keepdim=True) if tile.keys else place.new_full((*seen.shape[:-1], 1), -1)
        first = torch.where(seen, place, last + 1).amin(-1, keepdim=True) if tile.keys else last + 1
        touched = torch.ceil((last - first + 1).double() / block) + (first > 0)
        touched = torch.minimum(touched, seen.sum(-1, keepdim=True).double())
    with_sink: torch.Tensor = touched + float(tile.case.sink)
    return with_sink


def _reciprocal_growth(relative: torch.Tensor) -> torch.Tensor:
    """Largest |1/(1+d) - 1| over |d| <= relative; infinite from 1 on."""
    return torch.where(relative < 1.0, relative / (1.0 - relative), torch.inf)


LARGEST_LOG = 300.0
"""Logarithm at which bounds of the inverse row sum stop growing: they multiply underflows only."""
