"""FlashAttention backward: dQ, dK and dV from the stored lse, deterministic and without atomics.

    P = exp(scale·S - lse),   delta = Σ_d dO·out - dlse,   dP = dO·Vᵀ,   dS = P·(dP - delta)
    dV = Pᵀ·dO,   dQ = scale·dS·K,   dK = scale·dSᵀ·Q

With a soft cap c, t = tanh(S·scale / c) takes the place of S and c that of scale in P, and dS gets the factor 1 - t², formed
without cancellation.

The recomputation from lse is that of FlashAttention (Dao et al., arXiv 2205.14135). Two kernels own their outputs: one program
of `dkdv_kernel` a block of keys, summing over the query heads of its group, one program of `dq_kernel` a block of query rows.
The exponent is formed as (round(S·scale) - lse)·log2 e with contraction off: lse of a row that one key dominates is that same
rounded product, so its difference stays exact for logits of any size. P and dS are rounded to the inputs' dtype for products.
"""

import torch
import triton
import triton.language as tl

from flashverify_kernels.delta import row_statistics
from flashverify_kernels.launch import (
    EMULATE_BF16,
    UNSPECIALIZED,
    TileOf,
    dot_precision,
    heads_at_once,
    needs_wide_offsets,
    output_like,
    scale_bits,
    storage_of,
    tile_sources,
)
from flashverify_kernels.primitives import (
    LOG2E,
    as_operand,
    block_and_head,
    head_base,
    key_limits,
    load_tile,
    store_tile,
    tanh_and_slope,
    unpack_scale,
    unpack_softcap,
)
from flashverify_kernels.tiles import TileConfig, padded_head_dim


@triton.jit
def probabilities(scores, lse, scale):
    """P = exp(scale·S - lse); lse = +inf (padding rows) gives 0.

    Never above 1: a score that is summed in another order than forward's may exceed lse by ulps, which are large for
    large logits. NaN stays NaN.
    """
    exponent = tl.minimum(scores * scale - lse, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.exp2(exponent * LOG2E)


@triton.jit
def accumulate_dkdv(
    dk,
    dv,
    k,
    v,
    q_base,
    dout_base,
    lse_row,
    delta_row,
    batch,
    head,
    stride_qn,
    stride_qd,
    stride_gn,
    stride_gd,
    first_query,
    last_query,
    keys,
    seqlen_q,
    head_dim,
    value_dim,
    causal_offset,
    first_offset,
    inner_scale,
    scale,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    CHECK_D: tl.constexpr,
    CHECK_DV: tl.constexpr,
    WIDE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    STORAGE: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BF16: tl.constexpr,
):
    """Add what query rows first_query .. last_query of one head contribute to dK (unscaled) and dV of a key block."""
    for start in range(first_query, last_query, BLOCK_M):
        queries = start + tl.arange(0, BLOCK_M)
        rows_left = seqlen_q - start
        lse = tl.load(lse_row + queries)
        delta = tl.load(delta_row + queries)
        q = load_tile(
            q_base, batch, head, start, stride_qn, stride_qd, rows_left, head_dim,
            BLOCK_M, BLOCK_D, True, CHECK_D, WIDE, DESCRIPTORS, BF16,
        )  # fmt: skip
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION, out_dtype=ACCUMULATOR)  # (BLOCK_N, BLOCK_M)
        if SOFTCAP:
            scores, slope = tanh_and_slope(scores * inner_scale, ACCUMULATOR)
        p = probabilities(scores, lse[None, :], scale)
        if MASKED:
            if CAUSAL:
                seen = keys[:, None] <= queries[None, :] + causal_offset
                p = tl.where(seen, p, 0.0)
            if WINDOW:
                p = tl.where(keys[:, None] >= queries[None, :] + first_offset, p, 0.0)
        dout = load_tile(
            dout_base, batch, head, start, stride_gn, stride_gd, rows_left, value_dim,
            BLOCK_M, BLOCK_DV, True, CHECK_DV, WIDE, DESCRIPTORS, BF16,
        )  # fmt: skip
        dv = tl.dot(as_operand(p, STORAGE, BF16), dout, dv, input_precision=PRECISION, out_dtype=ACCUMULATOR)
        dp = tl.dot(v, tl.trans(dout), input_precision=PRECISION, out_dtype=ACCUMULATOR)
        ds = p * (dp - delta[None, :])
        if SOFTCAP:
            ds = ds * slope
        dk = tl.dot(as_operand(ds, STORAGE, BF16), q, dk, input_precision=PRECISION, out_dtype=ACCUMULATOR)
    return dk, dv


