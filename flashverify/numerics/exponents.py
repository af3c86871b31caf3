"""How far a kernel's exponents, and so its probabilities, may be from the true ones (lemmas 3, 4 and 7 of docs/numerics.md).

Logits are z = c·S in base 2 with c = scale·log2(e). The kernel forms s^ = dot(q, k), then s^·c minus a maximum (forward) or
minus the stored lse (backward), then a base-2 exponential. All of its relative errors are collected in one exponent error
omega, in natural units: the computed weight of a key is the true one times e^xi with |xi| <= omega, plus an underflow. A
kernel in base e makes no operation that is not covered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from flashverify.numerics.coefficients import Coefficients
from flashverify.numerics.contract import LN2, LOG2E
from flashverify.numerics.formats import EVALUATION_UNIT
from flashverify.numerics.rotation import Turning
from flashverify.numerics.tiles import Capped, Tile

LARGEST_EXPONENT = 300.0
"""Above this natural exponent a perturbed weight counts as unbounded (e^300 = 2e130 leaves room for products)."""


@dataclass(frozen=True, slots=True)
class Weights:
    """True probabilities of a tile and the most that the kernel's may differ, all (c, r, n) and 0 where a key is not seen.

    Attributes:
        p: exp(x - lse).
        excess: an upper bound of |p·e^xi - p|: p·(e^omega - 1), or less where weights are cut.
        unbounded: bool (c, r, n), where the largest weight is too large to be meant (its excess is capped).
    """

    p: torch.Tensor
    excess: torch.Tensor
    unbounded: torch.Tensor

    @property
    def largest(self) -> torch.Tensor:
        """Upper bound p + excess of the computed weight before underflow."""
        return self.p + self.excess


def perturbed_weights(tile: Tile, lse: torch.Tensor, omega: torch.Tensor, ceiling: float | None = None) -> Weights:
    """The probability p = exp(x - lse) and its largest change, formed in the log domain: no overflow, no 0·inf.

    Args:
        tile: the tile.
        lse: (c, r, 1), finite (anything for rows that see no key).
        omega: (c, r, n) exponent error.
        ceiling: the largest weight that the kernel can compute, if it cuts them: the change is then finite for every omega.
    """
    exponent = tile.logit - lse
    raised = exponent + omega
    p = torch.exp(exponent.clamp(max=LARGEST_EXPONENT))
    excess = torch.where(omega < 1.0, p * torch.expm1(omega), torch.exp(raised.clamp(max=LARGEST_EXPONENT)) - p)
    if ceiling is not None:
        raised = exponent
        excess = torch.maximum(torch.minimum(excess, ceiling - p), -torch.expm1(-omega) * p)
    seen = tile.seen
    return Weights(
        p=torch.where(seen, p, 0.0),
        excess=torch.where(seen, excess, 0.0),
        unbounded=seen & ~(raised <= LARGEST_EXPONENT),
    )


def product_error(tile: Tile, coefficients: Coefficients) -> torch.Tensor:
    """Bound of the error of the product of q and k, (c, r, n) (lemma 2), and of turning them before it (lemma 17)."""
    head_dim, turning = tile.q.shape[-1], Turning.of(tile, coefficients)
    magnitude = tile.score_magnitude if turning is None else turning.magnitude
    error = coefficients.score_dot(head_dim) * magnitude + 2.0 * head_dim * coefficients.tiny
    return error if turning is None else error + turning.moved


def raw_score_error(tile: Tile, coefficients: Coefficients) -> torch.Tensor:
    """Bound of |computed S - true S|, (c, r, n): the dot product, tanh with a soft cap, and a bias (lemmas 3, 11 and 13)."""
    error = _unbiased_error(tile, coefficients)
    biased = tile.bias_of_score
    if biased is None:
        return error
    # the slope over the scale, the distance in the accumulator's format, their product; then the sum, or one fused operation
    of_bias = ((1.0 + coefficients.division) * (1.0 + coefficients.growth(3.0)) - 1.0) * biased + 3.0 * coefficients.tiny
    error = error + of_bias
    if tile.bias_terms > 1:  # the sum before the last bias may be larger than the last one
        error = error + coefficients.unit * (tile.score.abs() + biased + error) + coefficients.tiny
    return error + coefficients.unit * (tile.score.abs() + error) + coefficients.tiny


def _unbiased_error(tile: Tile, coefficients: Coefficients) -> torch.Tensor:
    """`raw_score_error` but for what a bias does.

    tanh is steepest, on the way between its true argument and the computed one, at the end that is nearer to 0.
    """
    dot = product_error(tile, coefficients)
    if tile.cap is None:
        return dot
    argument, moved = capped_argument(tile, coefficients, tile.cap, dot)
    carried = (moved / torch.cosh((argument - moved).clamp(min=0.0, max=LARGEST_EXPONENT)).square()).clamp(max=2.0)
    largest = (torch.tanh(argument) + carried).clamp(max=1.0)
    return carried + coefficients.tanh * largest + 2.0 * coefficients.tiny


def capped_argument(
    tile: Tile, coefficients: Coefficients, cap: Capped, dot: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """|product·(scale / cap)|, what tanh is taken of, and how far the kernel's may be from it; `dot` is the product's error."""
    inner, tiny = abs(tile.softmax_scale) / cap.size, coefficients.tiny
    # the quotient, its rounding to the accumulator's format, and the product; the quotient may underflow
    underflow = tiny if inner < 4.0 * coefficients.contract.accumulator.smallest_normal else 0.0
    rounded = coefficients.growth(3.0)
    moved = (inner * (1.0 + rounded) + underflow) * dot + (inner * rounded + underflow) * tile.product.abs() + tiny
    return inner * tile.product.abs(), moved


def slope_error(tile: Tile, coefficients: Coefficients, cap: Capped) -> torch.Tensor:
    """Bound of the error of a soft cap's derivative, (c, r, n) (lemma 12)."""
    unit, tiny, slope = coefficients.unit, coefficients.tiny, cap.slope
    if coefficients.contract.cap_slope == "sech":
        argument, moved = capped_argument(tile, coefficients, cap, product_error(tile, coefficients))
        # |d ln sech²(x) / dx| <= 2, and the exponential's argument is rounded twice
        changed = 2.0 * moved + coefficients.sech + 6.2 * unit * (argument + moved)
        return (slope * torch.expm1(changed.clamp(max=LARGEST_EXPONENT))).clamp(max=1.0) + 4.0 * tiny
    error, tanh = _unbiased_error(tile, coefficients), cap.tanh.abs()
    square = error * (2.0 * tanh + error)
    square = square + unit * (tanh.square() + square) + tiny
    return square + unit * (slope + square)


