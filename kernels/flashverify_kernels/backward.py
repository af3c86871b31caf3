"""FlashAttention backward: dQ, dK and dV from the stored lse, deterministic and without atomics.

    P = exp(scale·S - lse),   delta = Σ_d dO·out - dlse,   dP = dO·Vᵀ,   dS = P·(dP - delta)
    dV = Pᵀ·dO,   dQ = scale·dS·K,   dK = scale·dSᵀ·Q

The recomputation from lse is that of FlashAttention (Dao et al., arXiv 2205.14135). Two kernels own their outputs: one program
of `dkdv_kernel` a block of keys, summing over the query heads of its group, one program of `dq_kernel` a block of query rows.
The exponent is formed as (round(S·scale) - lse)·log2 e with contraction off: lse of a row that one key dominates is that same
rounded product, so its difference stays exact for logits of any size. P and dS are rounded to the inputs' dtype for products.
"""

import torch
import triton
import triton.language as tl

from flashverify_kernels.launch import (
    EMULATE_BF16,
    UNSPECIALIZED,
    accumulator_of,
    output_like,
    scale_bits,
    storage_of,
)
from flashverify_kernels.primitives import LOG2E, as_operand, load_tile, store_tile, tile_offsets, unpack_scale
from flashverify_kernels.tiles import TileConfig, padded_head_dim


@triton.jit(do_not_specialize=UNSPECIALIZED)
def delta_kernel(
    out_ptr,
    dout_ptr,
    dlse_ptr,
    delta_ptr,
    stride_ob,
    stride_oh,
    stride_on,
    stride_od,
    stride_gb,
    stride_gh,
    stride_gn,
    stride_gd,
    heads_q,
    seqlen_q,
    head_dim,
    HAS_DLSE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHECK_D: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    BF16: tl.constexpr,
):
    """For BLOCK_M rows of one head: delta = rowsum(dO·out) - dlse."""
    row_blocks = tl.cdiv(seqlen_q, BLOCK_M)
    first_row = tl.program_id(0) % row_blocks * BLOCK_M
    batch_and_head = (tl.program_id(0) // row_blocks).to(tl.int64)
    batch = batch_and_head // heads_q
    head = batch_and_head % heads_q
    rows_left = seqlen_q - first_row

    out_tile = out_ptr + batch * stride_ob + head * stride_oh + tl.cast(first_row, tl.int64) * stride_on
    out_offsets = tile_offsets(stride_on, stride_od, BLOCK_M, BLOCK_D)
    out = load_tile(out_tile, out_offsets, rows_left, head_dim, BLOCK_M, BLOCK_D, True, CHECK_D, BF16)
    dout_tile = dout_ptr + batch * stride_gb + head * stride_gh + tl.cast(first_row, tl.int64) * stride_gn
    dout_offsets = tile_offsets(stride_gn, stride_gd, BLOCK_M, BLOCK_D)
    dout = load_tile(dout_tile, dout_offsets, rows_left, head_dim, BLOCK_M, BLOCK_D, True, CHECK_D, BF16)
    delta = tl.sum(out.to(ACCUMULATOR) * dout.to(ACCUMULATOR), 1)

    rows = first_row + tl.arange(0, BLOCK_M)
    row_offsets = batch_and_head * seqlen_q + rows
    if HAS_DLSE:
        delta -= tl.load(dlse_ptr + row_offsets, mask=rows < seqlen_q, other=0.0)
    tl.store(delta_ptr + row_offsets, delta, mask=rows < seqlen_q)


@triton.jit
def probabilities(scores, lse, scale):
    """P = exp(scale·S - lse); lse = +inf (padding rows) gives 0.

    Never above 1: a score that is summed in another order than forward's may exceed lse by ulps, which are large for
    large logits. NaN stays NaN.
    """
    exponent = scores * scale - lse
    exponent = tl.where(exponent > 0.0, 0.0, exponent)
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
    stride_qn,
    stride_gn,
    q_offsets,
    dout_offsets,
    first_query,
    last_query,
    keys,
    seqlen_q,
    head_dim,
    causal_offset,
    sign,
    scale,
    MASKED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHECK_D: tl.constexpr,
    STORAGE: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BF16: tl.constexpr,
):
    """Add what query rows first_query .. last_query of one head contribute to dK (unscaled) and dV of a key block."""
    for start in range(first_query, last_query, BLOCK_M):
        queries = start + tl.arange(0, BLOCK_M)
        rows_left = seqlen_q - start
        q_tile = q_base + tl.cast(start, tl.int64) * stride_qn
        q = load_tile(q_tile, q_offsets, rows_left, head_dim, BLOCK_M, BLOCK_D, True, CHECK_D, BF16)
        q = (q * sign).to(q.dtype)
        lse = tl.load(lse_row + queries, mask=queries < seqlen_q, other=float("inf"))
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION, out_dtype=ACCUMULATOR)  # (BLOCK_N, BLOCK_M)
        p = probabilities(scores, lse[None, :], scale)
        if MASKED:
            seen = keys[:, None] <= queries[None, :] + causal_offset
            p = tl.where(seen, p, 0.0)
        dout_tile = dout_base + tl.cast(start, tl.int64) * stride_gn
        dout = load_tile(dout_tile, dout_offsets, rows_left, head_dim, BLOCK_M, BLOCK_D, True, CHECK_D, BF16)
        dv = tl.dot(as_operand(p, STORAGE, BF16), dout, dv, input_precision=PRECISION, out_dtype=ACCUMULATOR)
        delta = tl.load(delta_row + queries, mask=queries < seqlen_q, other=0.0)
        dp = tl.dot(v, tl.trans(dout), input_precision=PRECISION, out_dtype=ACCUMULATOR)
        ds = p * (dp - delta[None, :])
        dk = tl.dot(as_operand(ds, STORAGE, BF16), q, dk, input_precision=PRECISION, out_dtype=ACCUMULATOR)
    return dk, dv