@triton.jit(do_not_specialize=UNSPECIALIZED)
def dkdv_kernel(
    q_source,
    k_source,
    v_source,
    dout_source,
    rows_lse_ptr,
    rows_delta_ptr,
    dk_ptr,
    dv_ptr,
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
    stride_xb,
    stride_xh,
    stride_xn,
    stride_xd,
    heads_kv,
    group_size,
    section,
    seqlen_q,
    padded_q,
    seqlen_k,
    head_dim,
    causal_offset,
    first_offset,
    scale_bits,
    softcap_bits,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SIGNED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    CHECK_D: tl.constexpr,
    CHECK_DV: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    WIDE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    STORAGE: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BF16: tl.constexpr,
):
    """One program: dK and dV of BLOCK_N keys of one key head. Strides `g` are dO's, `x` those of dk and dv alike.

    VALUE_DIM: columns of v and dO, or 0 if they are those of q and k.
    """
    key_blocks = tl.cdiv(seqlen_k, BLOCK_N)
    key_block, batch_and_head = block_and_head(key_blocks, section)
    batch = batch_and_head // heads_kv
    head_kv = batch_and_head % heads_kv

    first_key = key_block * BLOCK_N
    keys = first_key + tl.arange(0, BLOCK_N)
    keys_left = seqlen_k - first_key
    sign, scale, _ = unpack_scale(scale_bits, ACCUMULATOR)
    inner_scale = scale
    logit_scale = scale
    if SOFTCAP:
        inner_scale, logit_scale, _ = unpack_softcap(scale_bits, softcap_bits, ACCUMULATOR)
    value_dim = head_dim
    if VALUE_DIM:
        value_dim = VALUE_DIM

    k = load_tile(
        head_base(k_source, batch, head_kv, stride_kb, stride_kh, DESCRIPTORS), batch, head_kv, first_key,
        stride_kn, stride_kd, keys_left, head_dim, BLOCK_N, BLOCK_D, True, CHECK_D, WIDE, DESCRIPTORS, BF16,
    )  # fmt: skip
    v = load_tile(
        head_base(v_source, batch, head_kv, stride_vb, stride_vh, DESCRIPTORS), batch, head_kv, first_key,
        stride_vn, stride_vd, keys_left, value_dim, BLOCK_N, BLOCK_DV, True, CHECK_DV, WIDE, DESCRIPTORS, BF16,
    )  # fmt: skip
    if SIGNED:
        k = (k * sign).to(k.dtype)

    # No query before `begin` or from `end` on sees a key of this block; all of `full_begin` .. `full_end` see all of them.
    begin = 0
    full_begin = 0
    full_end = seqlen_q
    end = seqlen_q
    if CAUSAL:
        begin = tl.minimum(seqlen_q, tl.maximum(0, first_key - causal_offset)) // BLOCK_M * BLOCK_M
        last_diagonal = tl.maximum(0, first_key + BLOCK_N - 1 - causal_offset)
        full_begin = tl.minimum(tl.cdiv(last_diagonal, BLOCK_M) * BLOCK_M, tl.cdiv(seqlen_q, BLOCK_M) * BLOCK_M)
    if WINDOW:
        end = tl.minimum(seqlen_q, tl.maximum(0, first_key + BLOCK_N - first_offset))
        full_end = tl.minimum(seqlen_q, tl.maximum(0, first_key + 1 - first_offset)) // BLOCK_M * BLOCK_M
        full_end = tl.maximum(full_begin, full_end)

    dk = tl.zeros((BLOCK_N, BLOCK_D), ACCUMULATOR)
    dv = tl.zeros((BLOCK_N, BLOCK_DV), ACCUMULATOR)
    for member in range(0, group_size):
        head = head_kv * group_size + member
        q_base = head_base(q_source, batch, head, stride_qb, stride_qh, DESCRIPTORS)
        dout_base = head_base(dout_source, batch, head, stride_gb, stride_gh, DESCRIPTORS)
        row = (batch * heads_kv * group_size + head).to(tl.int64) * padded_q
        if CAUSAL:
            dk, dv = accumulate_dkdv(
                dk, dv, k, v, q_base, dout_base, rows_lse_ptr + row, rows_delta_ptr + row, batch, head,
                stride_qn, stride_qd, stride_gn, stride_gd,
                begin, tl.minimum(full_begin, end) if WINDOW else full_begin, keys, seqlen_q, head_dim, value_dim,
                causal_offset, first_offset, inner_scale, logit_scale,
                True, CAUSAL, WINDOW, SOFTCAP, BLOCK_M, BLOCK_D, BLOCK_DV, CHECK_D, CHECK_DV,
                WIDE, DESCRIPTORS, STORAGE, ACCUMULATOR, PRECISION, BF16,
            )  # fmt: skip
        dk, dv = accumulate_dkdv(
            dk, dv, k, v, q_base, dout_base, rows_lse_ptr + row, rows_delta_ptr + row, batch, head,
            stride_qn, stride_qd, stride_gn, stride_gd,
            full_begin, full_end, keys, seqlen_q, head_dim, value_dim, causal_offset, first_offset, inner_scale, logit_scale,
            False, CAUSAL, WINDOW, SOFTCAP, BLOCK_M, BLOCK_D, BLOCK_DV, CHECK_D, CHECK_DV,
            WIDE, DESCRIPTORS, STORAGE, ACCUMULATOR, PRECISION, BF16,
        )  # fmt: skip
        if WINDOW:
            dk, dv = accumulate_dkdv(
                dk, dv, k, v, q_base, dout_base, rows_lse_ptr + row, rows_delta_ptr + row, batch, head,
                stride_qn, stride_qd, stride_gn, stride_gd,
                full_end, end, keys, seqlen_q, head_dim, value_dim, causal_offset, first_offset, inner_scale, logit_scale,
                True, CAUSAL, WINDOW, SOFTCAP, BLOCK_M, BLOCK_D, BLOCK_DV, CHECK_D, CHECK_DV,
                WIDE, DESCRIPTORS, STORAGE, ACCUMULATOR, PRECISION, BF16,
            )  # fmt: skip

    dk_base = head_base(dk_ptr, batch, head_kv, stride_xb, stride_xh, False)
    dk = dk * (scale * sign)
    store_tile(dk_base, dk, first_key, stride_xn, stride_xd, keys_left, head_dim, BLOCK_N, BLOCK_D, WIDE, BF16)
    if VALUE_DIM:  # laid out like dk, as B,N,H,D
        stride_xh = VALUE_DIM
        stride_xn = heads_kv * VALUE_DIM
        stride_xb = seqlen_k.to(tl.int64) * stride_xn
    dv_base = head_base(dv_ptr, batch, head_kv, stride_xb, stride_xh, False)
    store_tile(dv_base, dv, first_key, stride_xn, stride_xd, keys_left, value_dim, BLOCK_N, BLOCK_DV, WIDE, BF16)


