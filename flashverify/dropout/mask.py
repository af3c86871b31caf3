"""The dropout mask of this house (docs/adr/0016): which pairs of query and key are kept, from the case alone.

    I = 8·(i div 16) + i mod 8,   J = 8·(j div 16) + j mod 8,   c = offset / 4 + J
    word = Philox(counter = (low(c), high(c), I, b·Hq + h), key = (low(seed), high(seed)))[2·(j div 8 mod 2) + (i div 8 mod 2)]
    t = round(rate·2^32),   pair (b, h, i, j) is kept iff word >= t

The definition is stated once in scalar form (for mpmath and balls), once for numpy and once for torch; tests hold them equal.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from flashverify.cases.case import AttentionCase
from flashverify.dropout.philox import LOW, WORD_BITS, philox4x32, philox4x32_scalar, philox4x32_tensor

if TYPE_CHECKING:
    import torch

Indices: TypeAlias = npt.NDArray[np.integer]
Bits: TypeAlias = npt.NDArray[np.bool_]

WORDS = 4
"""Random words of a counter: of two queries and two keys, `HALF` apart."""

HALF = 8
TWO = 2
SIDE = TWO * HALF
"""Queries and keys come in groups of 16, which share the counters of 8."""

ALL = 1 << WORD_BITS
"""Values of a word."""

SEED_BITS = 64

TAG = int.from_bytes(b"dropout")
"""Tells the streams of dropout from what else is drawn from a case's seed."""

CARRIES_WITHIN = 16
"""Counters of a row within which the low word overflows, where it does."""

BLOCK = 2**14
"""Counters that are worked on at a time: some arrays of that many words of 64 bits fit a core's cache."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Where a call reads its random words, and how many pairs it drops.

    Attributes:
        seed: 64 bits; a negative integer stands for its two's complement, as with torch's generators.
        offset: 32-bit words before the call's first: a multiple of four, as torch counts.
        rate: the share of pairs to be dropped that was asked for.

    Raises:
        TypeError: if seed or offset is no integer, or rate no number.
        ValueError: if one is out of range; either message names the field, the value and what is accepted.
    """

    seed: int
    offset: int
    rate: float

    def __post_init__(self) -> None:
        for name in ("seed", "offset"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name}: got {value!r}, accepted are integers")
        if not -(2 ** (SEED_BITS - 1)) <= self.seed < 2**SEED_BITS:
            raise ValueError(f"seed: got {self.seed}, accepted are integers from -2^63 to 2^64 - 1")
        if not 0 <= self.offset < 2**SEED_BITS or self.offset % WORDS:
            raise ValueError(f"offset: got {self.offset}, accepted are multiples of {WORDS} from 0 to 2^64 - 1")
        require_rate(self.rate)
        object.__setattr__(self, "seed", self.seed % 2**SEED_BITS)
        object.__setattr__(self, "rate", abs(float(self.rate)))  # -0.0 drops what 0.0 does

    @property
    def key(self) -> tuple[int, int]:
        """Philox's key: the low and the high word of the seed."""
        return self.seed & LOW, self.seed >> WORD_BITS

    @property
    def threshold(self) -> int:
        """t: words below it drop their pair. From 0 (nothing is dropped) to 2^32 (everything); ties go to even."""
        return round(self.rate * ALL)  # the product is exact

    @property
    def effective_rate(self) -> float:
        """The share of pairs that the mask drops, t / 2^32: exact, within 2^-33 of the rate asked for."""
        return self.threshold / ALL

    @property
    def rescale(self) -> float:
        """r: what makes up for the dropped pairs, 1 / (1 - effective rate) rounded to float64; 0 if everything is dropped."""
        kept = ALL - self.threshold
        return ALL / kept if kept else 0.0


