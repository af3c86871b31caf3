"""The plan of a campaign: which cases, which checks, in which order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import zip_longest

from flashverify.cases.case import DTYPES, AttentionCase
from flashverify.cases.semantics import sides

ORDER = ("fp64", *(dtype for dtype in DTYPES if dtype != "fp64"))


def select(cases: Iterable[AttentionCase], words: Iterable[str]) -> tuple[AttentionCase, ...]:
    """The cases whose id or feature list contains every one of the words."""
    wanted = list(words)
    return tuple(case for case in cases if all(word in case.id or word in case.features for word in wanted))


def spread(cases: Iterable[AttentionCase]) -> tuple[AttentionCase, ...]:
    """The cases in an order in which the first ones differ most: one of each kernel instance in turn, dtype by dtype.

    Workers that start together then compile different kernels, and the last cases are short. Cases of every dtype need the
    float64 instantiation of their kernel: those in float64 come first, so that it is compiled once, and by then. Of a dtype the
    largest case is first.
    """
    instances: dict[tuple[object, ...], list[AttentionCase]] = defaultdict(list)
    for case in sorted(cases, key=_work, reverse=True):
        limits = tuple(side is None for side in sides(case))
        of_scores = case.softcap is None, case.alibi is None, case.bias, case.sink, case.lengths
        instances[case.dtype, case.head_dim, case.value_dim, *limits, *of_scores, case.layout].append(case)
    rounds = zip_longest(*sorted(instances.values(), key=lambda group: (ORDER.index(group[0].dtype), -_work(group[0]))))
    return tuple(case for turn in rounds for case in turn if case is not None)


def _work(case: AttentionCase) -> int:
    return case.batch * case.heads_q * case.seqlen_q * case.seqlen_k * (case.head_dim + case.value_dim)
