"""The sharp model of the forward pass: bias and standard deviation of the errors of out and lse.

    var(out) = Σ_j p²r²(v - out)²  +  Σ_j cast_j² v²  +  var(P·V)  +  out²·var(row sum, division)      [+ rescaling factors]

r is the relative error of a weight by its exponent, cast_j that of rounding it to P's format in units of the running maximum of
its moment (`walk.py`). Derivation: docs/numerics.md, section 12.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from flashverify.cases.case import AttentionCase
from flashverify.cases.tensors import Inputs
from flashverify.numerics.centred import centred_mean, centred_squares, centred_sum
from flashverify.numerics.coefficients import Coefficients
from flashverify.numerics.contract import LN2, LOG2E, Contract
from flashverify.numerics.dots import TensorCore
from flashverify.numerics.exponents import row_maximum
from flashverify.numerics.moments import UNIFORM, Moments
from flashverify.numerics.spread import Spread
from flashverify.numerics.tiles import TILE_ELEMENTS, Lanes, Tile, by_lane
from flashverify.numerics.walk import Walked, walk


@dataclass(frozen=True, slots=True)
class ForwardSpread:
    """Spreads of out (batch, heads_q, seqlen_q, value_dim) and lse (batch, heads_q, seqlen_q; natural units)."""

    out: Spread
    lse: Spread


def forward_spread(
    case: AttentionCase,
    inputs: Inputs,
    out: torch.Tensor,
    lse: torch.Tensor,
    contract: Contract,
    tile_elements: int = TILE_ELEMENTS,
) -> ForwardSpread:
    """Bias and deviation of out and lse before their final rounding; arguments as for `hard_forward.forward_budget`.

    The contract's walk has to be known (`block_k_exact`, or block_k None): see `sharp.inapplicable`.

    Raises:
        ValueError: if tile_elements is less than 1.
    """
    moments = Moments(contract)
    lanes = Lanes.of(case, inputs)
    true_out, true_lse = by_lane(case, out), by_lane(case, lse)
    spreads = [torch.zeros_like(x) for x in (true_out, true_out, true_out, true_lse, true_lse)]
    for tile in lanes.tiles(tile_elements):
        row = _Rows.of(tile, moments, tile.place.take(true_lse)[..., None])
        found = (*_out(row, tile.place.take(true_out)), *(x.squeeze(-1) for x in _lse(row)))
        for target, values in zip(spreads, found, strict=True):
            tile.place.put(target, torch.where(_sees(tile, values), values, 0.0))
    shaped = [x.reshape(like.shape) for x, like in zip(spreads, (out, out, out, lse, lse), strict=True)]
    return ForwardSpread(out=Spread(shaped[0], shaped[1], casts=shaped[2]), lse=Spread(shaped[3], shaped[4]))


@dataclass(frozen=True, slots=True)
class _Rows:
    """A tile with what all terms share; (c, r, n) unless stated.

    Attributes:
        tile: the tile.
        moments: the contract's moments.
        lse: true lse, (c, r, 1), 0 for rows that see no key.
        p: true probabilities.
        gap: distance of a logit from its row's maximum, natural units, >= 0; 0 where a key is not seen.
        walked: running maxima.
        relative: variance of a weight's relative error by its exponent.
        shrinkage: largest mean error of a logit by truncation in the dot product, natural units.
        exponentials: number of exponentials other than exp2(0) that a weight is a product of.
    """

    tile: Tile
    moments: Moments
    lse: torch.Tensor
    p: torch.Tensor
    gap: torch.Tensor
    walked: Walked
    relative: torch.Tensor
    shrinkage: torch.Tensor
    exponentials: torch.Tensor

    @classmethod
    def of(cls, tile: Tile, moments: Moments, lse: torch.Tensor) -> _Rows:
        """Weights, walk and exponent errors of a tile."""
        logit = tile.logit
        lse = torch.where(torch.isneginf(lse), 0.0, lse)
        p = torch.where(tile.seen, torch.exp((logit - lse).clamp(max=0.0)), 0.0)
        gap = torch.where(tile.seen, row_maximum(logit, tile.seen) - logit, 0.0)
        walked = _walked(tile, logit, moments.contract)
        exponentials = torch.where(tile.seen, (logit < walked.maximum).double() + walked.later, 0.0)
        return cls(
            tile=tile,
            moments=moments,
            lse=lse,
            p=p,
            gap=gap,
            walked=walked,
            relative=_relative_variance(tile, moments, gap, exponentials),
            shrinkage=score_shrinkage(tile, moments),
            exponentials=exponentials,
        )

    @property
    def depth(self) -> torch.Tensor:
        """Roundings that a summand of the row sum meets, about, (r, 1): a tree inside a block, a chain over blocks."""
        block = self.moments.contract.block_k or self.tile.k.shape[1]
        blocks = torch.ceil(self.tile.lengths / block)
        return math.log2(max(block, 2)) + 2.0 * blocks

    @property
    def near(self) -> torch.Tensor:
        """Which weights are exp2 of a number in (-1, 0): close to 0 its mean error is not that of all fractions."""
        distance = self.walked.maximum - self.tile.logit
        return self.tile.seen & (distance > 0.0) & (distance < LN2)

    @property
    def multiplier(self) -> torch.Tensor:
        """What a relative error of the logit multiplier is multiplied by in a weight: natural units."""
        return self.gap if self.moments.contract.exponent == "shifted" else self.tile.logit.masked_fill(~self.tile.seen, 0.0)


def _walked(tile: Tile, logit: torch.Tensor, contract: Contract) -> Walked:
    """The walk over a tile's keys; a sink, which stands behind them, is where the running maximum begins."""
    if not tile.case.sink:
        return walk(logit, contract)
    sink = logit[..., -1:]
    of_keys = walk(logit[..., :-1], contract, sink)
    moved = of_keys.of_start
    return Walked(
        maximum=torch.cat([of_keys.maximum, sink], -1),
        later=torch.cat([of_keys.later, moved], -1),
        run=pad(of_keys.run, (0, 1)),
        of_start=moved,
    )


