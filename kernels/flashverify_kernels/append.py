"""New keys and values go into the cache, in place: token t of batch entry b becomes key cache_seqlens[b] + t.

    k_cache[b, cache_seqlens[b] + t] = k[b, t], turned by the angles of its place if there are any;  v_cache likewise, unturned

A key that the cache has no room for is not written. Rows that are not turned are copied bit for bit.
"""

import torch
import triton
import triton.language as tl

from flashverify_kernels.cache import (
    CACHE_UNSPECIALIZED,
    cache_entry,
    cached_length,
    capacity_of,
    key_rows,
    page_size_of,
)
from flashverify_kernels.launch import EMULATE_BF16, accumulator_of, storage_of
from flashverify_kernels.primitives import as_stored
from flashverify_kernels.rotary import ROWS, rotated_rows
from flashverify_kernels.tiles import padded_head_dim


@triton.jit(do_not_specialize=[*CACHE_UNSPECIALIZED, "heads", "table_rows"])
def append_kernel(
    k_ptr,
    v_ptr,
    k_cache_ptr,
    v_cache_ptr,
    cos_ptr,
    sin_ptr,
    seqlens_ptr,
    entries_ptr,
    table_ptr,
    stride_kb,
    stride_kn,
    stride_kh,
    stride_kd,
    stride_vb,
    stride_vn,
    stride_vh,
    stride_vd,
    stride_ke,
    stride_kr,
    stride_kch,
    stride_kcd,
    stride_ve,
    stride_vr,
    stride_vch,
    stride_vcd,
    stride_cn,
    stride_cd,
    stride_sn,
    stride_sd,
    stride_table,
    seqlen_new,
    heads,
    seqlen,
    capacity,
    table_rows,
    rotary_dim,
    head_dim,
    value_dim,
    RAGGED: tl.constexpr,
    INDEXED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    ROTARY: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    EMULATE_BF16: tl.constexpr,
):
    """One program: ROWS of the rows (token, head) of one batch entry, of k and of v."""
    blocks = tl.cdiv(seqlen_new * heads, ROWS)
    batch = tl.program_id(0) // blocks
    rows = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    token = rows // heads
    head = (rows % heads).to(tl.int64)
    keys = cached_length(seqlens_ptr, batch, seqlen, capacity, RAGGED) + token
    inside = (rows < seqlen_new * heads) & (keys < capacity)
    entry = cache_entry(entries_ptr, batch, INDEXED)
    batch = batch.to(tl.int64)
    first, second = key_rows(keys, inside, entry, table_ptr + batch * stride_table, PAGE_SIZE)

    k_rows = k_ptr + (batch * stride_kb + token.to(tl.int64) * stride_kn + head * stride_kh)
    k_cache_rows = k_cache_ptr + (first * stride_ke + second * stride_kr + head * stride_kch)
    columns = tl.arange(0, BLOCK_D)[None, :]
    written = inside[:, None] & (columns < head_dim)
    if ROTARY:
        turned = rotated_rows(
            k_rows, inside, keys, cos_ptr, sin_ptr, stride_kd, stride_cn, stride_cd, stride_sn, stride_sd,
            table_rows, rotary_dim, head_dim, INTERLEAVED, BLOCK_D, ACCUMULATOR, EMULATE_BF16,
        )  # fmt: skip
        k = as_stored(turned, k_cache_ptr.dtype.element_ty, EMULATE_BF16)
    else:
        k = tl.load(k_rows[:, None] + columns * stride_kd, mask=written, other=0.0)
    tl.store(k_cache_rows[:, None] + columns * stride_kcd, k, mask=written)

    v_rows = v_ptr + (batch * stride_vb + token.to(tl.int64) * stride_vn + head * stride_vh)
    v_cache_rows = v_cache_ptr + (first * stride_ve + second * stride_vr + head * stride_vch)
    value_columns = tl.arange(0, BLOCK_DV)[None, :]
    written = inside[:, None] & (value_columns < value_dim)
    v = tl.load(v_rows[:, None] + value_columns * stride_vd, mask=written, other=0.0)
    tl.store(v_cache_rows[:, None] + value_columns * stride_vcd, v, mask=written)


def append(
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    seqlens: torch.Tensor | None,
    seqlen: int,
    entries: torch.Tensor | None,
    table: torch.Tensor | None,
    interleaved: bool,
) -> None:
    """Launch the append kernel, which writes into k_cache and v_cache.

    Args:
        k_cache: (entries, capacity, H, D), or with a table (pages, page size, H, D); any strides.
        v_cache: likewise, with Dv columns.
        k: (B, tokens, H, D), any strides.
        v: (B, tokens, H, Dv), any strides.
        cos: (positions, rotary_dim / 2), any strides; None: keys are not turned.
        sin: as cos.
        seqlens: (B,), int32, contiguous: how many keys each batch entry's cache holds; None: all hold `seqlen`.
        seqlen: that number.
        entries: (B,), int32, contiguous: which entry of the cache each batch entry uses; None: its own.
        table: (B, pages of a sequence), int32, rows contiguous; None: the cache has no pages.
        interleaved: whether pairs of columns that turn together are neighbours.
    """
    batch, seqlen_new, heads, head_dim = k.shape
    value_dim = v.shape[3]
    programs = batch * triton.cdiv(seqlen_new * heads, ROWS)
    if programs == 0:
        return
    cos_strides, sin_strides = ((0, 0) if angles is None else angles.stride() for angles in (cos, sin))
    unused = k_cache  # stands for a tensor that is not there, and is not read
    append_kernel[(programs,)](
        k, v, k_cache, v_cache,
        *(unused if x is None else x for x in (cos, sin, seqlens, entries, table)),
        *k.stride(), *v.stride(), *k_cache.stride(), *v_cache.stride(), *cos_strides, *sin_strides,
        0 if table is None else table.stride(0),
        seqlen_new, heads, seqlen, capacity_of(k_cache, table),
        0 if cos is None else cos.shape[0],
        0 if cos is None else 2 * cos.shape[1],
        head_dim, value_dim,
        RAGGED=seqlens is not None,
        INDEXED=entries is not None,
        PAGE_SIZE=page_size_of(k_cache, table),
        ROTARY=cos is not None,
        INTERLEAVED=interleaved,
        ROWS=ROWS,
        BLOCK_D=padded_head_dim(head_dim),
        BLOCK_DV=padded_head_dim(value_dim),
        ACCUMULATOR=storage_of(accumulator_of(k.dtype)),
        EMULATE_BF16=EMULATE_BF16,
    )  # fmt: skip
