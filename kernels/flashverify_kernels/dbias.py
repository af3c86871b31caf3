"""The gradient of an additive bias: one program a tile of the bias as it is stored, summed over what it is broadcast over.

    dbias = Σ P·(dP - delta),   dP = dO·Vᵀ

P and delta are those of `backward.py`. The bias is added behind the scale and the soft cap: neither is in its gradient.
"""

import torch
import triton
import triton.language as tl

from flashverify_kernels.dropout import dropped_pairs, marked, score_gradient, unpack_dropout
from flashverify_kernels.launch import UNSPECIALIZED, alibi_strides, expanded_bias, needs_wide_offsets, with_strides
from flashverify_kernels.primitives import (
    alibi_slope,
    biased,
    head_base,
    load_tile,
    probabilities,
    store_tile,
    tanh_and_slope,
    unpack_scale,
    unpack_softcap,
    with_bias,
)
from flashverify_kernels.tiles import TileConfig


@triton.jit(do_not_specialize=[*UNSPECIALIZED, "batch_size", "stored_batches", "stored_heads"])
def dbias_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    dout_ptr,
    rows_lse_ptr,
    rows_delta_ptr,
    slopes_ptr,
    bias_ptr,
    stride_bb,
    stride_bh,
    stride_bm,
    stride_bn,
    dbias_ptr,
    stride_qb,
    stride_qh,
    stride_qn,
    stride_qd,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_kd,
    stride_vb,
    stride_vh,
    stride_vn,
    stride_vd,
    stride_gb,
    stride_gh,
    stride_gn,
    stride_gd,
    stride_ab,
    stride_ah,
    batch_size,
    heads_q,
    group_size,
    stored_batches,
    stored_heads,
    seqlen_q,
    padded_q,
    seqlen_k,
    head_dim,
    causal_offset,
    first_offset,
    scale_bits,
    softcap_bits,
    dropout_ptr,
    largest_dropped,
    dropout_bits,
    DROPOUT: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr,
    BIAS: tl.constexpr,
    SIGNED: tl.constexpr,
    ONE_ROW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    CHECK_D: tl.constexpr,
    CHECK_DV: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    WIDE: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BF16: tl.constexpr,
):
    """One program: BLOCK_N keys of BLOCK_M rows, or of the one row that stands for all, of dbias, which is contiguous.

    A stored entry stands for batch_size // stored_batches of them, a stored head for heads_q // stored_heads. bias_ptr's
    strides are those of the bias expanded to (B, Hq, Nq, Nk), and `g` are dO's.
    """
    key_blocks = tl.cdiv(seqlen_k, BLOCK_N)
    row_blocks = tl.cdiv(seqlen_q, BLOCK_M)
    if ONE_ROW:
        row_blocks = 1
    tile_place = tl.program_id(0) % (key_blocks * row_blocks)
    stored = tl.program_id(0) // (key_blocks * row_blocks)
    own_row = tile_place // key_blocks * BLOCK_M
    first_key = tile_place % key_blocks * BLOCK_N
    keys = first_key + tl.arange(0, BLOCK_N)
    keys_left = seqlen_k - first_key

    sign, scale, _ = unpack_scale(scale_bits, ACCUMULATOR)
    inner_scale = scale
    logit_scale = scale
    if SOFTCAP:
        inner_scale, logit_scale, _ = unpack_softcap(scale_bits, softcap_bits, ACCUMULATOR)
    inverse = 1.0 / logit_scale
    value_dim = head_dim
    if VALUE_DIM:
        value_dim = VALUE_DIM

    # No query before `begin` or from `end` on sees a key of this block.
    begin = 0
    end = seqlen_q
    if CAUSAL:
        begin = tl.minimum(seqlen_q, tl.maximum(0, first_key - causal_offset)) // BLOCK_M * BLOCK_M
    if WINDOW:
        end = tl.minimum(seqlen_q, tl.maximum(0, first_key + BLOCK_N - first_offset))
    if not ONE_ROW:
        end = tl.minimum(end, own_row + BLOCK_M)
        begin = tl.maximum(begin, own_row)
    blocks_seen = tl.cdiv(tl.maximum(0, end - begin), BLOCK_M)
    batches = batch_size // stored_batches
    heads = heads_q // stored_heads
    first_batch = stored // stored_heads * batches
    first_head = stored % stored_heads * heads

    if DROPOUT:
        seed, first_call, kept_scale = unpack_dropout(dropout_ptr, dropout_bits, ACCUMULATOR)
    dbias = tl.zeros((BLOCK_M, BLOCK_N), ACCUMULATOR)
    for step in range(0, batches * heads * blocks_seen):
        first_row = begin + step % blocks_seen * BLOCK_M
        batch_and_head = step // blocks_seen
        batch = first_batch + batch_and_head // heads
        head = first_head + batch_and_head % heads
        head_kv = head // group_size
        query_rows = first_row + tl.arange(0, BLOCK_M)
        rows_left = seqlen_q - first_row
        row = (batch * heads_q + head).to(tl.int64) * padded_q
        lse = tl.load(rows_lse_ptr + row + query_rows)
        delta = tl.load(rows_delta_ptr + row + query_rows)
        q = load_tile(
            head_base(q_ptr, batch, head, stride_qb, stride_qh, False), batch, head, first_row,
            stride_qn, stride_qd, rows_left, head_dim, BLOCK_M, BLOCK_D, True, CHECK_D, WIDE, False, BF16,
        )  # fmt: skip
        if SIGNED:
            q = (q * sign).to(q.dtype)
        k = load_tile(
            head_base(k_ptr, batch, head_kv, stride_kb, stride_kh, False), batch, head_kv, first_key,
            stride_kn, stride_kd, keys_left, head_dim, BLOCK_N, BLOCK_D, True, CHECK_D, WIDE, False, BF16,
        )  # fmt: skip
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACCUMULATOR)  # (BLOCK_M, BLOCK_N)
        if SOFTCAP:
            scores, _slope = tanh_and_slope(scores * inner_scale, ACCUMULATOR)
        if ALIBI:
            slope = alibi_slope(slopes_ptr, batch, head, stride_ab, stride_ah, logit_scale, ACCUMULATOR)
            places = query_rows + (seqlen_k - seqlen_q)
            scores = biased(scores, slope, places[:, None], keys[None, :], ACCUMULATOR)
        scores = with_bias(
            scores, head_base(bias_ptr, batch, head, stride_bb, stride_bh, False), first_row, first_key,
            stride_bm, stride_bn, rows_left, keys_left, inverse,
            BIAS, BLOCK_M, BLOCK_N, True, True, WIDE, ACCUMULATOR, BF16,
        )  # fmt: skip
        seen = (scores != float("-inf")) & (lse != float("inf"))[:, None]  # padding rows have lse = inf
        if CAUSAL:
            seen = seen & (keys[None, :] <= query_rows[:, None] + causal_offset)
        if WINDOW:
            seen = seen & (keys[None, :] >= query_rows[:, None] + first_offset)
        p = tl.where(seen, probabilities(scores, lse[:, None], logit_scale), 0.0)
        dout = load_tile(
            head_base(dout_ptr, batch, head, stride_gb, stride_gh, False), batch, head, first_row,
            stride_gn, stride_gd, rows_left, value_dim, BLOCK_M, BLOCK_DV, True, CHECK_DV, WIDE, False, BF16,
        )  # fmt: skip
        v = load_tile(
            head_base(v_ptr, batch, head_kv, stride_vb, stride_vh, False), batch, head_kv, first_key,
            stride_vn, stride_vd, keys_left, value_dim, BLOCK_N, BLOCK_DV, True, CHECK_DV, WIDE, False, BF16,
        )  # fmt: skip
        dp = tl.dot(dout, tl.trans(v), input_precision=PRECISION, out_dtype=ACCUMULATOR)
        if DROPOUT:
            dropped = dropped_pairs(
                seed, first_call, batch * heads_q + head, first_row, first_key, largest_dropped, BLOCK_M, BLOCK_N, False
            )
            ds = score_gradient(marked(p, dropped, DROPOUT), dropped, dp, delta[:, None], kept_scale, DROPOUT)
        else:
            ds = p * (dp - delta[:, None])
        dbias += tl.where(p == 0.0, 0.0, ds)

    if ONE_ROW:
        base = dbias_ptr + stored.to(tl.int64) * seqlen_k + first_key
        row_sums = tl.sum(dbias, 0)[None, :]
        store_tile(base, row_sums, 0, seqlen_k, 1, 1, keys_left, 1, BLOCK_N, WIDE, BF16)
    else:
        base = dbias_ptr + stored.to(tl.int64) * seqlen_q * seqlen_k + first_key
        store_tile(base, dbias, own_row, seqlen_k, 1, seqlen_q - own_row, keys_left, BLOCK_M, BLOCK_N, WIDE, BF16)