@triton.jit
def accumulate_dq(
    dq,
    q,
    dout,
    lse,
    delta,
    k_base,
    v_base,
    batch,
    head_kv,
    stride_kn,
    stride_kd,
    stride_vn,
    stride_vd,
    first_key,
    last_key,
    query_rows,
    seqlen_k,
    head_dim,
    value_dim,
    causal_offset,
    first_offset,
    inner_scale,
    scale,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    CHECK_D: tl.constexpr,
    CHECK_DV: tl.constexpr,
    WIDE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    STORAGE: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BF16: tl.constexpr,
):
    """Add what keys first_key .. last_key contribute to dQ (unscaled) of a row block."""
    for start in range(first_key, last_key, BLOCK_N):
        keys_left = seqlen_k - start
        k = load_tile(
            k_base, batch, head_kv, start, stride_kn, stride_kd, keys_left, head_dim,
            BLOCK_N, BLOCK_D, MASKED, CHECK_D, WIDE, DESCRIPTORS, BF16,
        )  # fmt: skip
        v = load_tile(
            v_base, batch, head_kv, start, stride_vn, stride_vd, keys_left, value_dim,
            BLOCK_N, BLOCK_DV, MASKED, CHECK_DV, WIDE, DESCRIPTORS, BF16,
        )  # fmt: skip
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACCUMULATOR)  # (BLOCK_M, BLOCK_N)
        if SOFTCAP:
            scores, slope = tanh_and_slope(scores * inner_scale, ACCUMULATOR)
        p = probabilities(scores, lse[:, None], scale)
        dp = tl.dot(dout, tl.trans(v), input_precision=PRECISION, out_dtype=ACCUMULATOR)
        ds = p * (dp - delta[:, None])
        if SOFTCAP:
            ds = ds * slope
        if MASKED:
            keys = start + tl.arange(0, BLOCK_N)
            seen = (keys < seqlen_k)[None, :]
            if CAUSAL:
                seen = seen & (keys[None, :] <= query_rows[:, None] + causal_offset)
            if WINDOW:
                seen = seen & (keys[None, :] >= query_rows[:, None] + first_offset)
            ds = tl.where(seen, ds, 0.0)
        dq = tl.dot(as_operand(ds, STORAGE, BF16), k, dq, input_precision=PRECISION, out_dtype=ACCUMULATOR)
    return dq


