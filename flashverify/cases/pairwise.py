"""Covering arrays of strength two: few combinations in which every pair of values of any two factors meets.

Greedy, as in AETG (Cohen, Dalal, Fredman and Patton, IEEE Trans. Software Eng. 23, 1997), but with nothing random: each
combination begins with a pair that has not met, and takes from every other factor the value that meets most of the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations, product

Setting = tuple[str, object]
"""A factor and one of its values."""


def covering(
    factors: dict[str, tuple[object, ...]], is_possible: Callable[[dict[str, object]], bool]
) -> Iterator[dict[str, object]]:
    """Combinations of one value a factor, until every possible pair of values has met.

    Args:
        factors: names, each with its values.
        is_possible: whether some settings (not of all factors, perhaps) may occur together. What is possible for some settings
            has to be so with a further factor too, by one of its values at least.

    Yields:
        Dictionaries of factor to value, always the same and in the same order.
    """
    waiting = dict.fromkeys(
        pair
        for (one, values), (other, others) in combinations(factors.items(), 2)
        for pair in product(((one, value) for value in values), ((other, value) for value in others))
        if is_possible(dict(pair))
    )
    made = 0
    while waiting:
        first, second = next(iter(waiting))
        chosen = dict((first, second))
        for name, values in factors.items():
            if name in chosen:
                continue
            turned = values[made % len(values) :] + values[: made % len(values)]  # ties are won by each value in turn
            possible = [value for value in turned if is_possible(chosen | {name: value})]
            chosen[name] = max(
                possible, key=lambda value: sum(pair in waiting for pair in _pairs(chosen, (name, value), factors))
            )
        combination = {name: chosen[name] for name in factors}
        for pair in combinations(combination.items(), 2):
            waiting.pop(pair, None)
        made += 1
        yield combination


def _pairs(
    chosen: dict[str, object], setting: Setting, factors: dict[str, tuple[object, ...]]
) -> Iterator[tuple[Setting, Setting]]:
    """The setting with each one that is chosen, in the order of the factors."""
    order = list(factors)
    for other in chosen.items():
        yield (other, setting) if order.index(other[0]) < order.index(setting[0]) else (setting, other)