def bias_gradient(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rows_lse: torch.Tensor,
    rows_delta: torch.Tensor,
    bias: torch.Tensor,
    alibi: torch.Tensor | None,
    tile: TileConfig,
    output_dtype: torch.dtype | None,
    sizes: tuple[int, ...],
    options: dict[str, object],
) -> torch.Tensor:
    """Launch the kernel of dbias.

    Args:
        dout: cotangent of out, (B, Hq, Nq, Dv), any strides.
        q: (B, Hq, Nq, D), any strides.
        k: (B, Hkv, Nk, D), any strides.
        v: (B, Hkv, Nk, Dv), any strides.
        rows_lse: of every row, as `delta.row_statistics` gives it.
        rows_delta: likewise.
        bias: (1|B, 1|Hq, 1|Nq, Nk), floating, any strides.
        alibi: slopes (B, Hq), or None.
        tile: block sizes and warps; stages don't count, since a tile of the bias needs one visit of most others.
        output_dtype: dtype that the gradient is rounded to; None: that of bias.
        sizes: as for the other kernels of the backward pass, from seqlen_q to the bits of dropout.
        options: as for them.

    Returns:
        dbias, shaped like bias, contiguous.
    """
    dbias = torch.empty(bias.shape, dtype=output_dtype or bias.dtype, device=bias.device)
    stored_batches, stored_heads, rows, seqlen_k = bias.shape
    one_row = rows == 1
    row_blocks = 1 if one_row else triton.cdiv(rows, tile.block_m)
    programs = stored_batches * stored_heads * row_blocks * triton.cdiv(seqlen_k, tile.block_n)
    if programs == 0:
        return dbias
    expanded = expanded_bias(bias, q, k)
    options = {name: value for name, value in options.items() if name != "STORAGE"}  # nothing is rounded for a product
    block_d, block_dv = options["BLOCK_D"], options["BLOCK_DV"]
    rows_of, keys_of = ((q, block_d), (dout, block_dv)), ((k, block_d), (v, block_dv))
    tiles = (
        *((x, tile.block_m, columns) for x, columns in rows_of),
        *((x, tile.block_n, columns) for x, columns in keys_of),
        *((x, tile.block_m, tile.block_n) for x in (expanded, dbias)),
    )
    dbias_kernel[(programs,)](
        q, k, v, dout, rows_lse, rows_delta, rows_lse if alibi is None else alibi, *with_strides(expanded, 4), dbias,
        *q.stride(), *k.stride(), *v.stride(), *dout.stride(), *alibi_strides(alibi),
        q.shape[0], q.shape[1], q.shape[1] // k.shape[1], stored_batches, stored_heads, *sizes,
        ONE_ROW=one_row, WIDE=needs_wide_offsets(*tiles),
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, num_warps=tile.num_warps, num_stages=1, **options,
    )  # fmt: skip
    return dbias
