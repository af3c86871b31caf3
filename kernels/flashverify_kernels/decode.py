"""FlashAttention forward on a cache of keys, for few queries: the keys are split, and the parts merged.

    part s:  m_s = maximum of S,  p = exp2((S - m_s)·scale·log2 e),  l_s = Σ p,  acc_s = Σ p·V,  over its share of the keys
    merged:  m = max m_s,  w_s = exp2((m_s - m)·scale·log2 e),  l = Σ w_s·l_s,  out = Σ w_s·acc_s / l,  lse = m·scale + ln l

S, its soft cap and its linear bias are those of `forward`, and so is the softmax. A query head's group shares its keys, so the
rows (query, head of the group) make one tile; and a grid over batch entries and key heads alone would leave most of a GPU idle,
so the keys of each are dealt out to several programs (Flash-Decoding: Dao, Haziza, Massa and Sizov, 2023). Parts stay
unnormalised, with their maxima of raw scores: their weights are as exact as those of two key blocks. A part without keys has
m_s = -inf and weighs nothing. How long a sequence is, the kernel alone knows: it deals out what there is to its parts.
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
from flashverify_kernels.launch import (
    EMULATE_BF16,
    accumulator_of,
    alibi_strides,
    dot_precision,
    scale_bits,
    storage_of,
)
from flashverify_kernels.merge import merge
from flashverify_kernels.primitives import (
    LN2,
    alibi_slope,
    as_operand,
    as_stored,
    bf16_to_fp32,
    biased,
    tanh_and_slope,
    unpack_scale,
    unpack_softcap,
)
from flashverify_kernels.tiles import TileConfig, padded_head_dim

UNSPECIALIZED = [
    *CACHE_UNSPECIALIZED,
    "heads_kv",
    "group_size",
    "seqlen_q",
    "splits",
    "right",
    "left",
    "scale_bits",
    "softcap_bits",
]


@triton.jit
def load_keys(
    base, keys, inside, entry, table_row, start, stride_entry, stride_row, stride_column, columns_left,
    PAGE_SIZE: tl.constexpr,
    ONE_PAGE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHECK_COLUMNS: tl.constexpr,
    EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    """Tile (BLOCK_N, COLUMNS) of a head's keys or values from `start` on; those not `inside` are not read, and 0.

    ONE_PAGE: a page holds a whole tile, so that one look into the page table finds it.
    """
    if ONE_PAGE:
        page = tl.load(table_row + start // PAGE_SIZE).to(tl.int64)
        base += page * stride_entry + tl.cast(start % PAGE_SIZE, tl.int64) * stride_row
        rows = tl.arange(0, BLOCK_N).to(tl.int64) * stride_row
    else:
        first, second = key_rows(keys, inside, entry, table_row, PAGE_SIZE)
        rows = first * stride_entry + second * stride_row
    columns = tl.arange(0, COLUMNS)
    mask = inside[:, None]
    if CHECK_COLUMNS:
        mask = mask & (columns < columns_left)[None, :]
    tile = tl.load(base + rows[:, None] + (columns * stride_column)[None, :], mask=mask, other=0.0)
    if EMULATE_BF16:
        tile = bf16_to_fp32(tile)
    return tile


@triton.jit(do_not_specialize=UNSPECIALIZED)
def decode_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    sum_ptr,
    seqlens_ptr,
    entries_ptr,
    leftpad_ptr,
    table_ptr,
    slopes_ptr,
    stride_qb,
    stride_qn,
    stride_qh,
    stride_qd,
    stride_ke,
    stride_kr,
    stride_kh,
    stride_kd,
    stride_ve,
    stride_vr,
    stride_vh,
    stride_vd,
    stride_os,
    stride_ob,
    stride_on,
    stride_oh,
    stride_od,
    stride_ab,
    stride_ah,
    stride_table,
    heads_kv,
    group_size,
    seqlen_q,
    seqlen_new,
    seqlen,
    capacity,
    head_dim,
    value_dim,
    splits,
    right,
    left,
    scale_bits,
    softcap_bits,
    RAGGED: tl.constexpr,
    INDEXED: tl.constexpr,
    PADDED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    ONE_PAGE: tl.constexpr,
    SPLIT: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr,
    SIGNED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    CHECK_D: tl.constexpr,
    CHECK_DV: tl.constexpr,
    STORAGE: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE_BF16: tl.constexpr,
    BF16: tl.constexpr,
):
    """One program: BLOCK_M rows (query, head of the group) of one key head, against one share of its keys.

    Programs of one share and all heads follow one another, since their keys are neighbours in memory. SPLIT: out_ptr takes
    acc, lse_ptr m, and sum_ptr l; else they take out and lse. Query i sees no key more than `right` after its place if CAUSAL,
    and none more than `left` before it if WINDOW; its place is i + keys - seqlen_q.
    """
    row_blocks = tl.cdiv(seqlen_q * group_size, BLOCK_M)
    program = tl.program_id(0)
    first_row = program % row_blocks * BLOCK_M
    head_kv = program // row_blocks % heads_kv
    split = program // (row_blocks * heads_kv) % splits
    batch = program // (row_blocks * heads_kv) // splits

    rows = first_row + tl.arange(0, BLOCK_M)
    is_row = rows < seqlen_q * group_size
    queries = rows // group_size
    # Of rows beyond the last one too, the head is one that exists.
    heads = head_kv * group_size + rows % group_size
    wide_batch = batch.to(tl.int64)

    length = cached_length(seqlens_ptr, batch, seqlen, capacity, RAGGED) + seqlen_new
    first_place = length - seqlen_q
    places = queries + first_place
    begin = 0
    if PADDED:
        begin = tl.maximum(tl.load(leftpad_ptr + batch), 0)
    end = tl.minimum(length, capacity)
    if CAUSAL:
        last_query = (tl.minimum(first_row + BLOCK_M, seqlen_q * group_size) - 1) // group_size
        end = tl.minimum(end, first_place + last_query + right + 1)
    if WINDOW:
        begin = tl.maximum(begin, first_place + first_row // group_size - left)
    first_block = begin // BLOCK_N
    blocks = tl.where(end > begin, tl.cdiv(tl.maximum(end, 0), BLOCK_N) - first_block, 0)
    share = tl.cdiv(blocks, splits)
    share_begin = first_block + tl.minimum(split * share, blocks)
    share_end = first_block + tl.minimum((split + 1) * share, blocks)

    sign, scale, exponent_scale = unpack_scale(scale_bits, ACCUMULATOR)
    inner_scale = scale
    if SOFTCAP:
        inner_scale, scale, exponent_scale = unpack_softcap(scale_bits, softcap_bits, ACCUMULATOR)
    slope = tl.zeros((BLOCK_M,), ACCUMULATOR)
    if ALIBI:
        slope = alibi_slope(slopes_ptr, batch, heads, stride_ab, stride_ah, scale, ACCUMULATOR)

    columns = tl.arange(0, BLOCK_D)
    q_rows = q_ptr + (wide_batch * stride_qb + queries.to(tl.int64) * stride_qn + heads.to(tl.int64) * stride_qh)
    q_mask = is_row[:, None] & (columns < head_dim)[None, :]
    q = tl.load(q_rows[:, None] + (columns * stride_qd)[None, :], mask=q_mask, other=0.0)
    if BF16:
        q = bf16_to_fp32(q)
    if SIGNED:
        q = (q * sign).to(q.dtype)

    entry = cache_entry(entries_ptr, batch, INDEXED)
    table_row = table_ptr + wide_batch * stride_table
    k_base = k_ptr + head_kv.to(tl.int64) * stride_kh
    v_base = v_ptr + head_kv.to(tl.int64) * stride_vh
    accumulator = tl.zeros((BLOCK_M, BLOCK_DV), ACCUMULATOR)
    running_max = tl.full((BLOCK_M,), float("-inf"), ACCUMULATOR)
    running_sum = tl.zeros((BLOCK_M,), ACCUMULATOR)
    for start in range(share_begin * BLOCK_N, share_end * BLOCK_N, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        inside = (keys >= begin) & (keys < end)
        k = load_keys(
            k_base, keys, inside, entry, table_row, start, stride_ke, stride_kr, stride_kd, head_dim,
            PAGE_SIZE, ONE_PAGE, BLOCK_N, BLOCK_D, CHECK_D, BF16,
        )  # fmt: skip
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACCUMULATOR)  # (BLOCK_M, BLOCK_N)
        if SOFTCAP:
            scores, _slope = tanh_and_slope(scores * inner_scale, ACCUMULATOR)
        if ALIBI:
            scores = biased(scores, slope[:, None], places[:, None], keys[None, :], ACCUMULATOR)
        seen = inside[None, :]
        if CAUSAL:
            seen = seen & (keys[None, :] <= places[:, None] + right)
        if WINDOW:
            seen = seen & (keys[None, :] >= places[:, None] - left)
        scores = tl.where(seen, scores, float("-inf"))
        new_max = tl.maximum(running_max, tl.max(scores, 1))
        # A row that has seen no key keeps -inf as its maximum; -inf - 0 is defined, -inf - (-inf) is not.
        shift = tl.where(new_max == float("-inf"), 0.0, new_max)
        p = tl.exp2((scores - shift[:, None]) * exponent_scale)
        rescale = tl.exp2((running_max - shift) * exponent_scale)
        running_sum = running_sum * rescale + tl.sum(p, 1)
        accumulator = accumulator * rescale[:, None]
        v = load_keys(
            v_base, keys, inside, entry, table_row, start, stride_ve, stride_vr, stride_vd, value_dim,
            PAGE_SIZE, ONE_PAGE, BLOCK_N, BLOCK_DV, CHECK_DV, BF16,
        )  # fmt: skip
        accumulator = tl.dot(as_operand(p, STORAGE, BF16), v, accumulator, input_precision=PRECISION, out_dtype=ACCUMULATOR)
        running_max = new_max

    heads_q = heads_kv * group_size
    batches = tl.num_programs(0) // (row_blocks * heads_kv * splits)
    row_places = ((split.to(tl.int64) * batches + batch) * heads_q + heads) * seqlen_q + queries
    if SPLIT:
        tl.store(lse_ptr + row_places, running_max, mask=is_row)
        tl.store(sum_ptr + row_places, running_sum, mask=is_row)
        out = accumulator
    else:
        saw_no_key = running_sum == 0.0
        divisor = tl.where(saw_no_key, 1.0, running_sum)
        out = accumulator / divisor[:, None]
        lse = tl.where(saw_no_key, float("-inf"), running_max * scale + tl.log2(divisor) * LN2)
        tl.store(lse_ptr + row_places, lse, mask=is_row)
    value_columns = tl.arange(0, BLOCK_DV)
    out_rows = split.to(tl.int64) * stride_os + wide_batch * stride_ob
    out_rows += queries.to(tl.int64) * stride_on + heads.to(tl.int64) * stride_oh
    out_mask = is_row[:, None] & (value_columns < value_dim)[None, :]
    rounded = as_stored(out, out_ptr.dtype.element_ty, EMULATE_BF16)
    tl.store(out_ptr + out_rows[:, None] + (value_columns * stride_od)[None, :], rounded, mask=out_mask)


def decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    seqlens: torch.Tensor | None,
    seqlen: int,
    seqlen_new: int,
    entries: torch.Tensor | None,
    leftpad: torch.Tensor | None,
    table: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    alibi: torch.Tensor | None,
    right: int | None,
    left: int | None,
    splits: int,
    precision: str,
    tile: TileConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the decode kernel, and the merge kernel if the keys are split.

    Args:
        q: (B, Nq, Hq, D), any strides.
        k_cache: (entries, capacity, Hkv, D), or with a table (pages, page size, Hkv, D); any strides.
        v_cache: likewise, with Dv columns.
        seqlens: (B,), int32, contiguous: how many keys each batch entry's cache held before any were appended; None: `seqlen`.
        seqlen: that number.
        seqlen_new: how many have been appended.
        entries: (B,), int32, contiguous: which entry of the cache each batch entry uses; None: its own.
        leftpad: (B,), int32, contiguous: how many keys at the front of each are hidden; None: none.
        table: (B, pages of a sequence), int32, rows contiguous; None: the cache has no pages.
        scale: softmax scale.
        softcap: logits become softcap·tanh(logit / softcap); None: they stay.
        alibi: slopes (B, Hq), float32, any strides; None: no biases.
        right: a query sees no key more than this after its place; None: no such limit.
        left: a query sees no key more than this before its place; None: no such limit.
        splits: into how many parts the keys are split, at least 1.
        precision: Triton's input precision of float32 products.
        tile: block sizes, warps and stages.

    Returns:
        out (B, Nq, Hq, Dv), contiguous; lse (B, Hq, Nq), float32 (float64 for float64 inputs).
    """
    batch, seqlen_q, heads_q, head_dim = q.shape
    heads_kv, value_dim = k_cache.shape[2], v_cache.shape[3]
    accumulator = accumulator_of(q.dtype)
    out = torch.empty((batch, seqlen_q, heads_q, value_dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((batch, heads_q, seqlen_q), dtype=accumulator, device=q.device)
    programs = batch * heads_kv * triton.cdiv(seqlen_q * (heads_q // heads_kv), tile.block_m) * splits
    if programs == 0:
        return out, lse
    if splits == 1:
        parts, maxima, sums, part_strides = out, lse, lse, (0, *out.stride())
    else:
        parts = torch.empty((splits, batch, heads_q, seqlen_q, value_dim), dtype=accumulator, device=q.device)
        maxima, sums = (torch.empty((splits, batch, heads_q, seqlen_q), dtype=accumulator, device=q.device) for _ in range(2))
        part_strides = parts.transpose(2, 3).stride()
    block_d, block_dv = padded_head_dim(head_dim), padded_head_dim(value_dim)
    page_size = page_size_of(k_cache, table)
    decode_kernel[(programs,)](
        q, k_cache, v_cache, parts, maxima, sums,
        *(lse if x is None else x for x in (seqlens, entries, leftpad, table, alibi)),
        *q.stride(), *k_cache.stride(), *v_cache.stride(), *part_strides, *alibi_strides(alibi),
        0 if table is None else table.stride(0),
        heads_kv, heads_q // heads_kv, seqlen_q, seqlen_new, seqlen, capacity_of(k_cache, table), head_dim, value_dim, splits,
        0 if right is None else right,
        0 if left is None else left,
        scale_bits(scale),
        scale_bits(0.0 if softcap is None else softcap),
        RAGGED=seqlens is not None,
        INDEXED=entries is not None,
        PADDED=leftpad is not None,
        PAGE_SIZE=page_size,
        ONE_PAGE=page_size > 0 and page_size % tile.block_n == 0,
        SPLIT=splits > 1,
        CAUSAL=right is not None,
        WINDOW=left is not None,
        SOFTCAP=softcap is not None,
        ALIBI=alibi is not None,
        SIGNED=scale <= 0.0,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_D=block_d,
        BLOCK_DV=block_dv,
        CHECK_D=block_d != head_dim,
        CHECK_DV=block_dv != value_dim,
        STORAGE=storage_of(q.dtype),
        ACCUMULATOR=storage_of(accumulator),
        PRECISION=dot_precision(precision),
        EMULATE_BF16=EMULATE_BF16,
        BF16=EMULATE_BF16 and q.dtype == torch.bfloat16,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )  # fmt: skip
    if splits > 1:
        merge(parts, maxima, sums, out, lse, scale, softcap)
    return out, lse
