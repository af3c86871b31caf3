"""Sequences of different lengths, one after another in one tensor: which of them a program works on, and where its rows lie.

Stretch b holds rows starts[b] .. starts[b + 1] - 1, of which the first used[b] are the sequence; rows after the last stretch
belong to none. Programs own blocks of rows, as many as a stretch needs, so that work follows the real lengths: stretch b has
the slots from starts[b] // BLOCK + b on, one after another, which are enough for its blocks and at most one too many. Nothing
of this needs a length on the host, a table, or another kernel.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@dataclass(frozen=True)
class Packed:
    """Where sequences lie in packed tensors of queries and keys.

    Attributes:
        starts_q: int32 (B + 1,), contiguous, ascending from 0: stretches of query rows.
        starts_k: the same of keys.
        used_q: int32 (B,), contiguous: how many rows of each stretch exist, or None: all.
        used_k: the same of keys.
    """

    starts_q: torch.Tensor
    starts_k: torch.Tensor
    used_q: torch.Tensor | None = None
    used_k: torch.Tensor | None = None

    @property
    def sequences(self) -> int:
        """How many there are."""
        return self.starts_q.shape[0] - 1

    def slots(self, rows: int, block: int) -> int:
        """How many slots of `block` rows a packed tensor of so many rows has, those of the rows after the last stretch too."""
        return rows // block + self.sequences + 1


def packed_arguments(packed: Packed | None) -> tuple[torch.Tensor | int | None, ...]:
    """What kernels take of it: starts and numbers of used rows, of queries and of keys, and how many sequences there are."""
    if packed is None:
        return None, None, None, None, None
    return packed.starts_q, packed.used_q, packed.starts_k, packed.used_k, packed.sequences


@triton.jit
def start_of(starts_ptr, sequence, rows):
    """Where a stretch begins; never outside of the tensor, whatever was stated."""
    return tl.minimum(tl.maximum(tl.load(starts_ptr + sequence), 0), rows)


@triton.jit
def sequence_of(slot, starts_ptr, sequences, rows, BLOCK: tl.constexpr):
    """The sequence that a slot belongs to, the last whose first slot is not after it; `sequences`: the rows after all."""
    low = sequences * 0
    high = sequences
    while low < high:
        middle = (low + high + 1) // 2
        begins_by_then = start_of(starts_ptr, middle, rows) // BLOCK + middle <= slot
        low = tl.where(begins_by_then, middle, low)
        high = tl.where(begins_by_then, high, middle - 1)
    return low


@triton.jit
def stretch_of(sequence, starts_ptr, used_ptr, sequences, rows):
    """Where a stretch begins, how many rows it has, and how many of them are the sequence."""
    start = start_of(starts_ptr, sequence, rows)
    is_last = sequence == sequences
    end = tl.where(is_last, rows, start_of(starts_ptr, tl.minimum(sequence + 1, sequences), rows))
    stored = tl.maximum(end - start, 0)
    used = tl.where(is_last, 0, stored)
    if used_ptr is not None:
        stated = tl.load(used_ptr + sequence, mask=sequence < sequences, other=0)
        used = tl.minimum(used, tl.maximum(stated, 0))
    return start, stored, used


@triton.jit
def own_query_block(slot, starts_q_ptr, used_q_ptr, starts_k_ptr, used_k_ptr, sequences, rows_q, rows_k, BLOCK: tl.constexpr):
    """What a program of a slot of query rows works on. A stretch's last block comes first: it sees most keys.

    Returns:
        whose slopes it reads (behind the last stretch: the last sequence's), first row in its stretch, start and rows of the
        stretch, the sequence's queries, start of its keys, its keys.
    """
    sequence = sequence_of(slot, starts_q_ptr, sequences, rows_q, BLOCK)
    start_q, stored_q, seqlen_q = stretch_of(sequence, starts_q_ptr, used_q_ptr, sequences, rows_q)
    start_k, _stored_k, seqlen_k = stretch_of(sequence, starts_k_ptr, used_k_ptr, sequences, rows_k)
    place = slot - (start_q // BLOCK + sequence)
    blocks = tl.cdiv(stored_q, BLOCK)
    first_row = tl.where(place < blocks, blocks - 1 - place, place) * BLOCK  # a slot too many: beyond the stretch
    return tl.minimum(sequence, sequences - 1), first_row, start_q, stored_q, seqlen_q, start_k, seqlen_k


@triton.jit
def own_key_block(slot, starts_q_ptr, used_q_ptr, starts_k_ptr, used_k_ptr, sequences, rows_q, rows_k, BLOCK: tl.constexpr):
    """What a program of a slot of keys works on.

    Returns:
        whose slopes it reads (as for queries), first key in its stretch, start of the sequence's queries, its queries, start
        and keys of the stretch, the sequence's keys.
    """
    sequence = sequence_of(slot, starts_k_ptr, sequences, rows_k, BLOCK)
    start_q, _stored_q, seqlen_q = stretch_of(sequence, starts_q_ptr, used_q_ptr, sequences, rows_q)
    start_k, stored_k, seqlen_k = stretch_of(sequence, starts_k_ptr, used_k_ptr, sequences, rows_k)
    first_key = (slot - (start_k // BLOCK + sequence)) * BLOCK
    return tl.minimum(sequence, sequences - 1), first_key, start_q, seqlen_q, start_k, stored_k, seqlen_k


@triton.jit
def rows_from(source, first, stride_row):
    """A pointer to a tensor's row."""
    return source + first.to(tl.int64) * stride_row


@triton.jit
def row_statistic(lse_row, delta_row, rows, seqlen, PACKED: tl.constexpr):
    """Lse and delta of rows; inf and 0 behind the sequence, which is what its padding holds unless other rows follow it."""
    if PACKED:
        lse = tl.load(lse_row + rows, mask=rows < seqlen, other=float("inf"))
        delta = tl.load(delta_row + rows, mask=rows < seqlen, other=0.0)
    else:
        lse = tl.load(lse_row + rows)
        delta = tl.load(delta_row + rows)
    return lse, delta