@triton.jit(do_not_specialize=UNSPECIALIZED)
def dq_kernel(
    q_source,
    k_source,
    v_source,
    dout_source,
    rows_lse_ptr,
    rows_delta_ptr,
    dq_ptr,
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
    stride_xb,
    stride_xh,
    stride_xn,
    stride_xd,
    heads_q,
    group_size,
    section,
    seqlen_q,
    padded_q,
    seqlen_k,
    head_dim,
    causal_offset,
    first_offset,
    scale_bits,
    softcap_bits,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SIGNED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    CHECK_D: tl.constexpr,
    CHECK_DV: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    WIDE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    STORAGE: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BF16: tl.constexpr,
):
    """One program: dQ of BLOCK_M query rows of one head. Strides `g` are dO's, `x` dq's. VALUE_DIM as for dK and dV."""
    row_blocks = tl.cdiv(seqlen_q, BLOCK_M)
    place, batch_and_head = block_and_head(row_blocks, section)
    batch = batch_and_head // heads_q
    head = batch_and_head % heads_q
    head_kv = head // group_size

    first_row = (row_blocks - 1 - place) * BLOCK_M
    query_rows = first_row + tl.arange(0, BLOCK_M)
    rows_left = seqlen_q - first_row
    sign, scale, _ = unpack_scale(scale_bits, ACCUMULATOR)
    inner_scale = scale
    logit_scale = scale
    if SOFTCAP:
        inner_scale, logit_scale, _ = unpack_softcap(scale_bits, softcap_bits, ACCUMULATOR)
    value_dim = head_dim
    if VALUE_DIM:
        value_dim = VALUE_DIM

    q = load_tile(
        head_base(q_source, batch, head, stride_qb, stride_qh, DESCRIPTORS), batch, head, first_row,
        stride_qn, stride_qd, rows_left, head_dim, BLOCK_M, BLOCK_D, True, CHECK_D, WIDE, DESCRIPTORS, BF16,
    )  # fmt: skip
    dout = load_tile(
        head_base(dout_source, batch, head, stride_gb, stride_gh, DESCRIPTORS), batch, head, first_row,
        stride_gn, stride_gd, rows_left, value_dim, BLOCK_M, BLOCK_DV, True, CHECK_DV, WIDE, DESCRIPTORS, BF16,
    )  # fmt: skip
    if SIGNED:
        q = (q * sign).to(q.dtype)
    row = batch_and_head.to(tl.int64) * padded_q
    lse = tl.load(rows_lse_ptr + row + query_rows)
    delta = tl.load(rows_delta_ptr + row + query_rows)
    k_base = head_base(k_source, batch, head_kv, stride_kb, stride_kh, DESCRIPTORS)
    v_base = head_base(v_source, batch, head_kv, stride_vb, stride_vh, DESCRIPTORS)

    begin, full_begin, full_end, end = key_limits(
        first_row, seqlen_k, causal_offset, first_offset, CAUSAL, WINDOW, BLOCK_M, BLOCK_N
    )

    dq = tl.zeros((BLOCK_M, BLOCK_D), ACCUMULATOR)
    if WINDOW:
        dq = accumulate_dq(
            dq, q, dout, lse, delta, k_base, v_base, batch, head_kv, stride_kn, stride_kd, stride_vn, stride_vd,
            begin, tl.minimum(full_begin, end), query_rows, seqlen_k, head_dim, value_dim,
            causal_offset, first_offset, inner_scale, logit_scale,
            True, CAUSAL, WINDOW, SOFTCAP, BLOCK_N, BLOCK_D, BLOCK_DV, CHECK_D, CHECK_DV,
            WIDE, DESCRIPTORS, STORAGE, ACCUMULATOR, PRECISION, BF16,
        )  # fmt: skip
    dq = accumulate_dq(
        dq, q, dout, lse, delta, k_base, v_base, batch, head_kv, stride_kn, stride_kd, stride_vn, stride_vd,
        full_begin, full_end, query_rows, seqlen_k, head_dim, value_dim,
        causal_offset, first_offset, inner_scale, logit_scale,
        False, CAUSAL, WINDOW, SOFTCAP, BLOCK_N, BLOCK_D, BLOCK_DV, CHECK_D, CHECK_DV,
        WIDE, DESCRIPTORS, STORAGE, ACCUMULATOR, PRECISION, BF16,
    )  # fmt: skip
    dq = accumulate_dq(
        dq, q, dout, lse, delta, k_base, v_base, batch, head_kv, stride_kn, stride_kd, stride_vn, stride_vd,
        full_end, end, query_rows, seqlen_k, head_dim, value_dim,
        causal_offset, first_offset, inner_scale, logit_scale,
        True, CAUSAL, WINDOW, SOFTCAP, BLOCK_N, BLOCK_D, BLOCK_DV, CHECK_D, CHECK_DV,
        WIDE, DESCRIPTORS, STORAGE, ACCUMULATOR, PRECISION, BF16,
    )  # fmt: skip

    dq_base = head_base(dq_ptr, batch, head, stride_xb, stride_xh, False)
    dq = dq * (scale * sign)
    store_tile(dq_base, dq, first_row, stride_xn, stride_xd, rows_left, head_dim, BLOCK_M, BLOCK_D, WIDE, BF16)


