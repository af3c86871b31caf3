"""The hard budget of the backward pass: the largest error of dq, dk and dv that a contract's arithmetic can make.

    P = exp(x - lse),  D = rowsum(dO·out) - dlse,  dS = P·(dO·Vᵀ - D),  dq = scale·dS·K,  dk = scale·dSᵀ·Q,  dv = Pᵀ·dO

With dropout dO·Vᵀ, and P in dv, are multiplied by 0 where a pair is dropped, by one factor where it is kept (lemma 16).

Modular mode: out and lse are the kernel's own and count as exact inputs. End-to-end mode: they are the true ones, and the
kernel's may be anywhere within the forward budget. Terms: docs/numerics.md, theorems 3 to 5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from flashverify.cases import dense_bias
from flashverify.cases.case import AttentionCase
from flashverify.cases.tensors import Inputs
from flashverify.dropout.of_case import rescale
from flashverify.numerics.coefficients import Coefficients
from flashverify.numerics.contract import Contract
from flashverify.numerics.exponents import (
    Weights,
    backward_exponent,
    evaluation_slack,
    perturbed_weights,
    slope_error,
)
from flashverify.numerics.formats import EVALUATION_UNIT
from flashverify.numerics.hard_forward import ForwardBudget
from flashverify.numerics.pairs import PairSums
from flashverify.numerics.tiles import TILE_ELEMENTS, Capped, Lanes, Tile, by_lane


def backward_budget(
    case: AttentionCase,
    inputs: Inputs,
    out: torch.Tensor,
    lse: torch.Tensor,
    contract: Contract,
    forward: ForwardBudget | None,
    tile_elements: int = TILE_ELEMENTS,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The largest errors of dq, dk and dv that a kernel with this contract can make, element by element.

    Args:
        case: the case.
        inputs: its inputs, any dtype, taken as exact.
        out: the kernel's own out (modular mode) or the true one, (batch, heads_q, seqlen_q, value_dim).
        lse: the kernel's own lse (modular mode) or the true one, (batch, heads_q, seqlen_q); -inf: the row sees no key.
        contract: the arithmetic.
        forward: None for modular mode; the forward pass's budget for end-to-end mode.
        tile_elements: scores in a tile, at most.

    Returns:
        Budgets of dq, dk and dv, float64, shaped like q, k and v; infinite where nothing can be promised.

    Raises:
        ValueError: if tile_elements is less than 1.
    """
    coefficients = Coefficients(contract)
    lanes = Lanes.of(case, inputs)
    dq = torch.zeros_like(lanes.q)
    columns = _Columns.zeros(lanes)
    for gradients in score_gradients(lanes, inputs, out, lse, coefficients, forward, tile_elements):
        tile = gradients.tile
        slack = 1.0 + evaluation_slack(tile, gradients.lse)
        tile.place.put(dq, _settle(_dq_error(gradients) * slack, tile.lengths > 0))
        columns.add(gradients, slack)
    dk, dv = columns.settle(coefficients, case)
    return dq.reshape(inputs.q.shape), lanes.of_keys(dk, inputs.k), lanes.of_keys(dv, inputs.v)