def score_error(tile: Tile, coefficients: Coefficients) -> torch.Tensor:
    """Bound of |computed z - true z| in base-2 units by the score alone, (c, r, n) (lemma 3)."""
    multiplier = abs(tile.scale) * LOG2E
    error = raw_score_error(tile, coefficients)
    # c itself, or the scale that it is formed from, may underflow
    underflow = coefficients.tiny if multiplier < 4.0 * coefficients.contract.accumulator.smallest_normal else 0.0
    largest = tile.score_magnitude + tile.score.abs() if tile.cap is None else tile.score.abs()
    return multiplier * (1.0 + coefficients.multiplier) * error + underflow * (largest + error)


def logit_error(tile: Tile, coefficients: Coefficients) -> torch.Tensor:
    """Bound of |computed z - true z| in base-2 units, (c, r, n): dot product, multiplier, product rounding (lemma 3)."""
    logit = abs(tile.scale) * LOG2E * tile.score.abs()
    error = score_error(tile, coefficients) + coefficients.multiplier * logit
    if coefficients.contract.exponent == "fused":
        return error
    return error + coefficients.unit * (logit + error) + coefficients.tiny


def weight_error(tile: Tile, coefficients: Coefficients) -> torch.Tensor:
    """The part of an exponent's error that does not shrink with its distance from the maximum, base 2, (c, r, n)."""
    if coefficients.contract.exponent == "shifted":
        return score_error(tile, coefficients)
    return logit_error(tile, coefficients)


def forward_exponent(tile: Tile, coefficients: Coefficients, error: torch.Tensor, rescales: torch.Tensor) -> torch.Tensor:
    """Exponent error omega of the forward pass, natural units, (c, r, n) (lemma 4).

    The running maximum cancels between numerator and denominator, and the arguments of the exponential of a key and of all
    its later rescaling factors add up to its distance from the final maximum: their roundings are u times that distance, and
    for shifted scores, which are multiplied after the subtraction, so is everything but the dot product's error.

    Args:
        tile: the tile.
        coefficients: the contract's coefficients.
        error: `weight_error`, (c, r, n).
        rescales: (r, 1), how often a row's maximum may move after its first block.
    """
    gap = (row_maximum(tile.logit, tile.seen) - tile.logit) * LOG2E
    largest_error = row_maximum(error, tile.seen)
    distance = gap + largest_error + 3.0 * error
    exponentials = 1.0 + rescales
    if coefficients.contract.exponent == "shifted":
        rounding = coefficients.growth(coefficients.contract.scale_roundings + 2.0) * distance
        tiny = coefficients.tiny * (1.0 + abs(tile.scale) * LOG2E)  # the difference may underflow, then the product
    else:
        rounding = coefficients.unit * distance
        tiny = coefficients.tiny
    base2 = error + rounding + exponentials * tiny
    omega = LN2 * base2 + exponentials * coefficients.exponential
    return torch.where(tile.seen, omega, 0.0)


