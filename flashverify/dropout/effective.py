"""The effective rate: whether the rate that a kernel's rescaling assumes is the rate that its mask has.

With uniform probabilities and v constant, c, a row of n pairs of which k are kept gives out = r·c·k / n. So every row shows the
factor r that made up for the dropped pairs, within the rounding of out; and r = 1 / (1 - rate) is right for one rate alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import scipy.stats
import torch

from flashverify.dropout.mask import require_rate


@dataclass(frozen=True, slots=True)
class Interval:
    """Numbers from `low` to `high`; empty if low is above high."""

    low: float
    high: float

    @property
    def is_empty(self) -> bool:
        """Whether no number lies inside; NaN bounds nothing."""
        return not self.low <= self.high

    def meets(self, other: Interval) -> bool:
        """Whether some number lies in both."""
        return not Interval(max(self.low, other.low), min(self.high, other.high)).is_empty


def rescaling(
    out: torch.Tensor, kept: torch.Tensor, pairs: torch.Tensor, value: float, error: torch.Tensor | float
) -> Interval:
    """Every factor that explains all rows: r·value·kept / pairs = out, within the relative error of out.

    Args:
        out: what each row gave.
        kept: how many of its pairs were kept, of the same shape.
        pairs: how many it has, likewise.
        value: the constant v.
        error: bound of |out - exact| / |exact|, from 0 to below 1: one number, or as many as there are rows.

    Returns:
        The factors; empty if no factor explains all rows, all real numbers if no row keeps a pair.

    Raises:
        ValueError: if value is 0, or error no number from 0 to below 1.
    """
    if value == 0.0:
        raise ValueError("value: got 0.0, accepted are numbers that a factor changes")
    errors = torch.as_tensor(error, dtype=torch.float64, device=out.device).expand(out.shape)
    if not bool(((errors >= 0.0) & (errors < 1.0)).all()):
        raise ValueError(f"error: got {error}, accepted are numbers from 0 to below 1")
    kept, pairs, out, errors = (x.reshape(-1).double() for x in (kept, pairs, out, errors))
    shows = kept > 0
    if not bool(shows.any()):
        return Interval(-math.inf, math.inf)
    factors = out[shows] * pairs[shows] / (value * kept[shows])
    slack = 8.0 * torch.finfo(torch.float64).eps  # of the four operations here
    bounds = factors / (1.0 + errors[shows]) * (1.0 - slack), factors / (1.0 - errors[shows]) * (1.0 + slack)
    return Interval(float(torch.minimum(*bounds).max()), float(torch.maximum(*bounds).min()))


def confidence(dropped: int, pairs: int, false_alarms: float) -> Interval:
    """Every rate that this many dropped pairs do not rule out (Clopper and Pearson, 1934; exact, both sides alike).

    Args:
        dropped: how many pairs were dropped.
        pairs: of how many, each independently at one rate.
        false_alarms: probability that the true rate is not among them, at most.

    Raises:
        ValueError: if there are no pairs, fewer than were dropped, or false_alarms lies outside of (0, 1).
    """
    if not 0 <= dropped <= pairs or pairs == 0:
        raise ValueError(f"dropped: got {dropped} of {pairs}, accepted are counts from 0 to that of at least one pair")
    if not 0.0 < false_alarms < 1.0:
        raise ValueError(f"false_alarms: got {false_alarms}, accepted are numbers between 0 and 1")
    low = scipy.stats.beta.ppf(false_alarms / 2, dropped, pairs - dropped + 1) if dropped else 0.0
    high = scipy.stats.beta.isf(false_alarms / 2, dropped + 1, pairs - dropped) if dropped < pairs else 1.0
    return Interval(float(low), float(high))


def known(rate: float) -> Interval:
    """The rate of a mask that is known exactly, as that of `Stream.effective_rate`."""
    require_rate(rate)
    return Interval(rate, rate)


@dataclass(frozen=True, slots=True)
class EffectiveRate:
    """The rates that a mask may have beside those that the rescaling assumes.

    Attributes:
        mask: what the mask's dropped pairs do not rule out, or the one rate that is known.
        rescale: factors that explain what the kernel gave.
    """

    mask: Interval
    rescale: Interval

    @property
    def assumed(self) -> Interval:
        """The rates 1 - 1/r of the factors; with no positive factor, empty."""
        if self.rescale.is_empty or self.rescale.high <= 0.0:
            return Interval(math.inf, -math.inf)
        low = 1.0 - 1.0 / self.rescale.low if self.rescale.low > 0.0 else -math.inf
        return Interval(low, 1.0 - 1.0 / self.rescale.high)

    @property
    def agrees(self) -> bool:
        """Whether one rate may be both."""
        return self.assumed.meets(self.mask)

    def describe(self) -> str:
        """Both ranges, in words."""
        if self.rescale.is_empty:
            return "no one factor explains every row"
        return (
            f"rescaling by {self.rescale.low:.9g} to {self.rescale.high:.9g} assumes a rate from {self.assumed.low:.9g} to"
            f" {self.assumed.high:.9g}; the mask's lies from {self.mask.low:.9g} to {self.mask.high:.9g}"
        )
