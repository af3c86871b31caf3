"""What the sharp model says of a tensor before its final rounding, and what follows: an allowed error, and a standard score.

    allowed:  |X^ - X*| <= bias + lambda·deviation + (half a spacing at the result)
    z = (X^ - X*) / sqrt(deviation² + spacing²/12)

lambda = sqrt(2 ln(2 n / delta)) makes a false alarm among n elements less likely than delta: each error is a weighted sum of
bounded errors that are strictly sub-Gaussian (Hoeffding; docs/numerics.md, section 11).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from flashverify.numerics.formats import Format
from flashverify.numerics.moments import UNIFORM


@dataclass(frozen=True, slots=True)
class Spread:
    """One tensor's errors before its final rounding; float64, >= 0, in the tensor's own unit and shape.

    Attributes:
        bias: largest size of what is not random, or common to all terms.
        deviation: standard deviation of the rest.
        shared: the part of it that all rows of the tensor have in common, or None if there is none: of dk and dv, by the errors
            of each query row's delta and lse.
        casts: the part of it by the roundings of P and dS to a 16-bit format, or None if that is not known. These the model
            knows; the rest is estimated from above.
    """

    bias: torch.Tensor
    deviation: torch.Tensor
    shared: torch.Tensor | None = None
    casts: torch.Tensor | None = None

    def allowed(self, truth: torch.Tensor, stored: Format, factor: float) -> torch.Tensor:
        """The sharp budget of a tensor that is rounded to `stored`; infinite where the model gives no number."""
        before = self.bias + factor * self.deviation
        known = torch.where(truth.isfinite(), truth, 0.0).abs()
        reach = torch.where(before.isfinite(), known + before, 0.0)
        return torch.nan_to_num(before + 0.5 * stored.ulp(reach), nan=torch.inf, posinf=torch.inf)

    def known(self, truth: torch.Tensor, stored: Format) -> torch.Tensor:
        """Standard deviation of what is not estimated from above: the roundings of P and dS, and the final one."""
        final = UNIFORM * stored.ulp(torch.where(truth.isfinite(), truth, 0.0)).square()
        return final.sqrt() if self.casts is None else (self.casts.square() + final).sqrt()

    def size(self, truth: torch.Tensor, stored: Format) -> torch.Tensor:
        """Standard deviation of the whole error of a tensor that is rounded to `stored`."""
        known = torch.where(truth.isfinite(), truth, 0.0)
        return (self.deviation.square() + UNIFORM * stored.ulp(known).square()).sqrt()


def factor(elements: int, rate: float) -> float:
    """The lambda with which a false alarm among that many elements is less likely than `rate`.

    Raises:
        ValueError: if rate is not in (0, 1).
    """
    if not 0.0 < rate < 1.0:
        raise ValueError(f"rate: got {rate}, accepted are numbers between 0 and 1")
    return math.sqrt(2.0 * math.log(2.0 * max(elements, 1) / rate))
