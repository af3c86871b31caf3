"""dQ: one program a block of query rows; see `backward.py`."""

import triton
import triton.language as tl

from flashverify_kernels.dropout import dropped_pairs, marked, score_gradient, unpack_dropout
from flashverify_kernels.launch import UNSPECIALIZED
from flashverify_kernels.packed import own_query_block, row_statistic, rows_from
from flashverify_kernels.primitives import (
    alibi_slope,
    as_operand,
    biased,
    block_and_head,
    head_base,
    key_limits,
    load_tile,
    probabilities,
    store_tile,
    tanh_and_slope,
    unpack_scale,
    unpack_softcap,
    with_bias,
)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def dq_kernel(
    q_source,
    k_source,
    v_source,
    dout_source,
    rows_lse_ptr,
    rows_delta_ptr,
    slopes_ptr,
    bias_ptr,
    stride_bb,
    stride_bh,
    stride_bm,
    stride_bn,
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
    stride_ab,
    stride_ah,
    starts_q_ptr,
    used_q_ptr,
    starts_k_ptr,
    used_k_ptr,
    sequences,
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
    """One program: dQ of BLOCK_M query rows of one head. Strides `g` are dO's, `x` dq's. VALUE_DIM as for dK and dV.

    With starts, sequences are packed, as for the forward kernel.
    """
    PACKED: tl.constexpr = starts_q_ptr is not None
    if not PACKED:
        row_blocks = tl.cdiv(seqlen_q, BLOCK_M)
        place, batch_and_head = block_and_head(row_blocks, section)
        batch = batch_and_head // heads_q
        head = batch_and_head % heads_q
        first_row = (row_blocks - 1 - place) * BLOCK_M
        row = batch_and_head.to(tl.int64) * padded_q
        sequence = batch
        rows_stored = seqlen_q
    else:
        slot, head = block_and_head(seqlen_q // BLOCK_M + sequences + 1, section)
        batch = head * 0
        sequence, first_row, start_q, rows_stored, seqlen_q, start_k, seqlen_k = own_query_block(
            slot, starts_q_ptr, used_q_ptr, starts_k_ptr, used_k_ptr, sequences, seqlen_q, seqlen_k, BLOCK_M
        )
        q_source = rows_from(q_source, start_q, stride_qn)
        dout_source = rows_from(dout_source, start_q, stride_gn)
        dq_ptr = rows_from(dq_ptr, start_q, stride_xn)
        k_source = rows_from(k_source, start_k, stride_kn)
        v_source = rows_from(v_source, start_k, stride_vn)
        row = head.to(tl.int64) * padded_q + start_q
        causal_offset += seqlen_k - seqlen_q
        first_offset += seqlen_k - seqlen_q
    head_kv = head // group_size

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
    lse, delta = row_statistic(rows_lse_ptr + row, rows_delta_ptr + row, query_rows, seqlen_q, PACKED)
    k_base = head_base(k_source, batch, head_kv, stride_kb, stride_kh, DESCRIPTORS)
    v_base = head_base(v_source, batch, head_kv, stride_vb, stride_vh, DESCRIPTORS)

    alibi = 0.0
    query_places = query_rows
    if ALIBI:
        alibi = alibi_slope(slopes_ptr, sequence, head, stride_ab, stride_ah, logit_scale, ACCUMULATOR)
        query_places = query_rows + (seqlen_k - seqlen_q)
    if PACKED:
        seqlen_k = tl.where(rows_left > 0, seqlen_k, 0)  # a block that holds no query walks over nothing
    begin, full_begin, full_end, end = key_limits(
        first_row, seqlen_k, causal_offset, first_offset, CAUSAL, WINDOW, BLOCK_M, BLOCK_N
    )

    inverse = 0.0
    bias_base = 0
    if BIAS:
        inverse = 1.0 / logit_scale
        bias_base = head_base(bias_ptr, batch, head, stride_bb, stride_bh, False) + tl.cast(first_row, tl.int64) * stride_bm
    if DROPOUT:
        seed, first_call, kept_scale = unpack_dropout(dropout_ptr, dropout_bits, ACCUMULATOR)
    dq = tl.zeros((BLOCK_M, BLOCK_D), ACCUMULATOR)
    for start in range(begin, end, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        keys_left = seqlen_k - start
        k = load_tile(
            k_base, batch, head_kv, start, stride_kn, stride_kd, keys_left, head_dim,
            BLOCK_N, BLOCK_D, True, CHECK_D, WIDE, DESCRIPTORS, BF16,
        )  # fmt: skip
        v = load_tile(
            v_base, batch, head_kv, start, stride_vn, stride_vd, keys_left, value_dim,
            BLOCK_N, BLOCK_DV, True, CHECK_DV, WIDE, DESCRIPTORS, BF16,
        )  # fmt: skip
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACCUMULATOR)  # (BLOCK_M, BLOCK_N)
        if SOFTCAP:
            scores, slope = tanh_and_slope(scores * inner_scale, ACCUMULATOR)
        if ALIBI:
            scores = biased(scores, alibi, query_places[:, None], keys[None, :], ACCUMULATOR)
        if BIAS:
            scores = with_bias(
                scores, bias_base, 0, start, stride_bm, stride_bn, rows_left, keys_left, inverse,
                BIAS, BLOCK_M, BLOCK_N, True, True, WIDE, ACCUMULATOR, BF16,
            )  # fmt: skip
        p = probabilities(scores, lse[:, None], logit_scale)
        if BIAS:
            p = tl.where(scores == float("-inf"), 0.0, p)  # in a row that sees no key too, whose lse is -inf
        if DROPOUT:
            dropped = dropped_pairs(
                seed, first_call, sequence * heads_q + head, first_row, start, largest_dropped, BLOCK_M, BLOCK_N, False
            )
            p = marked(p, dropped, DROPOUT)
        dp = tl.dot(dout, tl.trans(v), input_precision=PRECISION, out_dtype=ACCUMULATOR)
        if DROPOUT:  # noqa: SIM108 (decided when the kernel is compiled)
            ds = score_gradient(p, dropped, dp, delta[:, None], kept_scale, DROPOUT)
        else:
            ds = p * (dp - delta[:, None])
        if SOFTCAP:
            ds = ds * slope
        if BIAS:
            ds = tl.where(p == 0.0, 0.0, ds)
        if (start < full_begin) | (start >= full_end):
            seen = (keys < seqlen_k)[None, :]
            if CAUSAL:
                seen = seen & (keys[None, :] <= query_rows[:, None] + causal_offset)
            if WINDOW:
                seen = seen & (keys[None, :] >= query_rows[:, None] + first_offset)
            ds = tl.where(seen, ds, 0.0)
        dq = tl.dot(as_operand(ds, STORAGE, BF16), k, dq, input_precision=PRECISION, out_dtype=ACCUMULATOR)

    dq_base = head_base(dq_ptr, batch, head, stride_xb, stride_xh, False)
    dq = dq * (scale * sign)
    if PACKED:  # rows of the stretch that are not the sequence's
        dq = tl.where((query_rows < seqlen_q)[:, None], dq, 0.0)
    stored_left = rows_stored - first_row
    store_tile(dq_base, dq, first_row, stride_xn, stride_xd, stored_left, head_dim, BLOCK_M, BLOCK_D, WIDE, BF16)
