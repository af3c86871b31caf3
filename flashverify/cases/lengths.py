"""How long the sequences of a case are, and how they lie one after another in packed tensors.

A case with `lengths` is a padded one: seqlen_q and seqlen_k are the longest a sequence may be, and batch entry b has
lengths[b] = (queries, keys) of its own, at the beginning of its rows. The kinds of lengths follow one another in a fixed
cycle, whole, between, one, none, that the seed rotates, so that empty sequences come first, in the middle and last. Keys
follow the same cycle, shifted by one more every four entries: the first four entries are like self-attention, eight meet
mixed ones, sixteen all pairs. In a cache ("keys") every entry has all queries, and keys by the same cycle.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from flashverify.cases.case import AttentionCase
from flashverify.cases.digest import number

KINDS = ("whole", "between", "one", "none")
"""Kinds of lengths, in the order of the cycle."""

PACKINGS = ("ragged", "used")
"""Lengths of sequences that lie one after another in packed tensors, queries and keys alike."""

TAIL = 5
"""Rows after the last stretch, of no sequence, where stretches have room that is not used."""


def lengths(case: AttentionCase) -> tuple[tuple[int, int], ...]:
    """Numbers of queries and of keys of each batch entry's sequence."""
    if case.lengths is None:
        return ((case.seqlen_q, case.seqlen_k),) * case.batch
    drawn = _drawn(case.batch, case.seqlen_q, case.seqlen_k, case.seed)
    return tuple((case.seqlen_q, keys) for _, keys in drawn) if case.lengths == "keys" else drawn


def lengths_of(case: AttentionCase, batch: int) -> tuple[int, int]:
    """Numbers of queries and of keys of one batch entry's sequence."""
    return (case.seqlen_q, case.seqlen_k) if case.lengths is None else lengths(case)[batch]


@lru_cache(maxsize=256)
def _drawn(batch: int, seqlen_q: int, seqlen_k: int, seed: int) -> tuple[tuple[int, int], ...]:
    def length(kind: str, longest: int, b: int) -> int:
        between = 1 + number(f"{seed}/lengths/{b}") % max(longest - 1, 1)  # alike for queries and keys
        return {"whole": longest, "between": min(between, longest), "one": min(1, longest), "none": 0}[kind]

    def kind(b: int, shift: int) -> str:
        return KINDS[(seed + b + shift) % len(KINDS)]

    return tuple((length(kind(b, 0), seqlen_q, b), length(kind(b, b // len(KINDS)), seqlen_k, b)) for b in range(batch))


@dataclass(frozen=True, slots=True)
class Packing:
    """Where the sequences of a case lie in packed tensors: stretches of rows, one after another.

    Attributes:
        cu_seqlens_q, cu_seqlens_k: first row of each stretch, and the row after the last one: batch + 1 numbers.
        seqused_q, seqused_k: how many rows of each stretch are in use, from its first on; None: all of them.
        rows_q, rows_k: rows of the packed tensors, which may go on after the last stretch.
        longest_q, longest_k: rows of the longest stretch; 0 if there is none.
    """

    cu_seqlens_q: tuple[int, ...]
    cu_seqlens_k: tuple[int, ...]
    seqused_q: tuple[int, ...] | None
    seqused_k: tuple[int, ...] | None
    rows_q: int
    rows_k: int
    longest_q: int
    longest_k: int


def packing(case: AttentionCase) -> Packing:
    """How the sequences of a case with `lengths` are packed.

    "ragged": stretches are as long as the sequences. "used": every stretch is as long as the longest may be, and a few rows
    follow the last one.

    Raises:
        ValueError: if the case has no lengths of its own, or a cache.
    """
    if case.lengths not in PACKINGS:
        raise ValueError(f"lengths: got {case.lengths!r}, accepted are cases whose sequences are packed: {', '.join(PACKINGS)}")
    queries, keys = (tuple(pair[side] for pair in lengths(case)) for side in (0, 1))
    if case.lengths == "ragged":
        of_q, of_k = _offsets(queries), _offsets(keys)
        return Packing(of_q, of_k, None, None, of_q[-1], of_k[-1], max(queries, default=0), max(keys, default=0))
    of_q, of_k = (_offsets((longest,) * case.batch) for longest in (case.seqlen_q, case.seqlen_k))
    return Packing(of_q, of_k, queries, keys, of_q[-1] + TAIL, of_k[-1] + TAIL, case.seqlen_q, case.seqlen_k)


def _offsets(stretches: tuple[int, ...]) -> tuple[int, ...]:
    offsets = [0]
    for stretch in stretches:
        offsets.append(offsets[-1] + stretch)
    return tuple(offsets)
