"""Statistics of standard scores: do a tensor's errors have the predicted size, and no direction?

Scores share errors within a row (a weight's rounding meets every feature), so rows are the units: Student's t of the rows'
means, and of their mean squares. Row statistics are averages over many features, near to normal, and independent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy import special

from flashverify.numerics.formats import Format

FEWEST_ROWS = 64
FEWEST_ELEMENTS = 4096
"""Fewer scores than these say little, and their rows' means are not near enough to normal."""


@dataclass(frozen=True, slots=True)
class Clustered:
    """Mean of a quantity over rows, with the standard error that the rows themselves show.

    Attributes:
        mean: mean of the rows' means.
        error: its standard error.
        rows: number of rows.
    """

    mean: float
    error: float
    rows: int

    @classmethod
    def of(cls, values: torch.Tensor, present: torch.Tensor) -> Clustered:
        """Rows are the first dimension; elements that are not present do not count, nor do rows without any."""
        counts = present.sum(1)
        used = counts > 0
        means = torch.where(present, values, 0.0).sum(1)[used] / counts[used]
        rows = int(used.sum())
        deviation = float(means.std()) if rows > 1 else math.nan
        return cls(mean=float(means.mean()) if rows else math.nan, error=deviation / math.sqrt(max(rows, 1)), rows=rows)

    @property
    def t(self) -> float:
        """Student's t of the mean against 0; 0 where both are 0."""
        if self.error == 0.0:
            return 0.0 if self.mean == 0.0 else math.copysign(math.inf, self.mean)
        return self.mean / self.error


def quantile(rows: int, rate: float) -> float:
    """The |t| that is exceeded with probability `rate` if there is no difference (two-sided, rows - 1 degrees of freedom)."""
    return -float(special.stdtrit(rows - 1, 0.5 * rate))


def by_row(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor (B, H, N, D) or (B, H, N) as (B·H·N, D) or (B·H·N, 1)."""
    return tensor.reshape(-1, tensor.shape[3] if tensor.ndim == 4 else 1)


def residual(truth: torch.Tensor, stored: Format) -> torch.Tensor:
    """How far the truth is from the nearest number of a format, in spacings at the truth: from -1/2 to 1/2."""
    spaced = truth / stored.ulp(truth)
    return spaced.round() - spaced