@triton.jit(do_not_specialize=UNSPECIALIZED)
def dkdv_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    dout_ptr,
    lse_ptr,
    delta_ptr,
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
    seqlen_q,
    seqlen_k,
    head_dim,
    causal_offset,
    scale_bits,
    CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHECK_D: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BF16: tl.constexpr,
):
    """One program: dK and dV of BLOCK_N keys of one key head. Strides `g` are dO's, `x` those of dk and dv alike."""
    STORAGE: tl.constexpr = q_ptr.dtype.element_ty
    key_blocks = tl.cdiv(seqlen_k, BLOCK_N)
    heads_and_batches = tl.num_programs(0) // key_blocks
    key_block = tl.program_id(0) // heads_and_batches
    batch_and_head = tl.program_id(0) % heads_and_batches
    batch = (batch_and_head // heads_kv).to(tl.int64)
    head_kv = (batch_and_head % heads_kv).to(tl.int64)

    first_key = key_block * BLOCK_N
    keys = first_key + tl.arange(0, BLOCK_N)
    keys_left = seqlen_k - first_key
    sign, scale, _ = unpack_scale(scale_bits, ACCUMULATOR)

    k_tile = k_ptr + batch * stride_kb + head_kv * stride_kh + tl.cast(first_key, tl.int64) * stride_kn
    k_offsets = tile_offsets(stride_kn, stride_kd, BLOCK_N, BLOCK_D)
    k = load_tile(k_tile, k_offsets, keys_left, head_dim, BLOCK_N, BLOCK_D, True, CHECK_D, BF16)
    v_tile = v_ptr + batch * stride_vb + head_kv * stride_vh + tl.cast(first_key, tl.int64) * stride_vn
    v_offsets = tile_offsets(stride_vn, stride_vd, BLOCK_N, BLOCK_D)
    v = load_tile(v_tile, v_offsets, keys_left, head_dim, BLOCK_N, BLOCK_D, True, CHECK_D, BF16)
    q_offsets = tile_offsets(stride_qn, stride_qd, BLOCK_M, BLOCK_D)
    dout_offsets = tile_offsets(stride_gn, stride_gd, BLOCK_M, BLOCK_D)

    # No query before `masked_start` sees a key of this block; from `unmasked_start` on, every query sees all of them.
    masked_start = 0
    unmasked_start = 0
    if CAUSAL:
        masked_start = tl.minimum(seqlen_q, tl.maximum(0, first_key - causal_offset)) // BLOCK_M * BLOCK_M
        last_diagonal = tl.maximum(0, first_key + BLOCK_N - 1 - causal_offset)
        unmasked_start = tl.minimum(tl.cdiv(last_diagonal, BLOCK_M) * BLOCK_M, tl.cdiv(seqlen_q, BLOCK_M) * BLOCK_M)

    dk = tl.zeros((BLOCK_N, BLOCK_D), ACCUMULATOR)
    dv = tl.zeros((BLOCK_N, BLOCK_D), ACCUMULATOR)
    for member in range(0, group_size):
        head = head_kv * group_size + member
        q_base = q_ptr + batch * stride_qb + head * stride_qh
        dout_base = dout_ptr + batch * stride_gb + head * stride_gh
        row = (batch * heads_kv * group_size + head) * seqlen_q
        if CAUSAL:
            dk, dv = accumulate_dkdv(
                dk, dv, k, v, q_base, dout_base, lse_ptr + row, delta_ptr + row, stride_qn, stride_gn,
                q_offsets, dout_offsets, masked_start, unmasked_start, keys, seqlen_q, head_dim, causal_offset,
                sign, scale, True, BLOCK_M, BLOCK_D, CHECK_D, STORAGE, ACCUMULATOR, PRECISION, BF16,
            )  # fmt: skip
        dk, dv = accumulate_dkdv(
            dk, dv, k, v, q_base, dout_base, lse_ptr + row, delta_ptr + row, stride_qn, stride_gn,
            q_offsets, dout_offsets, unmasked_start, seqlen_q, keys, seqlen_q, head_dim, causal_offset,
            sign, scale, False, BLOCK_M, BLOCK_D, CHECK_D, STORAGE, ACCUMULATOR, PRECISION, BF16,
        )  # fmt: skip

    offsets = tile_offsets(stride_xn, stride_xd, BLOCK_N, BLOCK_D)
    tile = batch * stride_xb + head_kv * stride_xh + tl.cast(first_key, tl.int64) * stride_xn
    store_tile(dk_ptr + tile, offsets, dk * scale, keys_left, head_dim, BLOCK_N, BLOCK_D, BF16)
    store_tile(dv_ptr + tile, offsets, dv, keys_left, head_dim, BLOCK_N, BLOCK_D, BF16)


@triton.jit
def accumulate_dq(
    dq,
    q,
    dout,
    lse,
    delta,
    k_base,
    v_base,
    stride_kn,
    stride_vn,
    k_offsets,
    v_offsets,
    first_key,
    last_key,
    query_rows,
    seqlen_k,
    head_dim,
    causal_offset,
    scale,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHECK_D: tl.constexpr,
    STORAGE: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BF16: tl.constexpr,
):
    """Add what keys first_key .. last_key contribute to dQ (unscaled) of a row block."""
    for start in range(first_key, last_key, BLOCK_N):
        keys_left = seqlen_k - start
        k_tile = k_base + tl.cast(start, tl.int64) * stride_kn
        k = load_tile(k_tile, k_offsets, keys_left, head_dim, BLOCK_N, BLOCK_D, MASKED, CHECK_D, BF16)
        v_tile = v_base + tl.cast(start, tl.int64) * stride_vn
        v = load_tile(v_tile, v_offsets, keys_left, head_dim, BLOCK_N, BLOCK_D, MASKED, CHECK_D, BF16)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACCUMULATOR)  # (BLOCK_M, BLOCK_N)
        p = probabilities(scores, lse[:, None], scale)
        dp = tl.dot(dout, tl.trans(v), input_precision=PRECISION, out_dtype=ACCUMULATOR)
        ds = p * (dp - delta[:, None])
        if MASKED:
            keys = start + tl.arange(0, BLOCK_N)
            seen = (keys < seqlen_k)[None, :]
            if CAUSAL:
                seen = seen & (keys[None, :] <= query_rows[:, None] + causal_offset)
            ds = tl.where(seen, ds, 0.0)
        dq = tl.dot(as_operand(ds, STORAGE, BF16), k, dq, input_precision=PRECISION, out_dtype=ACCUMULATOR)
    return dq