def backward_exponent(tile: Tile, coefficients: Coefficients, lse: torch.Tensor, lse_error: torch.Tensor) -> torch.Tensor:
    """Exponent error omega of the backward pass, natural units, (c, r, n) (lemma 7).

    The kernel forms p = exp2(z - lse·log2 e) from an lse stored in natural units, or p = exp2((x - lse)·log2 e) if shifted.

    Args:
        tile: the tile.
        coefficients: the contract's coefficients.
        lse: (c, r, 1), finite, natural units.
        lse_error: (c, r, 1), how far the lse that the kernel used may be from `lse`; 0 in modular mode.
    """
    if coefficients.contract.exponent == "shifted":
        omega = _shifted_backward_exponent(tile, coefficients, lse, lse_error)
    else:
        omega = _scaled_backward_exponent(tile, coefficients, lse, lse_error)
    if coefficients.contract.cuts_probability:
        omega = omega + (tile.score * tile.scale - lse).clamp(min=0.0)  # the cut lowers a weight above 1 by this much
    return torch.where(tile.seen, omega, 0.0)


def _scaled_backward_exponent(
    tile: Tile, coefficients: Coefficients, lse: torch.Tensor, lse_error: torch.Tensor
) -> torch.Tensor:
    """`backward_exponent` where the logit is formed as in the forward pass and lse is converted to base 2."""
    error = logit_error(tile, coefficients)
    converted = coefficients.growth(2.0)  # the constant log2(e), and the product
    base2_lse_error = LOG2E * (lse_error + converted * (lse.abs() + lse_error)) + coefficients.tiny
    distance = (tile.score * tile.scale - lse).abs() * LOG2E
    rounding = coefficients.unit * (distance + error + base2_lse_error) + coefficients.tiny
    return LN2 * (error + base2_lse_error + rounding) + coefficients.exponential


def _shifted_backward_exponent(
    tile: Tile, coefficients: Coefficients, lse: torch.Tensor, lse_error: torch.Tensor
) -> torch.Tensor:
    """`backward_exponent` where x = score·scale is rounded by itself and log2(e) multiplies its distance from lse."""
    logit = (tile.score * tile.scale).abs()
    # the scale and the product are one rounding each; the dot's error is that of the forward pass, in natural units
    error = (1.0 + coefficients.unit) * LN2 * score_error(tile, coefficients) + coefficients.growth(2.0) * logit
    error = error + lse_error + coefficients.tiny
    distance = (tile.score * tile.scale - lse).abs() + error
    # the difference, the constant log2(e), and the product
    return error + coefficients.growth(3.0) * distance + 3.0 * coefficients.tiny + coefficients.exponential


def row_maximum(values: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Largest value over the keys that each row sees, (c, r, 1); 0 for a row that sees none."""
    largest = values.masked_fill(~seen, -math.inf).amax(-1, keepdim=True)
    return torch.where(torch.isneginf(largest), 0.0, largest)


def evaluation_slack(tile: Tile, lse: torch.Tensor) -> torch.Tensor:
    """Relative amount by which the float64 evaluation of a row's budget may fall short, (c, r, 1).

    Twice the exponent error of a float64 evaluation (its logits, the oracle's lse), plus the roundings of the sums; four
    exponents' worth because p enters numerators and denominators.
    """
    terms = float(tile.k.shape[1] + tile.q.shape[-1] + 64)
    logits = abs(tile.softmax_scale) * row_maximum(tile.sensitivity, tile.seen)
    if tile.cap is not None:  # tanh moves logits no farther apart, and errs by a few roundings of its own
        logits = logits + tile.cap.size
    if tile.bias is not None:
        logits = logits + row_maximum(tile.bias.abs(), tile.seen)
    exponent = EVALUATION_UNIT * ((tile.q.shape[-1] + 4.0) * logits + 4.0 * lse.abs() + terms)
    return torch.expm1(4.0 * exponent)
