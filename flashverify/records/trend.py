"""Whether many small moves go one way: an exact sign test over the draws of a campaign.

A change of rounding order moves every case a little, up or down. Where new and old are equally good, either could as well have
been the older one, and a draw of inputs is as likely to show a rise as a fall: the number of rises among n draws that moved is
binomial(n, 1/2), whatever the distribution of the errors. Cases that share their random numbers (regime and seed: masks,
layouts, lengths and head sizes of one draw) are not independent, so each draw has one vote: that of the majority of its cases.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

FALSE_ALARMS = Fraction(1, 10**6)
"""Chance that a whole gate calls a change worse that is as good: shared among its tests (Bonferroni), however they depend."""

Draw = tuple[str, int]
"""Regime and seed: what a case's random numbers depend on (`flashverify.cases.sampling.Source.stream`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """Votes of the draws on one quantity of one tensor.

    Attributes:
        dtype: short name of the cases' dtype.
        check: the check that measured it.
        tensor: the tensor.
        mode: how truth was formed.
        quantity: name of the measurement's field.
        rises: draws in whose cases the quantity mostly rose.
        falls: draws in whose cases it mostly fell.
    """

    dtype: str
    check: str
    tensor: str
    mode: str
    quantity: str
    rises: int
    falls: int

    @property
    def chance(self) -> Fraction:
        """P(at least so many rises) if rise and fall were equally likely: exact."""
        draws = self.rises + self.falls
        return Fraction(sum(math.comb(draws, k) for k in range(self.rises, draws + 1)), 2**draws)


def votes(moves: Iterable[tuple[Draw, float]]) -> tuple[int, int]:
    """Draws that rose and draws that fell, from (draw, new - old) of every case; NaN and an even draw have no vote."""
    balance: dict[Draw, int] = defaultdict(int)
    for draw, change in moves:
        balance[draw] += (change > 0) - (change < 0)
    return sum(total > 0 for total in balance.values()), sum(total < 0 for total in balance.values())


def significant(trends: Iterable[Trend]) -> tuple[Trend, ...]:
    """The trends upwards that chance does not explain at `FALSE_ALARMS` for all of them together, least likely first."""
    tested = [trend for trend in trends if trend.rises + trend.falls]
    found = [trend for trend in tested if trend.chance * len(tested) <= FALSE_ALARMS]
    return tuple(sorted(found, key=lambda trend: trend.chance))
