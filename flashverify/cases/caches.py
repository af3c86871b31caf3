"""What the cache of a case holds before a call: how many keys, of which some are padding, in pages that sequences may share.

A call appends the last keys of each sequence, as many as there are queries, or as the shortest sequence has keys; the others
are in the cache by then. Left pads and shared pages follow from the case, as lengths do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from flashverify.cases.case import AttentionCase
from flashverify.cases.digest import number
from flashverify.cases.lengths import lengths

PAGE_SIZES = (16, 256)
"""Keys of a page, by turns: smaller than any tile, so that a tile has several, and larger than all."""

PADS = ("between", "none", "all", "one", "cached")
"""Kinds of left pads, in the order of the cycle that the seed rotates: some of the cached keys, none, all keys of the sequence
(no row sees any), one, all cached keys (the appended ones are left)."""


def appended(case: AttentionCase) -> int:
    """How many keys of each sequence the call appends."""
    return min(case.seqlen_q, case.seqlen_k, *(keys for _, keys in lengths(case)))


def cached(case: AttentionCase) -> tuple[int, ...]:
    """How many keys of each batch entry's sequence the cache holds before the call."""
    new = appended(case)
    return tuple(keys - new for _, keys in lengths(case))


def page_size(case: AttentionCase) -> int:
    """Keys of a page of a case whose cache has pages."""
    return PAGE_SIZES[case.seed % len(PAGE_SIZES)]


@lru_cache(maxsize=256)
def left_pads(case: AttentionCase) -> tuple[int, ...]:
    """How many keys at the front of each batch entry's sequence nobody sees; zeros without `left_pad`."""
    if not case.left_pad:
        return (0,) * case.batch
    sizes = zip(cached(case), lengths(case), strict=True)
    return tuple(_left_pad(case.seed, b, before, keys) for b, (before, (_, keys)) in enumerate(sizes))


def _left_pad(seed: int, b: int, before: int, keys: int) -> int:
    between = 1 + number(f"{seed}/left_pad/{b}") % max(before - 1, 1)
    kind = PADS[(seed + b) % len(PADS)]
    return {"between": min(between, before), "none": 0, "all": keys, "one": min(1, keys), "cached": before}[kind]


@dataclass(frozen=True, slots=True)
class SharedPage:
    """A page of a sequence that is another sequence's.

    Attributes:
        entry: batch entry of the sequence.
        page: which page of the sequence it is.
        owner: batch entry of the other sequence.
        owners_page: which page of that sequence it is.
    """

    entry: int
    page: int
    owner: int
    owners_page: int


def shared_pages(case: AttentionCase) -> tuple[SharedPage, ...]:
    """Which pages several sequences have; none unless the cache is "shared".

    The sequence with the most cached keys owns them. Of the pages that the call does not write to, every other sequence has
    the owner's in place of the first half (rounded up): the first one in the owner's order, as sequences with a common prompt
    do; each further one begins a page later in it, and goes on from the front where the owner has no more.
    """
    if case.cache != "shared" or case.batch < 2:
        return ()
    full = [keys // page_size(case) for keys in cached(case)]
    owner = full.index(max(full))
    others = [b for b in range(case.batch) if b != owner]
    return tuple(
        SharedPage(entry=b, page=page, owner=owner, owners_page=(page + turn) % full[owner])
        for turn, b in enumerate(others)
        for page in range((full[b] + 1) // 2)
    )
