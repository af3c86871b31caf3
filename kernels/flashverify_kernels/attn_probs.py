"""The probabilities themselves, with the mask of dropout in their sign bits: memory of Nq·Nk, for looking at, not for training.

    P = exp(scale·S - lse) as the backward pass forms it, negative where the pair is dropped, -0 if it is 0

Soft caps, biases and masks change S as in the forward pass. Hidden pairs are 0, and have their sign too.
"""

import torch
import triton
import triton.language as tl

from flashverify_kernels.dropout import SIGNED_TILE, Dropout, dropout_arguments, dropped_pairs, marked, unpack_dropout
from flashverify_kernels.launch import (
    EMULATE_BF16,
    UNSPECIALIZED,
    alibi_strides,
    bias_kind,
    dot_precision,
    expanded_bias,
    loadable_bias,
    needs_wide_offsets,
    scale_bits,
    storage_of,
    with_strides,
)
from flashverify_kernels.packed import Packed, packed_arguments, rows_from, stretch_of
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
from flashverify_kernels.tiles import padded_head_dim


@triton.jit(do_not_specialize=UNSPECIALIZED)
def attn_probs_kernel(
    q_ptr,
    k_ptr,
    lse_ptr,
    probs_ptr,
    slopes_ptr,
    bias_ptr,
    stride_bb,
    stride_bh,
    stride_bm,
    stride_bn,
    stride_qb,
    stride_qh,
    stride_qn,
    stride_qd,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_kd,
    stride_ab,
    stride_ah,
    starts_q_ptr,
    used_q_ptr,
    starts_k_ptr,
    used_k_ptr,
    sequences,
    heads_q,
    group_size,
    seqlen_q,
    seqlen_k,
    stored_q,
    stored_k,
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BF16: tl.constexpr,
):
    """One program: BLOCK_M queries and BLOCK_N keys of one head, of probabilities (B, Hq, stored_q, stored_k), contiguous.

    With starts, sequences are packed: B is their number, and seqlen_q and seqlen_k are the rows of all.
    """
    key_blocks = tl.cdiv(stored_k, BLOCK_N)
    row_blocks = tl.cdiv(stored_q, BLOCK_M)
    place = tl.program_id(0) % (key_blocks * row_blocks)
    entry_and_head = tl.program_id(0) // (key_blocks * row_blocks)
    entry = entry_and_head // heads_q
    head = entry_and_head % heads_q
    first_row = place // key_blocks * BLOCK_M
    first_key = place % key_blocks * BLOCK_N
    batch = entry
    rows_of_all = seqlen_q
    row = entry_and_head.to(tl.int64) * seqlen_q
    if starts_q_ptr is not None:
        batch = entry * 0
        start_q, _stored, seqlen_q = stretch_of(entry, starts_q_ptr, used_q_ptr, sequences, seqlen_q)
        start_k, _stored, seqlen_k = stretch_of(entry, starts_k_ptr, used_k_ptr, sequences, seqlen_k)
        q_ptr = rows_from(q_ptr, start_q, stride_qn)
        k_ptr = rows_from(k_ptr, start_k, stride_kn)
        row = head.to(tl.int64) * rows_of_all + start_q
        causal_offset += seqlen_k - seqlen_q
        first_offset += seqlen_k - seqlen_q
    queries = first_row + tl.arange(0, BLOCK_M)
    keys = first_key + tl.arange(0, BLOCK_N)
    rows_left = seqlen_q - first_row
    keys_left = seqlen_k - first_key

    sign, scale, _ = unpack_scale(scale_bits, ACCUMULATOR)
    inner_scale = scale
    logit_scale = scale
    if SOFTCAP:
        inner_scale, logit_scale, _ = unpack_softcap(scale_bits, softcap_bits, ACCUMULATOR)
    q = load_tile(
        head_base(q_ptr, batch, head, stride_qb, stride_qh, False), batch, head, first_row,
        stride_qn, stride_qd, rows_left, head_dim, BLOCK_M, BLOCK_D, True, True, WIDE, False, BF16,
    )  # fmt: skip
    if SIGNED:
        q = (q * sign).to(q.dtype)
    k = load_tile(
        head_base(k_ptr, batch, head // group_size, stride_kb, stride_kh, False), batch, head // group_size, first_key,
        stride_kn, stride_kd, keys_left, head_dim, BLOCK_N, BLOCK_D, True, True, WIDE, False, BF16,
    )  # fmt: skip
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACCUMULATOR)  # (BLOCK_M, BLOCK_N)
    if SOFTCAP:
        scores, _slope = tanh_and_slope(scores * inner_scale, ACCUMULATOR)
    if ALIBI:
        slope = alibi_slope(slopes_ptr, entry, head, stride_ab, stride_ah, logit_scale, ACCUMULATOR)
        scores = biased(scores, slope, (queries + (seqlen_k - seqlen_q))[:, None], keys[None, :], ACCUMULATOR)
    if BIAS:
        scores = with_bias(
            scores, head_base(bias_ptr, batch, head, stride_bb, stride_bh, False), first_row, first_key,
            stride_bm, stride_bn, rows_left, keys_left, 1.0 / logit_scale,
            BIAS, BLOCK_M, BLOCK_N, True, True, WIDE, ACCUMULATOR, BF16,
        )  # fmt: skip
    lse = tl.load(lse_ptr + row + queries, mask=queries < seqlen_q, other=float("inf"))
    seen = (queries < seqlen_q)[:, None] & (keys < seqlen_k)[None, :] & (scores != float("-inf"))
    if CAUSAL:
        seen = seen & (keys[None, :] <= queries[:, None] + causal_offset)
    if WINDOW:
        seen = seen & (keys[None, :] >= queries[:, None] + first_offset)
    p = tl.where(seen, probabilities(scores, lse[:, None], logit_scale), 0.0)
    if DROPOUT:
        seed, first_call, _rescale = unpack_dropout(dropout_ptr, dropout_bits, ACCUMULATOR)
        dropped = dropped_pairs(
            seed, first_call, entry_and_head, first_row, first_key, largest_dropped, BLOCK_M, BLOCK_N, False
        )
        p = marked(p, dropped, SIGNED_TILE)
    base = probs_ptr + entry_and_head.to(tl.int64) * stored_q * stored_k + first_key
    store_tile(base, p, first_row, stored_k, 1, stored_q - first_row, stored_k - first_key, BLOCK_M, BLOCK_N, True, BF16)


