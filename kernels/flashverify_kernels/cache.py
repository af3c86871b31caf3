"""Where the keys of a cache lie: how many there are, and the offset of each, in a row of its own or in pages.

A cache (entries, capacity, H, D) keeps a sequence in one entry: key j of batch entry b lies at [entry(b), j]. A paged one
(pages, page size, H, D) keeps it in pages anywhere: at [table[b, j // page size], j % page size]. Offsets are of 64 bits.
"""

import torch
import triton
import triton.language as tl

CACHE_UNSPECIALIZED = ["seqlen", "capacity", "stride_table", "seqlen_new"]
"""Arguments about a cache whose value compiles no kernel anew."""


@triton.jit
def cached_length(seqlens_ptr, batch, seqlen, capacity, RAGGED: tl.constexpr):
    """How many keys the cache holds of a batch entry: seqlens[batch] if RAGGED, else seqlen; kept within 0 .. capacity."""
    length = seqlen
    if RAGGED:
        length = tl.load(seqlens_ptr + batch)
    return tl.minimum(tl.maximum(length, 0), capacity)


@triton.jit
def cache_entry(entries_ptr, batch, INDEXED: tl.constexpr):
    """The entry of the cache that a batch entry uses, in 64 bits: entries[batch] if INDEXED, else batch."""
    entry = batch
    if INDEXED:
        entry = tl.load(entries_ptr + batch)
    return tl.cast(entry, tl.int64)


@triton.jit
def key_rows(keys, inside, entry, table_row, PAGE_SIZE: tl.constexpr):
    """Of keys (N,), the first two indices into the cache: entry or page, and the row in it, in 64 bits.

    PAGE_SIZE: keys of a page; 0: the cache has no pages. `table_row` points to the batch entry's row of the page table, of
    which no element is read but those of keys that are `inside`.
    """
    if PAGE_SIZE:
        pages = tl.load(table_row + keys // PAGE_SIZE, mask=inside, other=0)
        return pages.to(tl.int64), (keys % PAGE_SIZE).to(tl.int64)
    else:
        return tl.zeros_like(keys).to(tl.int64) + entry, keys.to(tl.int64)


def capacity_of(k_cache: torch.Tensor, table: torch.Tensor | None) -> int:
    """How many keys of one sequence a cache holds.

    Args:
        k_cache: (entries, capacity, H, D), or with a table (pages, page size, H, D).
        table: (B, pages of a sequence), or None.
    """
    return k_cache.shape[1] if table is None else table.shape[1] * k_cache.shape[1]


def page_size_of(k_cache: torch.Tensor, table: torch.Tensor | None) -> int:
    """Keys of a page, or 0 where the cache has no pages."""
    return 0 if table is None else k_cache.shape[1]