def score_variance(tile: Tile, moments: Moments) -> torch.Tensor:
    """Variance of a logit by its score, natural units, (c, r, n): the dot product, tanh with a soft cap, and a bias."""
    cap = tile.cap
    if cap is None:
        variance = tile.softmax_scale**2 * feature_dot(tile.q, tile.k, moments)
    else:
        variance = cap.slope.square() * argument_variance(tile, moments) + moments.tanh * (cap.size * cap.tanh).square()
    return variance + bias_variance(tile, moments)


def bias_variance(tile: Tile, moments: Moments) -> torch.Tensor | float:
    """Variance of a logit by its bias, natural units, (c, r, n): a product, and a sum."""
    if tile.bias is None:
        return 0.0
    return moments.rounding * (tile.bias.square() + (tile.scale * tile.score).square())


def argument_variance(tile: Tile, moments: Moments) -> torch.Tensor:
    """Variance of what a soft cap is taken of, scale·q·k, natural units, (c, r, n): the dot product, and one rounding."""
    by_product = tile.softmax_scale**2 * feature_dot(tile.q, tile.k, moments)
    return by_product + moments.rounding * (tile.softmax_scale * tile.product).square()


def feature_dot(rows: torch.Tensor, columns: torch.Tensor, moments: Moments) -> torch.Tensor:
    """Variance of the dot products of rows (c, r, d) and columns (c, n, d), (c, r, n).

    One feature may be far above the others, in all rows and columns: it then is in all partial sums, or in one, and not in half
    of them. The worse of the first feature first and the last one first counts.
    """
    of_rows, of_columns, value = rows.square(), columns.square().mT, rows @ columns.mT
    length = rows.shape[-1]
    squares = of_rows @ of_columns
    if isinstance(moments.contract.dot, TensorCore):
        return moments.dot(squares, value, float(length))
    held = torch.arange(length, 0, -1, dtype=rows.dtype, device=rows.device)
    first_first = (of_rows * held) @ of_columns
    walked = torch.maximum(first_first, (length + 1.0) * squares - first_first)
    return moments.dot(squares, value, float(length), walked)