def attention_backward(
    dout: torch.Tensor,
    dlse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    causal_offset: int | None,
    first_offset: int | None,
    precision: str,
    dkdv_tile: TileConfig,
    dq_tile: TileConfig,
    output_dtype: torch.dtype | None = None,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launch the backward kernels.

    Args:
        dout: cotangent of out, (B, Hq, Nq, Dv), any strides.
        dlse: cotangent of lse, (B, Hq, Nq), or None.
        q: (B, Hq, Nq, D), any strides.
        k: (B, Hkv, Nk, D), any strides.
        v: (B, Hkv, Nk, Dv), any strides.
        out: the forward's output, any strides.
        lse: the forward's lse, (B, Hq, Nq), contiguous.
        scale: softmax scale.
        causal_offset: query i sees no key after i + causal_offset; None: no such limit.
        first_offset: query i sees no key before i + first_offset; None: no such limit.
        precision: Triton's input precision of float32 products.
        dkdv_tile: block sizes, warps and stages of the dK/dV kernel.
        dq_tile: the same of the dQ kernel.
        output_dtype: dtype that the gradients are rounded to; None: that of q.
        softcap: logits were softcap·tanh(logit / softcap); None: they were not capped.

    Returns:
        dq, dk, dv: shaped like q, k, v, laid out as B,N,H,D in memory.
    """
    batch, heads_q, seqlen_q, head_dim = q.shape
    heads_kv, seqlen_k = k.shape[1], k.shape[2]
    dq, dk, dv = (output_like(x, output_dtype) for x in (q, k, v))
    rows_lse, rows_delta = row_statistics(dout, dlse, out, lse, max(dkdv_tile.block_m, dq_tile.block_m))
    value_dim = v.shape[3]
    block_d, block_dv = padded_head_dim(head_dim), padded_head_dim(value_dim)
    group_size = heads_q // heads_kv
    options = {
        "CAUSAL": causal_offset is not None,
        "WINDOW": first_offset is not None,
        "SOFTCAP": softcap is not None,
        "SIGNED": scale <= 0.0,
        "BLOCK_D": block_d,
        "BLOCK_DV": block_dv,
        "CHECK_D": block_d != head_dim,
        "CHECK_DV": block_dv != value_dim,
        "VALUE_DIM": 0 if value_dim == head_dim else value_dim,
        "STORAGE": storage_of(q.dtype),
        "ACCUMULATOR": storage_of(lse.dtype),
        "PRECISION": dot_precision(precision),
        "BF16": EMULATE_BF16 and q.dtype == torch.bfloat16,
        "enable_fp_fusion": False,  # see the module's docstring: the exponent's difference must not be contracted
    }
    strides = (*q.stride(), *k.stride(), *v.stride(), *dout.stride())
    offsets = (0 if offset is None else offset for offset in (causal_offset, first_offset))
    sizes = (seqlen_q, rows_lse.shape[2], seqlen_k, head_dim, *offsets, scale_bits(scale), scale_bits(softcap or 0.0))
    products = batch * heads_q * seqlen_q * seqlen_k * head_dim

    def sources_of(tile: TileConfig) -> tuple[TileOf, ...]:
        rows, keys = tile.block_m, tile.block_n
        return (q, rows, block_d), (k, keys, block_d), (v, keys, block_dv), (dout, rows, block_dv)

    key_programs = triton.cdiv(seqlen_k, dkdv_tile.block_n) * batch * heads_kv
    if key_programs:
        tile = dkdv_tile
        tiles = sources_of(tile)
        sources, has_descriptors = tile_sources(*tiles, products=products)
        section = max(1, heads_at_once(q, 1, batch * heads_q) // max(1, group_size))
        dkdv_kernel[(key_programs,)](
            *sources, rows_lse, rows_delta, dk, dv, *strides, *dk.stride(), heads_kv, group_size, section, *sizes,
            WIDE=needs_wide_offsets(*tiles, (dk, tile.block_n, block_d), (dv, tile.block_n, block_dv)),
            DESCRIPTORS=has_descriptors,
            BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, num_warps=tile.num_warps, num_stages=tile.num_stages, **options,
        )  # fmt: skip
    query_programs = triton.cdiv(seqlen_q, dq_tile.block_m) * batch * heads_q
    if query_programs:
        tile = dq_tile
        tiles = sources_of(tile)
        sources, has_descriptors = tile_sources(*tiles, products=products)
        dq_kernel[(query_programs,)](
            *sources, rows_lse, rows_delta, dq, *strides, *dq.stride(),
            heads_q, group_size, heads_at_once(k, group_size, batch * heads_q), *sizes,
            WIDE=needs_wide_offsets(*tiles, (dq, tile.block_m, block_d)), DESCRIPTORS=has_descriptors,
            BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, num_warps=tile.num_warps, num_stages=tile.num_stages, **options,
        )  # fmt: skip
    return dq, dk, dv
