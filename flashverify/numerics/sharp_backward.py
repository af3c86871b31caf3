"""The sharp model of the backward pass: bias and standard deviation of the errors of dq, dk and dv.

    var(dS) = dS²r² + P²var(dP) + (roundings of dS) + cast_S²
    var(dq) = scale²[var(dS) K² + var(D) (PK)² + common·(dS K)²] + var(dS·K)
    var(dk) = scale²[(var(dS) + P² var(D) + common·dS²)ᵀ Q²] + var(dSᵀ·Q)
    var(dv) = (P²(r² + common) + cast_P²)ᵀ dO² + var(Pᵀ·dO)

`common` is the variance of lse as the kernel uses it, the same for all keys of a row; D = rowsum(dO·out) - dlse. Errors of D
and of lse meet all keys, so those of dk and dv have a part that their rows share. Modular mode: out and lse are the kernel's
own and count as exact. With dropout, dP and P in dv are those of kept pairs times one factor. Derivation: docs/numerics.md,
section 13.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch

from flashverify.cases.case import AttentionCase
from flashverify.cases.tensors import Inputs
from flashverify.dropout.of_case import rescale
from flashverify.numerics.contract import Contract
from flashverify.numerics.moments import Moments
from flashverify.numerics.sharp_forward import (
    ForwardSpread,
    argument_shrinkage,
    argument_variance,
    bias_variance,
    feature_dot,
    score_shrinkage,
    score_variance,
)
from flashverify.numerics.spread import Spread
from flashverify.numerics.tiles import TILE_ELEMENTS, Capped, Lanes, Tile, by_lane


def backward_spread(
    case: AttentionCase,
    inputs: Inputs,
    out: torch.Tensor,
    lse: torch.Tensor,
    contract: Contract,
    forward: ForwardSpread | None,
    tile_elements: int = TILE_ELEMENTS,
) -> tuple[Spread, Spread, Spread]:
    """Bias and deviation of dq, dk and dv before their final rounding; arguments as for `hard_backward.backward_budget`.

    Args:
        case: the case.
        inputs: its inputs, any dtype, taken as exact.
        out: the kernel's own out (modular mode) or the true one.
        lse: the kernel's own lse (modular mode) or the true one.
        contract: the arithmetic.
        forward: None for modular mode; the forward pass's spread, its final rounding of out included, for end-to-end mode.
        tile_elements: scores in a tile, at most.

    Raises:
        ValueError: if tile_elements is less than 1.
    """
    moments = Moments(contract)
    lanes = Lanes.of(case, inputs)
    rows = _RowInputs.of(case, inputs, out, lse, forward)
    found = [torch.zeros_like(lanes.q) for _ in range(3)]
    columns = _Columns.zeros(lanes)
    for tile in lanes.tiles(tile_elements):
        gradient = _Gradient.of(tile, moments, rows)
        for target, values in zip(found, _dq(gradient), strict=True):
            tile.place.put(target, values)
        columns.add(gradient)
    dk, dv = columns.settle(moments, case)
    bias, deviation, casts = found
    dk, dv = _without_sink(dk, case), _without_sink(dv, case)
    return _shaped(Spread(bias, deviation, casts=casts), inputs.q), _shaped(dk, inputs.k), _shaped(dv, inputs.v)


@dataclass(frozen=True, slots=True)
class _RowInputs:
    """What the backward pass takes from the forward pass: (lanes, group, seqlen_q, ...) tensors.

    Attributes:
        out, lse, dlse: as they are used.
        out_bias, out_variance, lse_bias, lse_variance: how far the kernel's may be from them; 0 in modular mode.
    """

    out: torch.Tensor
    lse: torch.Tensor
    dlse: torch.Tensor
    out_bias: torch.Tensor
    out_variance: torch.Tensor
    lse_bias: torch.Tensor
    lse_variance: torch.Tensor

    @classmethod
    def of(
        cls, case: AttentionCase, inputs: Inputs, out: torch.Tensor, lse: torch.Tensor, forward: ForwardSpread | None
    ) -> _RowInputs:
        """Arrange them by lanes; rows that see no key get an lse of -inf back."""
        outs = by_lane(case, out)
        dead = torch.isneginf(lse.double()).reshape(outs.shape[:-1])
        lses = torch.where(dead, -math.inf, by_lane(case, lse))
        zero_out, zero_lse = torch.zeros_like(outs), torch.zeros_like(lses)
        return cls(
            out=outs,
            lse=lses,
            dlse=zero_lse if inputs.dlse is None else by_lane(case, inputs.dlse),
            out_bias=zero_out if forward is None else by_lane(case, forward.out.bias),
            out_variance=zero_out if forward is None else by_lane(case, forward.out.deviation).square(),
            lse_bias=zero_lse if forward is None else by_lane(case, forward.lse.bias),
            lse_variance=zero_lse if forward is None else by_lane(case, forward.lse.deviation).square(),
        )


@dataclass(frozen=True, slots=True)
class _Gradient:
    """dS of a tile and its moments; (c, r, n), 0 where a key is not seen, unless stated.

    Attributes:
        tile: the tile.
        moments: the contract's moments.
        p: P.
        rescaled: the derivative of dS by a relative change of dropout's factor, 0 without dropout.
        common_weight: the derivative of dS by -D: P, times the slope of a soft cap.
        ds: dS, behind a soft cap if there is one.
        weight_variance: variance of P as it enters Pᵀ·dO, but for what is common to a row.
        ds_variance: variance of dS as it enters dq and dk, but for what is common to a row.
        weight_cast, ds_cast: the parts of these two by their rounding to a 16-bit format.
        weight_bias: largest mean relative error of a weight, but for what is kept signed.
        ds_bias: largest mean error of dS by dP.
        vanished_p, vanished_ds: P and dS where their rounding makes them 0.
        common: variance of the relative error that all weights of a row share, (c, r, 1).
        delta_variance, delta_bias: of D, (c, r, 1).
        logit: natural logits, 0 where not seen.
        converted: what a relative error of the constant log2(e) is multiplied by in a weight's exponent, natural units.
    """

    tile: Tile
    moments: Moments
    p: torch.Tensor
    rescaled: torch.Tensor
    common_weight: torch.Tensor
    ds: torch.Tensor
    weight_variance: torch.Tensor
    ds_variance: torch.Tensor
    weight_cast: torch.Tensor
    ds_cast: torch.Tensor
    weight_bias: torch.Tensor
    ds_bias: torch.Tensor
    vanished_p: torch.Tensor
    vanished_ds: torch.Tensor
    common: torch.Tensor
    delta_variance: torch.Tensor
    delta_bias: torch.Tensor
    logit: torch.Tensor
    converted: torch.Tensor

    @classmethod
    def of(cls, tile: Tile, moments: Moments, rows: _RowInputs) -> _Gradient:
        """Everything elementwise: weights, dP, D, dS."""
        take, contract = tile.place.take, moments.contract
        lse = take(rows.lse)[..., None]
        dead = torch.isneginf(lse)
        lse = torch.where(dead, 0.0, lse)
        seen = tile.seen & ~dead
        logit = torch.where(seen, tile.scale * tile.score, 0.0)
        p = torch.where(seen, torch.exp(torch.where(seen, logit - lse, 0.0).clamp(max=1.0)), 0.0)
        common = take(rows.lse_variance)[..., None]
        if contract.exponent == "shifted":
            rounded = logit.square() + 2.0 * (logit - lse).square()
            converted = torch.where(seen, logit - lse, 0.0)
        else:
            common = common + moments.rounding * lse.square()  # the product of lse and the constant
            converted = torch.where(seen, -lse, 0.0)
            rounded = logit.square() * (contract.exponent != "fused") + (logit - lse).square()
        by_score, shrinkage = score_variance(tile, moments), score_shrinkage(tile, moments)
        relative = by_score + moments.rounding * rounded + moments.exponential

        out, dout = take(rows.out), tile.dout
        delta = (dout * out).sum(-1, keepdim=True)
        delta_variance = (dout.square() * take(rows.out_variance)).sum(-1, keepdim=True)
        of_sum = math.log2(max(out.shape[-1], 2)) + 1.0
        products = (dout * out).square().sum(-1, keepdim=True)
        value = delta - take(rows.dlse)[..., None]
        delta_variance = delta_variance + moments.rounding * (of_sum * (products + delta.square()) + value.square())
        factor = tile.rescale
        product = factor * tile.kept_of(dout @ tile.v.mT)
        difference = product - value
        dp_variance = factor**2 * tile.kept_of(feature_dot(dout, tile.v, moments))
        dp_variance = dp_variance + moments.rescaling(factor) * product.square()
        dp_bias = factor * tile.kept_of(moments.dot_bias((dout @ tile.v.mT).abs(), float(tile.v.shape[-1])))
        ds, common_weight = p * difference, p
        rescaled = p * product if factor != 1.0 else torch.zeros_like(p)
        ds_variance = ds.square() * (relative + 2.0 * moments.rounding) + p.square() * dp_variance
        ds_bias = p * dp_bias
        cast = moments.weight_cast(contract.probability, p)
        if contract.score_gradient_of_rounded:
            ds_variance = ds_variance + cast * difference.square()
        if tile.cap is not None:
            slope = tile.cap.slope
            rest = slope.square() * (ds_variance - ds.square() * by_score)
            ds_variance = rest + ds.square() * _capped_variance(tile, moments, tile.cap, by_score)
            bent = 2.0 * tile.cap.tanh.abs() / tile.cap.size * argument_shrinkage(tile, moments) + moments.slope_mean
            ds_bias = slope * ds_bias + ds.abs() * slope * bent
            ds, common_weight, rescaled = ds * slope, p * slope, rescaled * slope
        scale = abs(tile.softmax_scale)
        factor = scale if contract.score_gradient_scaled and scale else 1.0
        ds_cast = moments.cast(contract.score_gradient, ds.abs(), factor)
        ds_variance = ds_variance + ds_cast
        weight_variance = p.square() * relative + cast
        return cls(
            tile=tile,
            moments=moments,
            p=p,
            rescaled=rescaled,
            ds=ds,
            weight_variance=torch.where(seen, weight_variance, 0.0),
            ds_variance=torch.where(seen, ds_variance, 0.0),
            weight_cast=torch.where(seen, cast, 0.0),
            ds_cast=torch.where(seen, ds_cast, 0.0),
            # a fraction that is close to 0 does not have the mean error of all fractions
            weight_bias=shrinkage + take(rows.lse_bias)[..., None] + moments.exponential_mean * (p > 0.5),
            ds_bias=ds_bias,
            common_weight=common_weight,
            vanished_p=torch.where(moments.vanishing(contract.probability, p), p, 0.0),
            vanished_ds=torch.where(moments.vanishing(contract.score_gradient, ds.abs(), factor), ds, 0.0),
            common=common,
            delta_variance=delta_variance,
            delta_bias=(dout.abs() * take(rows.out_bias)).sum(-1, keepdim=True),
            logit=logit,
            converted=converted,
        )


def _capped_variance(tile: Tile, moments: Moments, cap: Capped, by_score: torch.Tensor) -> torch.Tensor:
    """Variance of P·(1 - t²) by the errors of tanh's argument, of t and of 1 - t², for a true P of 1, (c, r, n).

    The argument moves P, by the slope 1 - t², and that slope itself, by -2t/cap of it: together, and against each other.
    """
    slope, bend = cap.slope, 2.0 * cap.tanh / cap.size
    of_bias = bias_variance(tile, moments)
    if moments.contract.cap_slope == "tanh":  # the slope is formed of t: what moves t moves both
        roundings = cap.tanh.square().square() + 2.0 * slope.square()
        return (slope - bend).square() * (by_score - of_bias) + slope.square() * of_bias + moments.rounding * roundings
    argument = (tile.softmax_scale * tile.product).abs() / cap.size
    of_argument = (slope - bend).square() * argument_variance(tile, moments)
    own = moments.tanh * (cap.size * cap.tanh).square() + moments.slope(argument) + moments.rounding + of_bias
    return slope.square() * (of_argument + own)


def _dq(gradient: _Gradient) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Bias and deviation of dq for the rows of a tile, and the part of it by casts, (c, r, d)."""
    tile, moments = gradient.tile, gradient.moments
    keys, squares, magnitudes = tile.k, tile.k.square(), tile.k.abs()
    value, weighted = gradient.ds @ keys, gradient.common_weight @ keys
    variance = gradient.ds_variance @ squares
    variance = variance + gradient.delta_variance * weighted.square() + gradient.common * value.square()
    variance = variance + moments.dot(gradient.ds.square() @ squares, value, tile.lengths)
    variance = variance + 2.0 * moments.rounding * value.square()
    bias = (gradient.ds.abs() * gradient.weight_bias + gradient.ds_bias) @ magnitudes
    bias = bias + gradient.delta_bias * weighted.abs() + moments.dot_bias(value.abs(), tile.lengths)
    bias = bias + (gradient.vanished_ds @ keys).abs() + moments.exponential_mean * value.abs()
    bias = bias + moments.multiplier * (((gradient.ds * gradient.logit) @ keys).abs() + value.abs())
    bias = bias + moments.conversion * ((gradient.ds * gradient.converted) @ keys).abs()
    bias = bias + moments.rescaling_bias(tile.rescale) * (gradient.rescaled @ keys).abs()
    scale = abs(tile.softmax_scale)
    return scale * bias, scale * variance.sqrt(), scale * (gradient.ds_cast @ squares).sqrt()


