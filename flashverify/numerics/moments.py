"""Mean and variance of what each operation of a contract's arithmetic does to a value: the sharp budget's coefficients.

Model (docs/numerics.md, section 11): the error of a rounding is uniform over the spacing at the result, errors of distinct
operations are independent, and significands are log-uniform (Benford). A uniform variable is strictly sub-Gaussian, so weighted
sums of such errors have Gaussian tails with their own variance. What is not random, or not centred, is a bias.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from flashverify.numerics.coefficients import Coefficients
from flashverify.numerics.contract import LOG2E, Contract
from flashverify.numerics.dots import TensorCore
from flashverify.numerics.formats import FP32, Format

ROUNDING = 1.0 / (8.0 * math.log(2.0))
"""Variance of the relative error of a rounding to nearest, in u²: E[(1/m)²]/3 for a log-uniform significand m in [1, 2)."""

INVERSE_SIGNIFICAND = 1.0 / (2.0 * math.log(2.0))
"""E[1/m] for a log-uniform significand m in [1, 2): an ulp is 2u/m of a value."""

INVERSE_SIGNIFICAND_SQUARED = 3.0 / (8.0 * math.log(2.0))
"""E[1/m²] for a log-uniform significand m in [1, 2)."""

UNIFORM = 1.0 / 12.0
"""Variance of a uniform variable on an interval of length 1."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Moments of one contract; u is the accumulator's unit roundoff. Variances are those of absolute errors unless stated."""

    contract: Contract

    @property
    def unit(self) -> float:
        """u, the accumulator's unit roundoff."""
        return self.contract.accumulator.unit_roundoff

    @property
    def rounding(self) -> float:
        """Relative variance of one rounding in the accumulator's format."""
        return ROUNDING * self.unit**2

    @property
    def exponential(self) -> float:
        """Relative variance of one exponential; where its rms error is not known, that of its largest error."""
        rms = self.contract.exp2_ulps if self.contract.exp2_rms_ulps is None else self.contract.exp2_rms_ulps
        return (2.0 * self.unit * rms) ** 2 * INVERSE_SIGNIFICAND_SQUARED

    @property
    def exponential_mean(self) -> float:
        """Largest size of the mean relative error of one exponential: all that are far from exp2(0) have it in common."""
        mean = self.contract.exp2_ulps if self.contract.exp2_mean_ulps is None else abs(self.contract.exp2_mean_ulps)
        return 2.0 * self.unit * mean * INVERSE_SIGNIFICAND

    @property
    def division(self) -> float:
        """Relative variance of one division whose error is uniform up to its largest."""
        return (2.0 * self.unit * self.contract.division_ulps) ** 2 / 3.0 * INVERSE_SIGNIFICAND_SQUARED

    @property
    def tanh(self) -> float:
        """Relative variance of tanh, from above: where an exponential is in it, its error counts 0.85 times (lemma 11)."""
        return 4.0 * self.rounding + self.division + 0.73 * self.exponential

    def slope(self, argument: torch.Tensor) -> torch.Tensor:
        """Relative variance of sech² for its computed argument: it grows with the exponential's, rounded twice (lemma 12)."""
        return 2.4 * self.exponential + 5.0 * self.rounding + self.division + 2.0 * self.rounding * (3.1 * argument).square()

    @property
    def slope_mean(self) -> float:
        """Largest size of the mean relative error of sech²: its exponential is in it up to 1.54 times."""
        return 1.54 * self.exponential_mean

    @property
    def tanh_mean(self) -> float:
        """Largest size of the mean relative error of tanh: that of its exponential."""
        return 0.86 * self.exponential_mean

    @property
    def multiplier(self) -> float:
        """Largest relative error of the logit multiplier, or of the scale: the same for every logit, so a bias."""
        return self.contract.scale_roundings * self.unit

    @property
    def conversion(self) -> float:
        """Relative error of the constant log2(e) in the accumulator's format: the same for all that it is multiplied with."""
        if self.contract.accumulator.precision > FP32.precision:
            return self.unit
        return abs(float(torch.tensor(LOG2E, dtype=torch.float64).float()) / LOG2E - 1.0)

    def rescaling(self, rescale: float) -> float:
        """Relative variance of a product with dropout's factor; none if that is 1."""
        return 0.0 if rescale == 1.0 else self.rounding

    def rescaling_bias(self, rescale: float) -> float:
        """Relative error of dropout's factor in the accumulator's format: the same for all that it is multiplied with."""
        if rescale in {0.0, 1.0}:
            return 0.0
        if self.contract.accumulator.precision > FP32.precision:
            return self.unit
        return abs(float(torch.tensor(rescale, dtype=torch.float64).float()) / rescale - 1.0)

    def dot(
        self,
        squares: torch.Tensor,
        value: torch.Tensor,
        length: torch.Tensor | float,
        walked: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Variance of a dot product of that length.

        Partial sums are a random walk plus a drift: the mean of their squares is about squares/2 + value²/3. In any order every
        product meets at most `length` roundings of them. The drift ends at the value, so where products agree its significand
        is not random. A tensor core's step truncates its products and the accumulator at one quantum, below the largest of
        them, and its sum to the accumulator's format. Truncation shrinks every partial sum by half a spacing in the mean, so
        errors of one chain add up along its walk: the sum of the partial sums varies by squares·steps²/12 around what
        `dot_bias` counts. An operation that underflows errs by up to `Coefficients.tiny`.

        Args:
            squares: sum of the squared products.
            value: the dot product.
            length: number of products that may be different from 0, broadcast against both.
            walked: sum of the squared products, each times the number of partial sums that hold it; None: half of them do.
        """
        dot = self.contract.dot
        underflow = 2.0 * length * Coefficients(self.contract).tiny ** 2 / 3.0
        if not isinstance(dot, TensorCore):
            walked = 0.5 * (length + 1.0) * squares if walked is None else walked
            drift = torch.maximum(self.rounding * value.square(), UNIFORM * self.contract.accumulator.ulp(value).square())
            return self.rounding * walked + length / 3.0 * drift + underflow
        steps = _steps(length, dot)
        partial = 0.5 * (steps + 1.0) * squares + (steps / 3.0 + 0.5) * value.square()
        largest_product = 6.0 / dot.block * squares  # summed over the steps: E[max²] of a block's normal products, about
        quantum = (dot.truncation * self.unit) ** 2
        truncated = (dot.block + 1.0) * UNIFORM * quantum * (partial + largest_product)
        wandering = INVERSE_SIGNIFICAND**2 * UNIFORM * steps * (steps + 1.0) * squares
        return truncated + self.unit**2 * (4.0 * UNIFORM * partial + wandering) + underflow

    def dot_bias(self, value: torch.Tensor, length: torch.Tensor | float) -> torch.Tensor:
        """Largest mean error of a dot product: truncation shrinks every partial sum, and every product.

        As if all products had the sign of the result, and digits to lose: products of bfloat16 rarely have.

        Args:
            value: |dot product|.
            length: number of products that may be different from 0.
        """
        dot = self.contract.dot
        if not isinstance(dot, TensorCore):
            return torch.zeros_like(value)
        steps = _steps(length, dot)
        chain = 0.5 * (steps + 1.0) * (1.0 + 0.5 * dot.truncation) * value
        return self.unit * (chain + 0.25 * dot.truncation * steps * dot.block * value)

    def cast(self, target: Format | None, value: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
        """Variance of a value >= 0 if factor·value is rounded to `target`: a twelfth of the squared spacing, at most value²."""
        if target is None or target.precision >= self.contract.accumulator.precision:
            return torch.zeros_like(value)
        spacing = target.ulp(factor * value) / factor
        return torch.minimum(UNIFORM * spacing.square(), value.square())

    def weight_cast(self, target: Format | None, weight: torch.Tensor) -> torch.Tensor:
        """`cast` of a probability: one that lies next to 1 becomes 1, and is off by what it lacked and no more.

        1 is within half a spacing of it: from below half of 2^-p, from above 2^-p.
        """
        variance = self.cast(target, weight)
        if target is None:
            return variance
        lacking = 1.0 - weight
        becomes_one = (lacking <= 0.5 * target.unit_roundoff) & (lacking >= -target.unit_roundoff)
        return torch.where(becomes_one, torch.minimum(variance, lacking.square()), variance)

    def vanishing(self, target: Format | None, value: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
        """Which values >= 0 become 0 when factor·value is rounded to `target`: an error of known sign."""
        if target is None or target.precision >= self.contract.accumulator.precision:
            return torch.zeros_like(value, dtype=torch.bool)
        return factor * value < 0.5 * target.smallest_subnormal


def _steps(length: torch.Tensor | float, dot: TensorCore) -> torch.Tensor | float:
    return torch.ceil(length / dot.block) if isinstance(length, torch.Tensor) else float(math.ceil(length / dot.block))
