"""FlashAttention forward: out and lse, one row block at a time over the keys.

    S = QKᵀ,  m = running maximum of S,  p = exp2((S - m)·scale·log2 e),  l = Σ p,  acc = Σ p·V
    out = acc / l,   lse = m·scale + ln l

The online softmax is that of Milakov and Gimelshein (arXiv 1805.02867), its tiling that of FlashAttention-2 (Dao,
arXiv 2307.08691). The maximum is taken of the raw scores and subtracted before scaling: p <= 1 whatever the size of the logits,
and the error of an exponent is relative to its distance from the maximum, not to the logit. P is rounded to the dtype of v
for the product with V; l sums it unrounded. Key blocks are walked from the left.
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
from flashverify_kernels.primitives import LN2, as_operand, load_tile, store_tile, tile_offsets, unpack_scale
from flashverify_kernels.tiles import TileConfig, padded_head_dim


@triton.jit
def attend(
    accumulator,
    running_max,
    running_sum,
    q,
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
    exponent_scale,
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
    """Fold keys first_key .. last_key (a multiple of BLOCK_N apart unless MASKED) into the running softmax."""
    for start in range(first_key, last_key, BLOCK_N):
        keys_left = seqlen_k - start
        k_tile = k_base + tl.cast(start, tl.int64) * stride_kn
        k = load_tile(k_tile, k_offsets, keys_left, head_dim, BLOCK_N, BLOCK_D, MASKED, CHECK_D, BF16)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACCUMULATOR)  # (BLOCK_M, BLOCK_N)
        if MASKED:
            keys = start + tl.arange(0, BLOCK_N)
            seen = (keys < seqlen_k)[None, :]
            if CAUSAL:
                seen = seen & (keys[None, :] <= query_rows[:, None] + causal_offset)
            scores = tl.where(seen, scores, float("-inf"))
        new_max = tl.maximum(running_max, tl.max(scores, 1))
        # A row that has seen no key keeps -inf as its maximum; -inf - 0 is defined, -inf - (-inf) is not.
        shift = tl.where(new_max == float("-inf"), 0.0, new_max) if MASKED else new_max
        p = tl.exp2((scores - shift[:, None]) * exponent_scale)
        rescale = tl.exp2((running_max - shift) * exponent_scale)
        running_sum = running_sum * rescale + tl.sum(p, 1)
        accumulator = accumulator * rescale[:, None]
        v_tile = v_base + tl.cast(start, tl.int64) * stride_vn
        v = load_tile(v_tile, v_offsets, keys_left, head_dim, BLOCK_N, BLOCK_D, MASKED, CHECK_D, BF16)
        accumulator = tl.dot(as_operand(p, STORAGE, BF16), v, accumulator, input_precision=PRECISION, out_dtype=ACCUMULATOR)
        running_max = new_max
    return accumulator, running_max, running_sum


@triton.jit(do_not_specialize=UNSPECIALIZED)
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
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
    stride_ob,
    stride_oh,
    stride_on,
    stride_od,
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
    """One program: BLOCK_M query rows of one head. Causal: the row blocks with most keys come first."""
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
    sign, scale, exponent_scale = unpack_scale(scale_bits, ACCUMULATOR)

    q_tile = q_ptr + batch * stride_qb + head * stride_qh + tl.cast(first_row, tl.int64) * stride_qn
    q_offsets = tile_offsets(stride_qn, stride_qd, BLOCK_M, BLOCK_D)
    q = load_tile(q_tile, q_offsets, rows_left, head_dim, BLOCK_M, BLOCK_D, True, CHECK_D, BF16)
    q = (q * sign).to(q.dtype)
    k_base = k_ptr + batch * stride_kb + head_kv * stride_kh
    v_base = v_ptr + batch * stride_vb + head_kv * stride_vh
    k_offsets = tile_offsets(stride_kn, stride_kd, BLOCK_N, BLOCK_D)
    v_offsets = tile_offsets(stride_vn, stride_vd, BLOCK_N, BLOCK_D)

    # Keys before `unmasked_end` are seen by every row of the block, keys from `masked_end` on by none.
    unmasked_end = seqlen_k
    masked_end = seqlen_k
    if CAUSAL:
        unmasked_end = tl.minimum(seqlen_k, tl.maximum(0, first_row + causal_offset + 1))
        masked_end = tl.minimum(seqlen_k, tl.maximum(0, first_row + BLOCK_M + causal_offset))
    unmasked_end = unmasked_end // BLOCK_N * BLOCK_N

    accumulator = tl.zeros((BLOCK_M, BLOCK_D), ACCUMULATOR)
    running_max = tl.full((BLOCK_M,), float("-inf"), ACCUMULATOR)
    running_sum = tl.zeros((BLOCK_M,), ACCUMULATOR)
    accumulator, running_max, running_sum = attend(
        accumulator, running_max, running_sum, q, k_base, v_base, stride_kn, stride_vn, k_offsets, v_offsets,
        0, unmasked_end, query_rows, seqlen_k, head_dim, causal_offset, exponent_scale,
        False, CAUSAL, BLOCK_N, BLOCK_D, CHECK_D, STORAGE, ACCUMULATOR, PRECISION, BF16,
    )  # fmt: skip
    accumulator, running_max, running_sum = attend(
        accumulator, running_max, running_sum, q, k_base, v_base, stride_kn, stride_vn, k_offsets, v_offsets,
        unmasked_end, masked_end, query_rows, seqlen_k, head_dim, causal_offset, exponent_scale,
        True, CAUSAL, BLOCK_N, BLOCK_D, CHECK_D, STORAGE, ACCUMULATOR, PRECISION, BF16,
    )  # fmt: skip

    saw_no_key = running_sum == 0.0
    divisor = tl.where(saw_no_key, 1.0, running_sum)
    out = accumulator / divisor[:, None]
    lse = tl.where(saw_no_key, float("-inf"), running_max * scale + tl.log2(divisor) * LN2)

    out_tile = out_ptr + batch * stride_ob + head * stride_oh + tl.cast(first_row, tl.int64) * stride_on
    out_offsets = tile_offsets(stride_on, stride_od, BLOCK_M, BLOCK_D)
    store_tile(out_tile, out_offsets, out, rows_left, head_dim, BLOCK_M, BLOCK_D, BF16)
    lse_row = lse_ptr + batch_and_head.to(tl.int64) * seqlen_q
    tl.store(lse_row + query_rows, lse, mask=query_rows < seqlen_q)


def attention_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    causal_offset: int | None,
    precision: str,
    tile: TileConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the forward kernel.

    Args:
        q: (B, Hq, Nq, D), any strides.
        k: (B, Hkv, Nk, D), any strides; Hq is a multiple of Hkv.
        v: shaped like k, any strides.
        scale: softmax scale.
        causal_offset: query i sees keys 0 .. i + causal_offset; None: all keys.
        precision: Triton's input precision of float32 products.
        tile: block sizes, warps and stages.

    Returns:
        out (B, Hq, Nq, D), laid out as B,N,H,D in memory; lse (B, Hq, Nq), float32 (float64 for float64 inputs).
    """
    batch, heads_q, seqlen_q, head_dim = q.shape
    out = output_like(q)
    lse = torch.empty((batch, heads_q, seqlen_q), dtype=accumulator_of(q.dtype), device=q.device)
    programs = triton.cdiv(seqlen_q, tile.block_m) * batch * heads_q
    if programs == 0:
        return out, lse
    block_d = padded_head_dim(head_dim)
    forward_kernel[(programs,)](
        q, k, v, out, lse,
        *q.stride(), *k.stride(), *v.stride(), *out.stride(),
        heads_q, heads_q // k.shape[1], seqlen_q, k.shape[2], head_dim,
        0 if causal_offset is None else causal_offset,
        scale_bits(scale),
        CAUSAL=causal_offset is not None,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_D=block_d,
        CHECK_D=block_d != head_dim,
        ACCUMULATOR=storage_of(lse.dtype),
        PRECISION=precision,
        BF16=EMULATE_BF16 and q.dtype == torch.bfloat16,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )  # fmt: skip
    return out, lse