@dataclass(frozen=True, slots=True)
class _Columns:
    """Sums over query rows, collected tile by tile: (lanes, seqlen_k, d); without scale and dropout's factor.

    Attributes:
        dv, dk: values.
        dv_variance, dk_variance: variances before the accumulation's own.
        dv_casts, dk_casts: of these, by the roundings of P and dS.
        dv_shared, dk_shared: of these, by errors that all keys of a query row share.
        dv_squares, dk_squares: sums of squared products.
        dv_bias, dk_bias: biases, but for what is kept signed:
        dv_logit, dk_logit: derivatives by a relative change of all logits.
        dv_converted, dk_converted: derivatives by a relative change of the constant log2(e).
        dv_vanished, dk_vanished: the parts of P and dS that their rounding makes 0.
        dk_rescaled: derivative by a relative change of dropout's factor.
        lengths: number of rows that see each key, (lanes, seqlen_k, 1).
        kept: number of those that keep it.
    """

    dv: torch.Tensor
    dk: torch.Tensor
    dv_variance: torch.Tensor
    dk_variance: torch.Tensor
    dv_casts: torch.Tensor
    dk_casts: torch.Tensor
    dv_shared: torch.Tensor
    dk_shared: torch.Tensor
    dv_squares: torch.Tensor
    dk_squares: torch.Tensor
    dv_bias: torch.Tensor
    dk_bias: torch.Tensor
    dv_logit: torch.Tensor
    dk_logit: torch.Tensor
    dv_converted: torch.Tensor
    dk_converted: torch.Tensor
    dv_vanished: torch.Tensor
    dk_vanished: torch.Tensor
    dk_rescaled: torch.Tensor
    lengths: torch.Tensor
    kept: torch.Tensor

    @classmethod
    def zeros(cls, lanes: Lanes) -> _Columns:
        """Nothing collected yet."""
        of = {"dk": lanes.k, "dv": lanes.v}
        sums = {field.name: torch.zeros_like(of.get(field.name[:2], lanes.k)) for field in fields(cls)}
        return cls(**sums | {name: torch.zeros_like(lanes.k[..., :1]) for name in ("lengths", "kept")})

    def add(self, gradient: _Gradient) -> None:
        """Add a tile's rows."""
        tile, ds, kept = gradient.tile, gradient.ds, gradient.tile.kept_of
        p = kept(gradient.p)
        lanes, queries, cotangents = tile.place.lanes, tile.q, tile.dout
        shared_by_dv = (gradient.common * p.square()).mT @ cotangents.square()
        shared_by_dk = (
            gradient.delta_variance * gradient.common_weight.square() + gradient.common * ds.square()
        ).mT @ queries.square()
        self.dv[lanes] += p.mT @ cotangents
        self.dk[lanes] += ds.mT @ queries
        self.dv_casts[lanes] += kept(gradient.weight_cast).mT @ cotangents.square()
        self.dk_casts[lanes] += gradient.ds_cast.mT @ queries.square()
        self.dv_shared[lanes] += shared_by_dv
        self.dk_shared[lanes] += shared_by_dk
        self.dv_variance[lanes] += kept(gradient.weight_variance).mT @ cotangents.square() + shared_by_dv
        self.dk_variance[lanes] += gradient.ds_variance.mT @ queries.square() + shared_by_dk
        self.dv_squares[lanes] += p.square().mT @ cotangents.square()
        self.dk_squares[lanes] += ds.square().mT @ queries.square()
        self.dv_bias[lanes] += (p * gradient.weight_bias).mT @ cotangents.abs()
        of_ds_bias = ds.abs() * gradient.weight_bias + gradient.ds_bias + gradient.common_weight * gradient.delta_bias
        self.dk_bias[lanes] += of_ds_bias.mT @ queries.abs()
        self.dv_logit[lanes] += (p * gradient.logit).mT @ cotangents
        self.dk_logit[lanes] += (ds * gradient.logit).mT @ queries
        self.dv_converted[lanes] += (p * gradient.converted).mT @ cotangents
        self.dk_converted[lanes] += (ds * gradient.converted).mT @ queries
        self.dv_vanished[lanes] += kept(gradient.vanished_p).mT @ cotangents
        self.dk_vanished[lanes] += gradient.vanished_ds.mT @ queries
        self.dk_rescaled[lanes] += gradient.rescaled.mT @ queries
        self.lengths[lanes] += tile.rows_that_see
        self.kept[lanes] += tile.rows_that_keep

    def settle(self, moments: Moments, case: AttentionCase) -> tuple[Spread, Spread]:
        """Spreads of dk and dv."""
        scale, factor = abs(case.softmax_scale), rescale(case)
        dv_variance = self.dv_variance + moments.dot(self.dv_squares, self.dv, self.kept)
        dv_variance = dv_variance + moments.rescaling(factor) * self.dv.square()
        dv_bias = self.dv_bias + self.dv_vanished.abs() + moments.dot_bias(self.dv.abs(), self.kept)
        dv_bias = dv_bias + moments.rescaling_bias(factor) * self.dv.abs()
        dv_bias = dv_bias + moments.exponential_mean * self.dv.abs() + moments.multiplier * self.dv_logit.abs()
        dv_bias = dv_bias + moments.conversion * self.dv_converted.abs()
        dk_variance = self.dk_variance + moments.dot(self.dk_squares, self.dk, self.lengths)
        dk_variance = dk_variance + 2.0 * moments.rounding * self.dk.square()
        dk_bias = self.dk_bias + self.dk_vanished.abs() + moments.dot_bias(self.dk.abs(), self.lengths)
        dk_bias = dk_bias + moments.exponential_mean * self.dk.abs()
        dk_bias = dk_bias + moments.multiplier * (self.dk_logit.abs() + self.dk.abs())
        dk_bias = dk_bias + moments.conversion * self.dk_converted.abs()
        dk_bias = dk_bias + moments.rescaling_bias(factor) * self.dk_rescaled.abs()
        return (
            Spread(scale * dk_bias, scale * dk_variance.sqrt(), scale * self.dk_shared.sqrt(), scale * self.dk_casts.sqrt()),
            Spread(
                factor * dv_bias, factor * dv_variance.sqrt(), factor * self.dv_shared.sqrt(), factor * self.dv_casts.sqrt()
            ),
        )


def _without_sink(spread: Spread, case: AttentionCase) -> Spread:
    """Spreads of the keys (lanes, seqlen_k, d) alone, where a sink stands behind them."""
    parts = (spread.bias, spread.deviation, spread.shared, spread.casts)
    bias, deviation, shared, casts = (None if part is None else part[:, : case.seqlen_k] for part in parts)
    assert bias is not None
    assert deviation is not None
    return Spread(bias, deviation, shared, casts)


def _shaped(spread: Spread, like: torch.Tensor) -> Spread:
    shared, casts = (None if part is None else part.reshape(like.shape) for part in (spread.shared, spread.casts))
    return Spread(spread.bias.reshape(like.shape), spread.deviation.reshape(like.shape), shared, casts)