@triton.jit(do_not_specialize=UNSPECIALIZED)
def dq_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    dout_ptr,
    lse_ptr,
    delta_ptr,
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
    seqlen_q,
    seqlen_k,
    head_dim,
    causal_offset,
    scale_bits,
    CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHECK_D: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BF16: tl.constexpr,
):
    """One program: dQ of BLOCK_M query rows of one head. Strides `g` are dO's, `x` dq's."""
    STORAGE: tl.constexpr = q_ptr.dtype.element_ty
    row_blocks = tl.cdiv(seqlen_q, BLOCK_M)
    heads_and_batches = tl.num_programs(0) // row_blocks
    row_block = row_blocks - 1 - tl.program_id(0) // heads_and_batches
    batch_and_head = tl.program_id(0) % heads_and_batches
    batch = (batch_and_head // heads_q).to(tl.int64)
    head = (batch_and_head % heads_q).to(tl.int64)
    head_kv = head // group_size

    first_row = row_block * BLOCK_M
    query_rows = first_row + tl.arange(0, BLOCK_M)
    rows_left = seqlen_q - first_row
    sign, scale, _ = unpack_scale(scale_bits, ACCUMULATOR)

    q_tile = q_ptr + batch * stride_qb + head * stride_qh + tl.cast(first_row, tl.int64) * stride_qn
    q_offsets = tile_offsets(stride_qn, stride_qd, BLOCK_M, BLOCK_D)
    q = load_tile(q_tile, q_offsets, rows_left, head_dim, BLOCK_M, BLOCK_D, True, CHECK_D, BF16)
    q = (q * sign).to(q.dtype)
    dout_tile = dout_ptr + batch * stride_gb + head * stride_gh + tl.cast(first_row, tl.int64) * stride_gn
    dout_offsets = tile_offsets(stride_gn, stride_gd, BLOCK_M, BLOCK_D)
    dout = load_tile(dout_tile, dout_offsets, rows_left, head_dim, BLOCK_M, BLOCK_D, True, CHECK_D, BF16)
    row = batch_and_head.to(tl.int64) * seqlen_q
    lse = tl.load(lse_ptr + row + query_rows, mask=query_rows < seqlen_q, other=float("inf"))
    delta = tl.load(delta_ptr + row + query_rows, mask=query_rows < seqlen_q, other=0.0)
    k_base = k_ptr + batch * stride_kb + head_kv * stride_kh
    v_base = v_ptr + batch * stride_vb + head_kv * stride_vh
    k_offsets = tile_offsets(stride_kn, stride_kd, BLOCK_N, BLOCK_D)
    v_offsets = tile_offsets(stride_vn, stride_vd, BLOCK_N, BLOCK_D)

    unmasked_end = seqlen_k
    masked_end = seqlen_k
    if CAUSAL:
        unmasked_end = tl.minimum(seqlen_k, tl.maximum(0, first_row + causal_offset + 1))
        masked_end = tl.minimum(seqlen_k, tl.maximum(0, first_row + BLOCK_M + causal_offset))
    unmasked_end = unmasked_end // BLOCK_N * BLOCK_N

    dq = tl.zeros((BLOCK_M, BLOCK_D), ACCUMULATOR)
    dq = accumulate_dq(
        dq, q, dout, lse, delta, k_base, v_base, stride_kn, stride_vn, k_offsets, v_offsets,
        0, unmasked_end, query_rows, seqlen_k, head_dim, causal_offset, scale,
        False, CAUSAL, BLOCK_N, BLOCK_D, CHECK_D, STORAGE, ACCUMULATOR, PRECISION, BF16,
    )  # fmt: skip
    dq = accumulate_dq(
        dq, q, dout, lse, delta, k_base, v_base, stride_kn, stride_vn, k_offsets, v_offsets,
        unmasked_end, masked_end, query_rows, seqlen_k, head_dim, causal_offset, scale,
        True, CAUSAL, BLOCK_N, BLOCK_D, CHECK_D, STORAGE, ACCUMULATOR, PRECISION, BF16,
    )  # fmt: skip

    dq_tile = dq_ptr + batch * stride_xb + head * stride_xh + tl.cast(first_row, tl.int64) * stride_xn
    dq_offsets = tile_offsets(stride_xn, stride_xd, BLOCK_M, BLOCK_D)
    store_tile(dq_tile, dq_offsets, dq * (scale * sign), rows_left, head_dim, BLOCK_M, BLOCK_D, BF16)


def _delta(dout: torch.Tensor, dlse: torch.Tensor | None, out: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    batch, heads_q, seqlen_q, head_dim = out.shape
    delta = torch.empty((batch, heads_q, seqlen_q), dtype=dtype, device=out.device)
    block_m = 32
    programs = triton.cdiv(seqlen_q, block_m) * batch * heads_q
    if programs == 0:
        return delta
    block_d = padded_head_dim(head_dim)
    delta_kernel[(programs,)](
        out, dout, delta if dlse is None else dlse.contiguous(), delta,
        *out.stride(), *dout.stride(), heads_q, seqlen_q, head_dim,
        HAS_DLSE=dlse is not None,
        BLOCK_M=block_m,
        BLOCK_D=block_d,
        CHECK_D=block_d != head_dim,
        ACCUMULATOR=storage_of(dtype),
        BF16=EMULATE_BF16 and out.dtype == torch.bfloat16,
    )  # fmt: skip
    return delta


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
    precision: str,
    dkdv_tile: TileConfig,
    dq_tile: TileConfig,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launch the backward kernels.

    Args:
        dout: cotangent of out, (B, Hq, Nq, D), any strides.
        dlse: cotangent of lse, (B, Hq, Nq), or None.
        q: (B, Hq, Nq, D), any strides.
        k: (B, Hkv, Nk, D), any strides.
        v: shaped like k, any strides.
        out: the forward's output, any strides.
        lse: the forward's lse, (B, Hq, Nq), contiguous.
        scale: softmax scale.
        causal_offset: query i sees keys 0 .. i + causal_offset; None: all keys.
        precision: Triton's input precision of float32 products.
        dkdv_tile: block sizes, warps and stages of the dK/dV kernel.
        dq_tile: the same of the dQ kernel.

    Returns:
        dq, dk, dv: shaped like q, k, v, laid out as B,N,H,D in memory.
    """
    batch, heads_q, seqlen_q, head_dim = q.shape
    heads_kv, seqlen_k = k.shape[1], k.shape[2]
    dq, dk, dv = output_like(q), output_like(k), output_like(v)
    accumulator = accumulator_of(q.dtype)
    delta = _delta(dout, dlse, out, accumulator)
    block_d = padded_head_dim(head_dim)
    options = {
        "CAUSAL": causal_offset is not None,
        "BLOCK_D": block_d,
        "CHECK_D": block_d != head_dim,
        "ACCUMULATOR": storage_of(accumulator),
        "PRECISION": precision,
        "BF16": EMULATE_BF16 and q.dtype == torch.bfloat16,
        "enable_fp_fusion": False,  # see the module's docstring: the exponent's difference must not be contracted
    }
    tensors = (q, k, v, dout, lse, delta)
    strides = (*q.stride(), *k.stride(), *v.stride(), *dout.stride())
    sizes = (seqlen_q, seqlen_k, head_dim, 0 if causal_offset is None else causal_offset, scale_bits(scale))
    key_programs = triton.cdiv(seqlen_k, dkdv_tile.block_n) * batch * heads_kv
    if key_programs:
        dkdv_kernel[(key_programs,)](
            *tensors, dk, dv, *strides, *dk.stride(), heads_kv, heads_q // heads_kv, *sizes,
            BLOCK_M=dkdv_tile.block_m, BLOCK_N=dkdv_tile.block_n,
            num_warps=dkdv_tile.num_warps, num_stages=dkdv_tile.num_stages, **options,
        )  # fmt: skip
    query_programs = triton.cdiv(seqlen_q, dq_tile.block_m) * batch * heads_q
    if query_programs:
        dq_kernel[(query_programs,)](
            *tensors, dq, *strides, *dq.stride(), heads_q, heads_q // heads_kv, *sizes,
            BLOCK_M=dq_tile.block_m, BLOCK_N=dq_tile.block_n,
            num_warps=dq_tile.num_warps, num_stages=dq_tile.num_stages, **options,
        )  # fmt: skip
    return dq, dk, dv
