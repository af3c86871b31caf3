"""The dropout mask of this house (docs/adr/0016): which pairs of query and key are kept, from the case alone.

    c = offset / 4 + j // 4,   word = Philox(counter = (low(c), high(c), i, b·Hq + h), key = (low(seed), high(seed)))[j % 4]
    t = round(rate·2^32),      pair (b, h, i, j) is kept iff word >= t

The definition is stated once in scalar form (for mpmath and balls), once for numpy and once for torch; tests hold them equal.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from flashverify.cases.case import AttentionCase
from flashverify.dropout.philox import LOW, WORD_BITS, philox4x32, philox4x32_scalar, philox4x32_tensor

if TYPE_CHECKING:
    import torch

Indices: TypeAlias = npt.NDArray[np.integer]
Bits: TypeAlias = npt.NDArray[np.bool_]

WORDS = 4
"""Random words of a counter: keys that it serves."""

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


def stream_of(case: AttentionCase) -> Stream | None:
    """The stream of a case, or None: it has no dropout. numpy's SeedSequence mixes the case's seed into seed and offset.

    Half of the offsets lie so that the low word of c = offset / 4 + j // 4 overflows within the first 64 keys of every row; a
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
    c = stream.offset // WORDS + column // WORDS
    counter = (c & LOW, c >> WORD_BITS, row, _row_of_words(heads_q, batch, head))
    return philox4x32_scalar(counter, stream.key)[column % WORDS] >= stream.threshold


def keep(stream: Stream, heads_q: int, batch: int, head: int, rows: Indices, columns: Indices) -> Bits:
    """Which pairs of query rows and key columns of one head are kept (for numpy).

    Args:
        stream: seed, offset and rate.
        heads_q: number of query heads.
        batch: the batch entry, or the sequence of packed ones.
        head: the query head.
        rows: integer array (R,) of query rows, in any order.
        columns: integer array (C,) of key columns, in any order; neighbours share their words.

    Returns:
        bool array (R, C).

    Raises:
        ValueError: as `keep_scalar`.
    """
    last = np.array([_row_of_words(heads_q, batch, head)], dtype=np.uint64)
    fours, where = np.unique(np.asarray(columns, dtype=np.uint64) // np.uint64(WORDS), return_inverse=True)
    c = np.uint64(stream.offset // WORDS) + fours
    row = np.asarray(rows, dtype=np.uint64)[:, None]
    kept = np.empty((row.shape[0], fours.size, WORDS), dtype=np.bool_)
    threshold = np.uint64(stream.threshold)
    for part in _runs(c):
        low, high = c[part] & np.uint64(LOW), c[part][:1] >> np.uint64(WORD_BITS)
        step = max(1, BLOCK // low.size)
        for start in range(0, row.shape[0], step):
            block = slice(start, start + step)
            words = philox4x32((low, high, row[block], last), stream.key)
            for index, word in enumerate(words):
                np.greater_equal(word, threshold, out=kept[block, part, index])
    flat = kept.reshape(row.shape[0], fours.size * WORDS)
    wanted = where.reshape(-1) * WORDS + np.asarray(columns, dtype=np.int64) % WORDS
    is_all = wanted.size == flat.shape[1] and bool((wanted == np.arange(wanted.size)).all())
    return flat if is_all else flat[:, wanted]


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
    fours, where = torch.unique(columns // WORDS, return_inverse=True)
    c = fours + (first & LOW)
    counter = (c & LOW, (c >> WORD_BITS) + (first >> WORD_BITS), rows, entries * heads_q + heads)
    words = torch.broadcast_tensors(*philox4x32_tensor(counter, stream.key))  # type: ignore[no-untyped-call]
    flat = torch.stack([word >= stream.threshold for word in words], dim=-1).flatten(-2)
    wanted = where * WORDS + columns % WORDS
    is_all = torch.equal(wanted, torch.arange(flat.shape[-1], device=wanted.device))
    return flat if is_all else flat[..., wanted]
