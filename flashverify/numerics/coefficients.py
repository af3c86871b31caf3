"""The scalar coefficients of the hard budget: what each operation of a contract's arithmetic may do to a value.

An operation that is rounded n times, each time by a relative error of at most u, changes a value (or a sum, relative to its
sum of magnitudes) by at most (1+u)^n - 1 <= expm1(n·u): that is `growth`, valid for every n, without a first-order remainder
(Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, lemma 3.1). Exponents and logarithms are followed in
the logarithmic domain, where relative errors add exactly. Derivation: docs/numerics.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from flashverify.numerics.contract import LN2, Contract
from flashverify.numerics.dots import Number, SplitProducts, TensorCore
from flashverify.numerics.formats import Format


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Coefficients of one contract, all dimensionless unless stated; u is the accumulator's unit roundoff."""

    contract: Contract

    @property
    def unit(self) -> float:
        """u, the accumulator's unit roundoff."""
        return self.contract.accumulator.unit_roundoff

    @property
    def tiny(self) -> float:
        """Largest absolute error of one operation whose result underflows in the accumulator's format.

        Flushed: a result just above the smallest normal number may be computed just below it and become 0, hence twice the
        smallest normal. Gradual: one spacing (truncation), or the exponential's error counted in spacings.
        """
        accumulator = self.contract.accumulator
        dot = self.contract.dot
        pieces = dot.pieces.smallest_subnormal if isinstance(dot, SplitProducts) else 0.0  # what a tiny P or dS loses
        if self.contract.flushes_subnormals:
            return 2.0 * accumulator.smallest_normal + pieces
        return (self.contract.exp2_ulps + 1.0) * accumulator.smallest_subnormal + pieces

    @property
    def exponential(self) -> float:
        """Largest |ln(computed / true)| of one exponential: an ulp is at most 2u of the value that it belongs to."""
        return log_error(2.0 * self.unit * self.contract.exp2_ulps)

    @property
    def division(self) -> float:
        """Largest relative error of one division."""
        return 2.0 * self.unit * self.contract.division_ulps

    @property
    def tanh(self) -> float:
        """Largest relative error of tanh, formed of an exponential and a division (lemma 11)."""
        roundings = 1.71 * self.contract.exp2_ulps + 3.73 + 2.0 * self.contract.division_ulps
        return self.growth((1.0 + 2.0**-10) * roundings)

    @property
    def sech(self) -> float:
        """Largest |ln(computed / true)| of sech² for its computed argument, but for what grows with the argument (lemma 12)."""
        return self.unit * (1.0 + 2.0**-10) * (3.08 * self.contract.exp2_ulps + 5.0 + 2.0 * self.contract.division_ulps)

    @property
    def multiplier(self) -> float:
        """Largest relative error of the logit multiplier c = scale·log2(e) as the kernel holds it."""
        return self.growth(self.contract.scale_roundings)

    @property
    def operand(self) -> float:
        """Largest relative error of rounding one operand inside a dot product (tf32), 0 if operands are taken exactly."""
        if self.contract.operand is None:
            return 0.0
        return self.contract.operand.unit_roundoff * (2.0 if self.contract.operand_truncated else 1.0)

    @property
    def prescaling(self) -> float:
        """Relative error of an input that was multiplied by the scale and rounded to storage, 0 if inputs are used as given."""
        return self.contract.storage.unit_roundoff * (1.0 + self.multiplier) if self.contract.prescaled else 0.0

    def growth(self, roundings: Number) -> Number:
        """Largest relative change by that many roundings of relative size u: (1+u)^n - 1 <= expm1(n·u)."""
        if isinstance(roundings, torch.Tensor):
            return torch.expm1(roundings * self.unit)
        return math.expm1(roundings * self.unit)

    def plain_dot(self, length: int) -> float:
        """Error of one dot product of that length, relative to the sum of its products' magnitudes (lemma 2).

        The operands' own rounding (tf32) and the summation compose multiplicatively.
        """
        return (1.0 + self.operand) ** 2 * (
            1.0 + self._summed(self.contract.dot.kappa(length), additions=1.0, roundings=0.0)
        ) - 1.0

    def score_dot(self, length: int) -> float:
        """`plain_dot` of q and k, one of which may have been scaled and rounded to storage before."""
        return (1.0 + self.prescaling) * (1.0 + self.plain_dot(length)) - 1.0

    def gradient_dot(self, lengths: torch.Tensor, spans: torch.Tensor | None = None, runs: int = 1) -> torch.Tensor:
        """`walked_dot` of dS with q or k, which may have been scaled and rounded to storage before."""
        return (1.0 + self.prescaling) * (1.0 + self.walked_dot(lengths, spans, runs=runs)) - 1.0

    def partials(self, reach: torch.Tensor, group_size: int) -> torch.Tensor:
        """Error by rounding each query head's share of dk or dv to storage before the sum over the group, if it is.

        Args:
            reach: float64 tensor, upper bounds of the shares' magnitudes, summed over the group.
            group_size: number of shares.

        Returns:
            float64 tensor shaped like `reach`.
        """
        if not self.contract.group_partials or group_size == 1:
            return torch.zeros_like(reach)
        storage = self.contract.storage
        rounded = reach * storage.unit_roundoff + group_size * 0.5 * storage.smallest_subnormal
        return rounded + self.growth(float(group_size)) * (reach + rounded)

    def walked_dot(
        self,
        lengths: torch.Tensor,
        spans: torch.Tensor | None = None,
        extra: torch.Tensor | float = 0.0,
        runs: int = 1,
    ) -> torch.Tensor:
        """Error of dot products that a kernel accumulates over blocks, relative to the sums of magnitudes (lemma 2).

        Any tree of additions over n products rounds each product n times at most, so blocks cost nothing for `AnyOrder`.
        A tensor core's step may be chained onto the accumulator, or added to it afterwards: one more rounding a step. A run
        of n consecutive terms touches at most ceil((n-1)/block) + 1 steps; terms with zeros between them touch no more than
        the whole stretch that they lie in, and none has less than one of them.

        Args:
            lengths: float64 tensor, the number of terms that may be different from zero (adding a zero is exact).
            spans: from the first of them to the last, shaped like `lengths`; None: there are no zeros between them.
            extra: roundings of the partial sums besides (rescaling), broadcast against `lengths`.
            runs: in how many runs of equal length the terms come, each in steps of its own: the query heads of a group.

        Returns:
            float64 tensor shaped like `lengths`.
        """
        dot = self.contract.dot
        core = dot.core if isinstance(dot, SplitProducts) else dot
        if isinstance(core, TensorCore):
            beyond_first = ((lengths if spans is None else spans) / runs - 1.0).clamp(min=0.0)
            steps = torch.ceil(beyond_first / core.block) + 1.0
            for tile in (self.contract.block_q, self.contract.block_k):
                if tile is not None and tile % core.block:  # each tile that is touched ends in a step of its own
                    steps = steps + torch.ceil(beyond_first / tile) + 1.0
            kappa = lengths * core.truncation + torch.minimum(runs * steps, lengths) * (core.truncation + 3.0)
        else:
            kappa = lengths
        # at most every term is a tile of its own
        return (1.0 + self.operand) ** 2 * (
            1.0 + self._summed(kappa, additions=lengths, roundings=lengths.new_zeros(()) + extra)
        ) - 1.0

    def _summed(self, kappa: Number, additions: Number, roundings: Number) -> Number:
        """Relative error of sums of products.

        Args:
            kappa: error constant of the summation.
            additions: how often a tile's sum is added to the accumulator by an addition of its own, if it is (lemma 2b).
            roundings: of the partial sums besides.
        """
        dot = self.contract.dot
        if not isinstance(dot, SplitProducts):
            return self.growth(kappa + roundings)
        error = dot.error(self.growth(dot.sums * kappa), self.growth(kappa))
        return (1.0 + error) * (1.0 + self.growth(additions + roundings)) - 1.0

    def cast(self, target: Format | None, magnitude: torch.Tensor, floor: torch.Tensor | float = 1.0) -> torch.Tensor:
        """Largest error of rounding values to `target`, to nearest, with gradual underflow.

        u_T·|y| in the normal range, half the subnormal spacing below it, and never more than |y| itself (0 is a number).

        Args:
            target: the format, or None if the values stay in the accumulator's format.
            magnitude: float64 tensor, bounds of |y|, in the caller's normalisation.
            floor: what an absolute 1 of the kernel's numbers is worth in that normalisation.

        Returns:
            float64 tensor shaped like `magnitude`.
        """
        if target is None or target.precision >= self.contract.accumulator.precision:
            return torch.zeros_like(magnitude)
        half_spacing = floor * (0.5 * target.smallest_subnormal)
        absolute = torch.minimum(magnitude, torch.as_tensor(half_spacing, dtype=torch.float64, device=magnitude.device))
        return torch.maximum(magnitude * target.unit_roundoff, absolute)

    def rescaling(self, rescale: float) -> float:
        """Largest relative error of a product with dropout's factor: its own rounding, and the product's; none if it is 1."""
        return 0.0 if rescale == 1.0 else self.growth(2.0)

    def rescaled_after(self, rescale: float) -> float:
        """`rescaling` of an accumulator: none if the factor is folded into P."""
        return self.rescaling(rescale) if self.contract.rescale == "after" else 0.0

    def weight_cast(self, weights: torch.Tensor, rescale: float, floor: torch.Tensor | float = 1.0) -> torch.Tensor:
        """Largest error of weights by their rounding to P's format, and by dropout's factor if that is folded into them before.

        Args:
            weights: float64 tensor, bounds of the weights, in the caller's normalisation, without the factor.
            rescale: the factor.
            floor: what an absolute 1 of the kernel's numbers is worth in that normalisation.

        Returns:
            float64 tensor shaped like `weights`, without the factor too.
        """
        target = self.contract.probability
        if self.contract.rescale == "after" or rescale in {0.0, 1.0}:
            return self.cast(target, weights, floor)
        folded = weights * self.rescaling(rescale) + torch.minimum(weights, torch.as_tensor(floor * self.tiny).to(weights))
        return folded + self.cast(target, weights + folded, floor / rescale)

    def stored(self, magnitude: torch.Tensor) -> torch.Tensor:
        """Largest error of the final cast of values bounded by `magnitude`."""
        return self.cast(self.contract.stored, magnitude)

    def logarithm(self, magnitude: torch.Tensor) -> torch.Tensor:
        """Largest absolute error, in natural units, of a base-2 logarithm whose natural value is bounded by `magnitude`."""
        return 2.0 * self.unit * self.contract.log2_ulps * magnitude + LN2 * self.contract.log2_absolute


def log_error(relative: float) -> float:
    """Largest |ln(1+d)| over |d| <= relative, infinite from 1 on."""
    return -math.log1p(-relative) if relative < 1.0 else math.inf