def score_shrinkage(tile: Tile, moments: Moments) -> torch.Tensor:
    """Largest mean error of a logit by its score, natural units, (c, r, n).

    That is truncation in the dot product; with a soft cap the multiplier of tanh's argument too, and tanh's own mean; with
    linear biases the slope over the scale, one number for a head.
    """
    cap = tile.cap
    if cap is None:
        error = abs(tile.softmax_scale) * moments.dot_bias(tile.product.abs(), float(tile.q.shape[-1]))
    else:
        error = cap.slope * argument_shrinkage(tile, moments) + moments.tanh_mean * cap.size * cap.tanh.abs()
    return error if tile.bias is None else error + Coefficients(moments.contract).division * tile.bias.abs()


def argument_shrinkage(tile: Tile, moments: Moments) -> torch.Tensor:
    """Largest mean error of what a soft cap is taken of, scale·q·k, natural units, (c, r, n)."""
    by_product = abs(tile.softmax_scale) * moments.dot_bias(tile.product.abs(), float(tile.q.shape[-1]))
    return by_product + moments.multiplier * (tile.softmax_scale * tile.product).abs()


def _relative_variance(tile: Tile, moments: Moments, gap: torch.Tensor, exponentials: torch.Tensor) -> torch.Tensor:
    """Variance of a weight's relative error: dot product, roundings of the exponent's argument, the exponential itself."""
    if moments.contract.exponent == "shifted":
        rounded = 2.0 * gap.square()  # the difference, and its product with the multiplier
    elif moments.contract.exponent == "fused":
        rounded = gap.square()
    else:
        rounded = gap.square() + (tile.scale * tile.score).square()
    argument = moments.rounding * rounded
    return score_variance(tile, moments) + argument + moments.exponential * (exponentials > 0.0)