def attention_probabilities(
    q: torch.Tensor,
    k: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    causal_offset: int | None,
    first_offset: int | None,
    precision: str,
    dropout: Dropout | None,
    softcap: float | None = None,
    alibi: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    packed: Packed | None = None,
    longest: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Launch the kernel.

    Args:
        q: (B, Hq, Nq, D), any strides.
        k: (B, Hkv, Nk, D), any strides.
        lse: that of the forward pass, (B, Hq, Nq), contiguous.
        scale: softmax scale.
        causal_offset: as for the forward pass, as are first_offset, precision, softcap, alibi, bias and packed.
        first_offset: likewise.
        precision: likewise.
        dropout: which pairs are dropped; None: none is.
        softcap: likewise.
        alibi: likewise.
        bias: likewise.
        packed: likewise.
        longest: of packed sequences, how many queries and keys to show of each.

    Returns:
        (B, Hq, Nq, Nk) of q's dtype; of packed sequences (sequences, Hq, *longest), 0 beyond their lengths.
    """
    batch, heads_q, seqlen_q, head_dim = q.shape
    seqlen_k = k.shape[2]
    bias = loadable_bias(bias, q.dtype)
    entries = batch if packed is None else packed.sequences
    stored_q, stored_k = (seqlen_q, seqlen_k) if longest is None else longest
    probs = torch.empty((entries, heads_q, stored_q, stored_k), dtype=q.dtype, device=q.device)
    block, block_d = 32, padded_head_dim(head_dim)
    programs = triton.cdiv(stored_q, block) * triton.cdiv(stored_k, block) * entries * heads_q
    if programs == 0:
        return probs
    view = expanded_bias(bias, q, k)
    tiles = ((q, block, block_d), (k, block, block_d), *(() if view is None else ((view, block, block),)))
    attn_probs_kernel[(programs,)](
        q, k, lse, probs, lse if alibi is None else alibi, *with_strides(view, 4), *q.stride(), *k.stride(),
        *alibi_strides(alibi), *packed_arguments(packed),
        heads_q, heads_q // k.shape[1], seqlen_q, seqlen_k, stored_q, stored_k, head_dim,
        0 if causal_offset is None else causal_offset,
        0 if first_offset is None else first_offset,
        scale_bits(scale),
        scale_bits(0.0 if softcap is None else softcap),
        *dropout_arguments(dropout),
        CAUSAL=causal_offset is not None,
        WINDOW=first_offset is not None,
        SOFTCAP=softcap is not None,
        ALIBI=alibi is not None,
        BIAS=bias_kind(bias),
        SIGNED=scale <= 0.0,
        BLOCK_M=block,
        BLOCK_N=block,
        BLOCK_D=block_d,
        WIDE=needs_wide_offsets(*tiles),
        ACCUMULATOR=storage_of(lse.dtype),
        PRECISION=dot_precision(precision),
        BF16=EMULATE_BF16 and q.dtype == torch.bfloat16,
        enable_fp_fusion=False,  # as in the backward pass
        num_warps=4,
    )  # fmt: skip
    return probs
