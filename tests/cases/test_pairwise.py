"""Covering arrays: every possible pair meets, nothing impossible does, and few combinations are enough."""

from __future__ import annotations

from itertools import combinations, product

from flashverify.cases.matrices import matrix
from flashverify.cases.paired import PAIRED
from flashverify.cases.pairwise import covering

FACTORS: dict[str, tuple[object, ...]] = {"a": (1, 2, 3), "b": ("x", "y"), "c": (None, True), "d": (1, 2, 3, 4)}


def met(made: list[dict[str, object]]) -> set[frozenset[tuple[str, object]]]:
    return {frozenset(pair) for combination in made for pair in combinations(combination.items(), 2)}


def every_pair(factors: dict[str, tuple[object, ...]]) -> set[frozenset[tuple[str, object]]]:
    return {
        frozenset(((one, x), (other, y)))
        for (one, values), (other, others) in combinations(factors.items(), 2)
        for x, y in product(values, others)
    }


def test_every_pair_meets_in_few_combinations() -> None:
    made = list(covering(FACTORS, lambda settings: True))
    assert met(made) == every_pair(FACTORS)
    assert 12 <= len(made) <= 16  # 3 x 4 at least; all of them are 48
    assert made == list(covering(FACTORS, lambda settings: True))


def test_what_is_impossible_does_not_occur_and_all_the_rest_does() -> None:
    def is_possible(settings: dict[str, object]) -> bool:
        return settings.get("a") != 1 or settings.get("b") != "y"

    made = list(covering(FACTORS, is_possible))
    assert every_pair(FACTORS) - met(made) == {frozenset({("a", 1), ("b", "y")})}


def test_standard_has_every_pair_of_features() -> None:
    small = [case for case in matrix("standard") if case.head_dim == 16 and case.seqlen_q in {33, 17, 40}]
    cases = [case for case in small if case.batch == (2 if case.lengths is None else 4)]
    for (one, values), (other, others) in combinations(PAIRED.items(), 2):
        if {one, other} & {"view", "heads", "sizes"}:
            continue  # which are several fields of a case
        for x, y in product(values, others):
            chosen = {one: x, other: y}
            if chosen.get("cache") and any(chosen.get(name) for name in ("lengths", "sink", "lse_grad", "dropout")):
                continue  # which a cache does not go with
            if (chosen.get("lengths") or chosen.get("cache")) and (
                chosen.get("bias") or chosen.get("layout", "contiguous") != "contiguous"
            ):
                continue  # which neither lengths nor a cache go with
            assert any(getattr(case, one) == x and getattr(case, other) == y for case in cases), (one, x, other, y)