def _out(row: _Rows, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Bias and deviation of out, and the part of it by casts, (c, r, d)."""
    tile, moments, values, factor = row.tile, row.moments, row.tile.v, row.tile.rescale
    squares, kept = values.square(), tile.kept_of
    rescaled, out = out, out / factor if factor else torch.zeros_like(out)  # before dropout's factor, down to the last lines
    cast_variance, vanished = _cast(row)
    by_exponents = row.p.square() * row.relative
    variance = centred_squares(kept(by_exponents), values, out) + tile.dropped_of(by_exponents) * out.square()
    by_casts = kept(cast_variance) @ squares
    variance = variance + by_casts
    variance = variance + moments.dot(kept(row.p.square()) @ squares, out, tile.lengths_kept)
    variance = variance + out.square() * (moments.rounding * row.depth + moments.division)
    if moments.contract.probability is None:  # otherwise far below the casts
        variance = variance + _rescaling_variance(row, out)
    bias = moments.dot_bias(out.abs(), tile.lengths_kept) + (kept(vanished) @ values).abs()
    bias = bias + (_swallowed(row) @ values).abs()
    bias = bias + moments.exponential_mean * _moved(row, row.p * row.exponentials, out).abs()
    bias = bias + moments.exponential_mean * _moved_at_most(row, row.p * row.near, out)
    bias = bias + moments.multiplier * _moved(row, row.p * row.multiplier, out).abs()
    if row.shrinkage.any():
        bias = bias + _moved_at_most(row, row.p * row.shrinkage, out)
    bias = factor * bias + moments.rescaling_bias(factor) * rescaled.abs()
    variance = factor**2 * variance + moments.rescaling(factor) * rescaled.square()
    return bias, variance.sqrt(), factor * by_casts.sqrt()


def _moved(row: _Rows, changes: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """What changes of weights (c, r, n) do to out, (c, r, d): the sum of change·(value - out); a dropped key's value is 0."""
    tile = row.tile
    return centred_mean(tile.kept_of(changes), tile.v, out) - tile.dropped_of(changes) * out


def _moved_at_most(row: _Rows, changes: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """`_moved` at most, whatever the signs of changes of that size."""
    tile = row.tile
    return centred_sum(tile.kept_of(changes), tile.v, out) + tile.dropped_of(changes) * out.abs()


def _cast(row: _Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Variance of a normalised weight by its cast to P's format, 0 for a weight that is exactly 1; and weights that vanish."""
    contract, logit = row.moments.contract, row.tile.logit
    if contract.probability is None:
        return torch.zeros_like(row.p), torch.zeros_like(row.p)
    at_cast = torch.exp((logit - row.walked.maximum).nan_to_num(nan=-math.inf).clamp(max=0.0))
    variance = row.moments.cast(contract.probability, at_cast)
    heaviest = logit >= row.walked.maximum
    if contract.exponent == "shifted":
        variance = variance.masked_fill(heaviest, 0.0)
    else:  # the exponent of the heaviest key is the rounding of its product, which the cast removes again
        residual = (LN2 * row.moments.unit * LOG2E * (row.tile.scale * row.tile.score).abs()).square()
        variance = torch.where(heaviest, torch.minimum(residual, variance), variance)
    unit = torch.where(row.tile.seen, torch.exp((row.walked.maximum - row.lse).clamp(max=0.0)), 0.0)
    vanished = torch.where(row.moments.vanishing(contract.probability, at_cast), row.p, 0.0)
    return variance * unit.square(), vanished


def _swallowed(row: _Rows) -> torch.Tensor:
    """Weights below half a spacing of the sum that they come to, where P is not rounded: it loses them, all in one direction.

    The row sum feels them, since it adds up a block of them first.
    """
    contract = row.moments.contract
    if contract.probability is not None:
        return torch.zeros_like(row.p)
    from_left, weights = contract.direction == "left", row.tile.kept_of(row.p)
    summed = weights.cumsum(-1) if from_left else weights.flip(-1).cumsum(-1).flip(-1)
    return torch.where(weights < 0.5 * contract.accumulator.ulp(summed), weights, 0.0)


def _rescaling_variance(row: _Rows, out: torch.Tensor) -> torch.Tensor:
    """Variance by the errors of rescaling factors, each common to all keys walked before, (c, r, d)."""
    later, runs = row.walked.later, row.walked.run
    most = int(later.max()) if later.numel() else 0
    variance = torch.zeros_like(out)
    for run, count in itertools.product(range(row.moments.contract.runs), range(1, most + 1)):
        # a run's factors in order: the keys that meet at least `count` of them share the last but count-1
        meets = (later >= count) & (runs == run)
        if meets.any():
            shared = _moved(row, torch.where(meets, row.p, 0.0), out)
            variance = variance + row.moments.exponential * shared.square()
    return variance


def _lse(row: _Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Bias and deviation of lse, (c, r, 1), natural units. Errors of logits count as fully correlated."""
    moments, tile = row.moments, row.tile
    contract = moments.contract
    maximum = row_maximum(tile.logit, tile.seen)
    logarithm = (row.lse - maximum).abs()
    correlated = (row.p * row.relative.sqrt()).sum(-1, keepdim=True)
    roundings = row.depth + maximum.square() + logarithm.square()
    variance = correlated.square() + moments.rounding * roundings
    bias = (row.p * row.shrinkage).sum(-1, keepdim=True)
    bias = bias + moments.exponential_mean * (row.p * row.exponentials).sum(-1, keepdim=True)
    of_multiplier = (row.p * row.multiplier).sum(-1, keepdim=True).abs()
    if contract.exponent == "shifted":
        of_multiplier = of_multiplier + maximum.abs()  # which the scale multiplies at the end
    bias = bias + moments.multiplier * of_multiplier
    bias = bias + 2.0 * moments.unit * contract.log2_ulps * logarithm + LN2 * contract.log2_absolute
    if contract.exponent != "shifted":  # a base-2 lse of its own rounding, converted at the end
        variance = variance + UNIFORM * (LN2 * contract.accumulator.ulp(row.lse * LOG2E)).square()
    return bias, variance.sqrt()


def _sees(tile: Tile, values: torch.Tensor) -> torch.Tensor:
    """Which rows see a key, shaped like values (c, r) or (c, r, d)."""
    sees = tile.lengths > 0
    return (sees.squeeze(-1) if values.ndim == 2 else sees).expand_as(values)