def words_used(keys: int) -> int:
    """By how many words a call with so many keys advances the offset: those of the counters of one row of eights."""
    return -(-keys // SIDE) * HALF * WORDS


@lru_cache(maxsize=64)  # scalar code asks at every pair
def stream_of(case: AttentionCase) -> Stream | None:
    """The stream of a case, or None: it has no dropout. numpy's SeedSequence mixes the case's seed into seed and offset.

    Half of the offsets lie so that the low word of c = offset / 4 + J overflows within the first 32 keys of every row; a
    quarter are small, a quarter anything that an int64 holds.
    """
    if case.dropout is None:
        return None
    drawn = np.random.SeedSequence((TAG, case.seed)).generate_state(3, np.uint64)
    seed, kind, place = int(drawn[0]), int(drawn[1]) % 4, int(drawn[2])
    if kind < 2:
        overflow = ALL * (1 + place // CARRIES_WITHIN % 2**24)
        return Stream(seed, WORDS * (overflow - place % CARRIES_WITHIN - 1), case.dropout)
    return Stream(seed, place % (2**20 if kind == 2 else 2**63) // WORDS * WORDS, case.dropout)


def require_rate(rate: float) -> None:
    """Check a rate of dropout.

    Raises:
        TypeError: if it is no number.
        ValueError: if it lies outside of [0, 1].
    """
    if not isinstance(rate, (int, float)) or isinstance(rate, bool):
        raise TypeError(f"rate: got {rate!r}, accepted are numbers from 0 to 1")
    if math.isnan(rate) or not 0 <= rate <= 1:
        raise ValueError(f"rate: got {rate}, accepted are numbers from 0 to 1")


def _row_of_words(heads_q: int, batch: int, head: int) -> int:
    """b·Hq + h, the counter's last word."""
    if not 0 <= head < heads_q:
        raise ValueError(f"head: got {head}, accepted are integers from 0 to {heads_q - 1}, heads_q being {heads_q}")
    if batch < 0 or batch * heads_q + head > LOW:
        raise ValueError(f"batch: got {batch}, accepted are integers >= 0 with batch·heads_q + head below 2^32")
    return batch * heads_q + head


def keep_scalar(stream: Stream, heads_q: int, batch: int, head: int, row: int, column: int) -> bool:
    """Whether a pair of query row and key column is kept (scalar form).

    Args:
        stream: seed, offset and rate.
        heads_q: number of query heads.
        batch: the batch entry, or the sequence of packed ones.
        head: the query head.
        row: the query, counted from its sequence's first.
        column: the key, likewise.

    Raises:
        ValueError: if there is no such head, or batch·heads_q + head has more than 32 bits.
    """
    c = stream.offset // WORDS + _shared(column)
    counter = (c & LOW, c >> WORD_BITS, _shared(row), _row_of_words(heads_q, batch, head))
    word = TWO * (column // HALF % TWO) + row // HALF % TWO
    return philox4x32_scalar(counter, stream.key)[word] >= stream.threshold


def _shared(index: Any) -> Any:
    """I of a query or J of a key, which those 8 apart share; an integer, or as many as a tensor has."""
    return index // SIDE * HALF + index % HALF


def keep(stream: Stream, heads_q: int, batch: int, head: int, rows: Indices, columns: Indices) -> Bits:
    """Which pairs of query rows and key columns of one head are kept (for numpy).

    Args:
        stream: seed, offset and rate.
        heads_q: number of query heads.
        batch: the batch entry, or the sequence of packed ones.
        head: the query head.
        rows: integer array (R,) of query rows, in any order.
        columns: integer array (C,) of key columns, in any order.

    Returns:
        bool array (R, C).

    Raises:
        ValueError: as `keep_scalar`.
    """
    last = np.array([_row_of_words(heads_q, batch, head)], dtype=np.uint64)
    row_groups, column_groups = (np.unique(np.asarray(indices, dtype=np.int64) // SIDE) for indices in (rows, columns))
    row, c = (
        (HALF * groups[:, None] + np.arange(HALF)).reshape(-1).astype(np.uint64) for groups in (row_groups, column_groups)
    )
    row, c = row[:, None], c + np.uint64(stream.offset // WORDS)
    kept = np.empty((TWO, TWO, row.size, c.size), dtype=np.bool_)  # half of the keys, half of the queries, I, J
    threshold = np.uint64(stream.threshold)
    for part in _runs(c):
        low, high = c[part] & np.uint64(LOW), c[part][:1] >> np.uint64(WORD_BITS)
        step = max(1, BLOCK // low.size)
        for start in range(0, row.shape[0], step):
            block = slice(start, start + step)
            words = philox4x32((low, high, row[block], last), stream.key)
            for index, word in enumerate(words):
                np.greater_equal(word, threshold, out=kept[*divmod(index, TWO), block, part])
    halves = kept.reshape(TWO, TWO, row_groups.size, HALF, column_groups.size, HALF)
    whole = halves.transpose(2, 1, 3, 4, 0, 5).reshape(SIDE * row_groups.size, SIDE * column_groups.size)
    return _chosen(_chosen(whole, row_groups, rows, 0), column_groups, columns, 1)


def _chosen(whole: Bits, groups: Indices, indices: Indices, axis: int) -> Bits:
    """Of whole groups along an axis, those that were asked for."""
    indices = np.asarray(indices, dtype=np.int64)
    places = np.searchsorted(groups, indices // SIDE) * SIDE + indices % SIDE
    if np.array_equal(places, np.arange(places.size)):  # a view, not a copy
        return whole[: places.size] if axis == 0 else whole[:, : places.size]
    return np.take(whole, places, axis)


def _runs(c: npt.NDArray[np.uint64]) -> list[slice]:
    """Stretches of sorted counters of at most `BLOCK`, in each of which the high word is the same."""
    carries = np.flatnonzero(np.diff(c >> np.uint64(WORD_BITS))) + 1
    bounds = [0, *carries.tolist(), c.size]
    pieces = []
    for first, end in itertools.pairwise(bounds):
        pieces += [slice(start, min(start + BLOCK, end)) for start in range(first, end, BLOCK)]
    return pieces


def keep_tensor(
    stream: Stream, heads_q: int, entries: torch.Tensor, heads: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """Which pairs are kept (for torch), on the device of the tensors.

    Args:
        stream: seed, offset and rate.
        heads_q: number of query heads.
        entries: integer tensor of batch entries, or of sequences of packed ones.
        heads: integer tensor of query heads.
        rows: integer tensor of query rows; these three broadcast, and against (1,), as (B, 1, 1, 1), (H, 1, 1), (R, 1) do.
        columns: integer tensor (C,) of key columns; all on one device and in range.

    Returns:
        bool tensor (..., C).
    """
    import torch

    entries, heads, rows, columns = (index.to(torch.int64) for index in (entries, heads, rows, columns))
    first = stream.offset // WORDS
    calls, where = torch.unique(_shared(columns), return_inverse=True)
    c = calls + (first & LOW)
    counter = (c & LOW, (c >> WORD_BITS) + (first >> WORD_BITS), _shared(rows), entries * heads_q + heads)
    words = torch.broadcast_tensors(*philox4x32_tensor(counter, stream.key))  # type: ignore[no-untyped-call]
    upper = rows // HALF % TWO == 1
    by_half = [torch.where(upper, words[TWO * half + 1], words[TWO * half]) >= stream.threshold for half in range(TWO)]
    flat = torch.stack(by_half, dim=-1).flatten(-2)
    return flat[..., where * TWO + columns // HALF % TWO]