def feature_budget(
    case: AttentionCase,
    inputs: Inputs,
    out: torch.Tensor,
    lse: torch.Tensor,
    contract: Contract,
    forward: ForwardBudget | None,
    tile_elements: int = TILE_ELEMENTS,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The largest errors of dbias and dsink (lemma 14); arguments as for `backward_budget`, None where a case has none.

    Both are sums of the gradients of logits in the accumulator's format, in any order; dbias is then rounded to storage.
    """
    if not case.sink and case.bias in {None, "mask"}:
        return None, None
    coefficients = Coefficients(contract)
    lanes = Lanes.of(case, inputs)
    sizes, errors = PairSums.of(lanes), PairSums.of(lanes)
    for gradients in score_gradients(lanes, inputs, out, lse, coefficients, forward, tile_elements):
        slack = 1.0 + evaluation_slack(gradients.tile, gradients.lse)
        sizes.put(gradients.tile.place, gradients.of_logit.abs() * slack)
        errors.put(gradients.tile.place, gradients.of_logit_error * slack)

    def budget(size: torch.Tensor | None, error: torch.Tensor | None, count: int) -> torch.Tensor | None:
        if size is None or error is None:
            return None
        summed = error + coefficients.growth(float(count)) * (size + error) + count * coefficients.tiny
        summed = (summed + EVALUATION_UNIT * (count + 64.0) * (size + error)).nan_to_num(nan=torch.inf, posinf=torch.inf)
        return torch.where(size + error == 0.0, 0.0, summed)  # where nothing is seen, it must be exact

    dsink = budget(sizes.of_sink(case), errors.of_sink(case), case.batch * case.seqlen_q)
    if case.bias in {None, "mask"}:
        return None, dsink
    size = sizes.of_bias(case)
    dbias = budget(size, errors.of_bias(case), dense_bias.summands(case))
    assert size is not None
    assert dbias is not None
    return torch.where(dbias == 0.0, 0.0, dbias + coefficients.stored(size + dbias)), dsink


@dataclass(frozen=True, slots=True)
class ScoreGradients:
    """dS of a tile, and how far the kernel's may be from it; (c, r, n), 0 where a key is not seen, unless stated.

    Attributes:
        tile: the tile.
        coefficients: the contract's coefficients.
        lse: lse that P is formed with, (c, r, 1), 0 for rows that see no key.
        weights: P and its largest change by exponent errors.
        weight_error: largest error of the kernel's P as it enters Pᵀ·dO, cast included, 0 where a pair is dropped; without the
            factor that makes up for dropped pairs.
        delta_error: largest error of D, (c, r, 1): common to all keys of a row.
        ds: true dS, the gradient of scale·q·k: behind a soft cap, if there is one.
        local: largest error of the kernel's dS as it enters dq and dk, cast included, but for the first-order effect of D's.
        of_logit: true gradient of the logit itself, before a soft cap; at a sink too.
        of_logit_error: largest error of the kernel's, which is not rounded to a shorter format.
        delta_reach: largest magnitude on the way to the kernel's D, (c, r, 1).
        difference_reach: largest magnitude on the way to the kernel's dP - D, for pairs that are not seen too.
    """

    tile: Tile
    coefficients: Coefficients
    lse: torch.Tensor
    weights: Weights
    weight_error: torch.Tensor
    delta_error: torch.Tensor
    ds: torch.Tensor
    local: torch.Tensor
    of_logit: torch.Tensor
    of_logit_error: torch.Tensor
    delta_reach: torch.Tensor
    difference_reach: torch.Tensor

    @property
    def common(self) -> torch.Tensor:
        """The derivative of dS by -D: P, times the slope of a soft cap."""
        return self.weights.p if self.tile.cap is None else self.weights.p * self.tile.cap.slope

    @property
    def error(self) -> torch.Tensor:
        """Largest error of the kernel's dS, that of D included."""
        return self.local + self.common * self.delta_error


def score_gradients(
    lanes: Lanes,
    inputs: Inputs,
    out: torch.Tensor,
    lse: torch.Tensor,
    coefficients: Coefficients,
    forward: ForwardBudget | None,
    tile_elements: int,
) -> Iterator[ScoreGradients]:
    """The true dS and its error, tile by tile (theorem 3). Arguments as in `backward_budget`."""
    case = lanes.case
    outs, lses = by_lane(case, out), lse.double().reshape(lanes.q.shape[:-1])
    zero = torch.zeros_like(lses)
    dlses = zero if inputs.dlse is None else by_lane(case, inputs.dlse)
    out_errors = None if forward is None else forward.out.reshape(outs.shape)
    lse_errors = zero if forward is None else forward.lse.reshape(lses.shape)
    for tile in lanes.tiles(tile_elements):
        take = tile.place.take
        out_error = None if out_errors is None else take(out_errors)
        delta = _Delta.of(tile, take(outs), take(dlses)[..., None], out_error, coefficients)
        row_lse = take(lses)[..., None]
        dead = torch.isneginf(row_lse)
        row_lse = torch.where(dead, 0.0, row_lse)
        omega = backward_exponent(tile, coefficients, row_lse, take(lse_errors)[..., None])
        # an exponential of 0 is 1, and just below 0 it may err upwards
        ceiling = math.exp(coefficients.exponential) if coefficients.contract.cuts_probability else None
        weights = _dead_rows_removed(perturbed_weights(tile, row_lse, omega, ceiling), dead)
        yield _score_gradients(tile, coefficients, row_lse, weights, delta)


@dataclass(frozen=True, slots=True)
class _Delta:
    """D of a tile's rows, all (c, r, 1) (lemma 8).

    Attributes:
        dlse: cotangent of lse.
        value: D = rowsum(dO·out) - dlse.
        error: largest error of the kernel's.
        reach: largest magnitude on the way to it.
    """

    dlse: torch.Tensor
    value: torch.Tensor
    error: torch.Tensor
    reach: torch.Tensor

    @classmethod
    def of(
        cls,
        tile: Tile,
        out: torch.Tensor,
        dlse: torch.Tensor,
        out_error: torch.Tensor | None,
        coefficients: Coefficients,
    ) -> _Delta:
        """D for out and dlse, which a kernel in end-to-end mode knows to within out_error."""
        length = out.shape[-1]
        delta = (tile.dout * out).sum(-1, keepdim=True)
        largest, error = out.abs(), torch.zeros_like(delta)
        if out_error is not None:
            # 0·inf: an unbounded output that nothing depends on
            reach = torch.where(tile.dout == 0.0, 0.0, tile.dout.abs() * out_error)
            error = error + reach.sum(-1, keepdim=True)
            largest = torch.where(tile.dout == 0.0, 0.0, largest + out_error)
        products = (tile.dout.abs() * largest).nan_to_num(nan=0.0, posinf=torch.inf).sum(-1, keepdim=True)
        error = error + coefficients.growth(length + 1.0) * products + 2.0 * length * coefficients.tiny
        value = delta - dlse
        error = error + coefficients.unit * (value.abs() + error) + coefficients.tiny
        return cls(dlse=dlse, value=value, error=error, reach=products + dlse.abs() + error)


def _dead_rows_removed(weights: Weights, dead: torch.Tensor) -> Weights:
    """Weights with 0 in rows whose lse is -inf: they see no key, or claim so."""
    return Weights(
        p=torch.where(dead, 0.0, weights.p),
        excess=torch.where(dead, 0.0, weights.excess),
        unbounded=weights.unbounded & ~dead,
    )


def _score_gradients(
    tile: Tile,
    coefficients: Coefficients,
    lse: torch.Tensor,
    weights: Weights,
    delta: _Delta,
) -> ScoreGradients:
    """The terms of theorem 3, from the weights and from D."""
    contract, unit, tiny = coefficients.contract, coefficients.unit, coefficients.tiny
    weight_change = weights.excess + tiny
    largest_weight = weights.p + weight_change

    product, product_error = _products(tile, coefficients)
    difference = product - delta.value
    reached = difference.abs() + product_error + delta.error
    # dP - D, or (dP - rowsum) + dlse: one rounding more, of a number that dlse may dominate
    difference_error = product_error + coefficients.growth(2.0) * reached + unit * (1.0 + unit) * delta.dlse.abs() + 2.0 * tiny
    reached = difference.abs() + difference_error + delta.error

    weight_error = tile.kept_of(weight_change + coefficients.weight_cast(largest_weight, tile.rescale))
    if contract.score_gradient_of_rounded:
        weight_change = weight_change + coefficients.cast(contract.probability, largest_weight)
        largest_weight = weights.p + weight_change
    local = weight_change * reached + weights.p * difference_error
    local = local + unit * largest_weight * reached + tiny
    ds, common = weights.p * difference, weights.p * delta.error
    of_logit, of_logit_error = ds, torch.where(weights.unbounded, torch.inf, local + common)
    if tile.cap is not None:
        local = _behind_cap(tile, coefficients, tile.cap, ds, local, common)
        ds, common = ds * tile.cap.slope, common * tile.cap.slope
    magnitude = ds.abs() + local + common
    # what an absolute 1 of the rounded numbers is worth in dS
    scale = abs(tile.softmax_scale)
    floor = 1.0 / scale if contract.score_gradient_scaled and scale else 1.0
    local = local + coefficients.cast(contract.score_gradient, magnitude, floor)
    local = torch.where(weights.unbounded, torch.inf, local)
    return ScoreGradients(
        tile=tile,
        coefficients=coefficients,
        lse=lse,
        weights=weights,
        weight_error=_or_zero(weight_error, tile.seen),
        delta_error=delta.error,
        ds=_or_zero(ds, tile.seen),
        local=_or_zero(local, tile.seen),
        of_logit=_or_zero(of_logit, tile.seen),
        of_logit_error=_or_zero(of_logit_error, tile.seen),
        delta_reach=delta.reach,
        difference_reach=reached + delta.dlse.abs(),
    )


def _products(tile: Tile, coefficients: Coefficients) -> tuple[torch.Tensor, torch.Tensor]:
    """dP, the product of dO and V, and the largest error of the kernel's, (c, r, n); exactly 0 where a pair is dropped."""
    length, factor = tile.v.shape[-1], tile.rescale
    product = tile.dout @ tile.v.mT
    error = coefficients.plain_dot(length) * (tile.dout.abs() @ tile.v.abs().mT) + 2.0 * length * coefficients.tiny
    if factor != 1.0:
        product, error = factor * product, factor * error
        error = error + coefficients.rescaling(factor) * (product.abs() + error) + coefficients.tiny
    return tile.kept_of(product), tile.kept_of(error)


def _behind_cap(
    tile: Tile,
    coefficients: Coefficients,
    cap: Capped,
    ds: torch.Tensor,
    local: torch.Tensor,
    common: torch.Tensor,
) -> torch.Tensor:
    """The error of dS·(1 - t²), but for the first-order effect of D's (lemma 12).

    Args:
        tile: the tile.
        coefficients: the contract's coefficients.
        cap: what the cap makes of the products, the true 1 - t² among it.
        ds: the true gradient of the capped logit.
        local: largest error of the kernel's, but for that by D.
        common: that by D.
    """
    unit, tiny, slope = coefficients.unit, coefficients.tiny, cap.slope
    error = slope * local + slope_error(tile, coefficients, cap) * (ds.abs() + local + common)
    return error + unit * (slope * (ds.abs() + common) + error) + tiny


def _dq_error(gradients: ScoreGradients) -> torch.Tensor:
    """Budget of dq for the rows of a tile, (c, r, d) (theorem 4).

    The error of D is common to a row, so it meets the sum over keys P·K itself and not its sum of magnitudes.
    """
    tile, coefficients = gradients.tile, gradients.coefficients
    scale = abs(tile.softmax_scale)
    keys = tile.k.abs()
    accumulation = coefficients.gradient_dot(tile.lengths, tile.spans)
    error = gradients.error
    magnitudes = (gradients.ds.abs() + error) * accumulation + gradients.local
    common = gradients.delta_error * (gradients.common @ tile.k).abs()
    events = (2.0 * tile.lengths + 2.0) * coefficients.tiny
    evaluation = EVALUATION_UNIT * (tile.lengths + max(tile.k.shape[-1], tile.v.shape[-1]) + 64.0)
    value = (gradients.ds @ tile.k).abs() + evaluation * (gradients.ds.abs() @ keys)
    return _scaled_and_stored(scale * value, scale * (magnitudes @ keys + common + events), coefficients)


@dataclass(frozen=True, slots=True)
class _Columns:
    """Sums over query rows, collected tile by tile: (lanes, seqlen_k, d) unless stated.

    Attributes:
        dv, dk: true dv / rescale and dk / scale.
        dv_error, dk_error: largest errors before accumulation errors, without these factors.
        dv_reach, dk_reach: sums of magnitudes that the kernel accumulates.
        lengths: number of rows that see each key, (seqlen_k, 1), summed over the group.
        kept: number of those that keep it.
    """

    dv: torch.Tensor
    dk: torch.Tensor
    dv_error: torch.Tensor
    dk_error: torch.Tensor
    dv_reach: torch.Tensor
    dk_reach: torch.Tensor
    lengths: torch.Tensor
    kept: torch.Tensor

    @classmethod
    def zeros(cls, lanes: Lanes) -> _Columns:
        """Nothing collected yet."""
        dv, dv_error, dv_reach = (torch.zeros_like(lanes.v) for _ in range(3))
        dk, dk_error, dk_reach = (torch.zeros_like(lanes.k) for _ in range(3))
        lengths, kept = (torch.zeros_like(lanes.k[..., :1]) for _ in range(2))
        return cls(dv, dk, dv_error, dk_error, dv_reach, dk_reach, lengths, kept)

    def add(self, gradients: ScoreGradients, slack: torch.Tensor) -> None:
        """Add a tile's rows; slack (c, r, 1) is 1 + the evaluation's own relative error."""
        tile = gradients.tile
        lanes = tile.place.lanes
        queries, cotangents = tile.q.abs(), tile.dout.abs()
        weight_error, error = gradients.weight_error * slack, gradients.error * slack
        p = tile.kept_of(gradients.weights.p)
        self.dv[lanes] += p.mT @ tile.dout
        self.dk[lanes] += gradients.ds.mT @ tile.q
        self.dv_error[lanes] += weight_error.mT @ cotangents
        self.dk_error[lanes] += error.mT @ queries
        self.dv_reach[lanes] += (p * slack + weight_error).mT @ cotangents
        self.dk_reach[lanes] += (gradients.ds.abs() * slack + error).mT @ queries
        self.lengths[lanes] += tile.rows_that_see
        self.kept[lanes] += tile.rows_that_keep

    def settle(self, coefficients: Coefficients, case: AttentionCase) -> tuple[torch.Tensor, torch.Tensor]:
        """Budgets of dk and dv (theorem 5)."""
        scale, factor = abs(case.softmax_scale), rescale(case)
        events = (2.0 * self.lengths + 2.0) * coefficients.tiny
        evaluation = EVALUATION_UNIT * (self.lengths + max(case.head_dim, case.value_dim) + 64.0)
        group = case.group_size  # one walk over the queries for each head
        spans = self.lengths
        if case.bias in {"hidden", "mask"}:
            spans = torch.where(self.lengths > 0.0, float(group * case.seqlen_q), self.lengths)
        accumulation = coefficients.walked_dot(self.kept, spans, runs=group)
        dv = (self.dv_error + accumulation * self.dv_reach + events) * (1.0 + evaluation)
        value = factor * (self.dv.abs() + evaluation * self.dv_reach)
        if factor != 1.0:
            dv = factor * dv
            # each head's share may be multiplied by itself
            dv = dv + coefficients.rescaled_after(factor) * (factor * self.dv_reach + dv) + group * coefficients.tiny
        dv = dv + coefficients.partials(factor * self.dv_reach + dv, group)
        dv = dv + coefficients.stored(value + dv)
        accumulation = coefficients.gradient_dot(self.lengths, spans, runs=group)
        dk = (self.dk_error + accumulation * self.dk_reach + events) * (1.0 + evaluation)
        shares = scale * (1.0 + coefficients.growth(2.0)) * (self.dk_reach + dk)
        value = scale * (self.dk.abs() + evaluation * self.dk_reach)
        dk = _scaled_and_stored(value, scale * dk + coefficients.partials(shares, group), coefficients)
        return _settle(dk, self.lengths > 0), _settle(dv, self.kept > 0)


def _scaled_and_stored(value: torch.Tensor, error: torch.Tensor, coefficients: Coefficients) -> torch.Tensor:
    """Add the multiplication by the scale (rounded to the accumulator's format) and the final cast to storage."""
    error = error + coefficients.growth(2.0) * (value + error) + 2.0 * coefficients.tiny
    return error + coefficients.stored(value + error)


def _or_zero(values: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """The values where a key is seen, 0 elsewhere."""
    return torch.where(seen, values, 0.0)


def _settle(error: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Infinity in place of NaN; 0 where nothing is seen: such gradients must be exact."""
    return torch.where(seen, torch.nan_to_num(error, nan=torch.inf, posinf=torch.inf), 0.0)
