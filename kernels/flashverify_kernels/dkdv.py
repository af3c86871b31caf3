"""dK and dV: one program a block of keys, which sums over the query heads of its group; see `backward.py`."""

import triton
import triton.language as tl

from flashverify_kernels.dropout import dropped_pairs, kept, marked, score_gradient, unpack_dropout
from flashverify_kernels.launch import UNSPECIALIZED
from flashverify_kernels.packed import own_key_block, row_statistic, rows_from
from flashverify_kernels.primitives import (
    alibi_slope,
    as_operand,
    biased,
    block_and_head,
    head_base,
    load_tile,
    probabilities,
    store_tile,
    tanh_and_slope,
    unpack_scale,
    unpack_softcap,
    with_bias,
)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def dkdv_kernel(
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
    stride_ab,
    stride_ah,
    starts_q_ptr,
    used_q_ptr,
    starts_k_ptr,
    used_k_ptr,
    sequences,
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
    """One program: dK and dV of BLOCK_N keys of one key head. Strides `g` are dO's, `x` those of dk and dv alike.

    VALUE_DIM: columns of v and dO, or 0 if they are those of q and k. With starts, sequences are packed, as for the forward
    kernel.
    """
    PACKED: tl.constexpr = starts_q_ptr is not None
    if not PACKED:
        key_blocks = tl.cdiv(seqlen_k, BLOCK_N)
        key_block, batch_and_head = block_and_head(key_blocks, section)
        batch = batch_and_head // heads_kv
        head_kv = batch_and_head % heads_kv
        first_key = key_block * BLOCK_N
        sequence = batch
        keys_stored = seqlen_k
    else:
        slot, head_kv = block_and_head(seqlen_k // BLOCK_N + sequences + 1, section)
        batch = head_kv * 0
        sequence, first_key, start_q, seqlen_q, start_k, keys_stored, seqlen_k = own_key_block(
            slot, starts_q_ptr, used_q_ptr, starts_k_ptr, used_k_ptr, sequences, seqlen_q, seqlen_k, BLOCK_N
        )
        q_source = rows_from(q_source, start_q, stride_qn)
        dout_source = rows_from(dout_source, start_q, stride_gn)
        rows_lse_ptr += start_q
        rows_delta_ptr += start_q
        k_source = rows_from(k_source, start_k, stride_kn)
        v_source = rows_from(v_source, start_k, stride_vn)
        dk_ptr = rows_from(dk_ptr, start_k, stride_xn)
        dv_ptr = rows_from(dv_ptr, start_k, heads_kv * VALUE_DIM if VALUE_DIM else stride_xn)
        causal_offset += seqlen_k - seqlen_q
        first_offset += seqlen_k - seqlen_q

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

    query_places = seqlen_k - seqlen_q  # of query 0
    if PACKED:
        seqlen_q = tl.where(keys_left > 0, seqlen_q, 0)  # a block that holds no key walks over nothing
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

    inverse = 0.0
    if BIAS:
        inverse = 1.0 / logit_scale
    if DROPOUT:
        seed, first_call, kept_scale = unpack_dropout(dropout_ptr, dropout_bits, ACCUMULATOR)
    dk = tl.zeros((BLOCK_N, BLOCK_D), ACCUMULATOR)
    dv = tl.zeros((BLOCK_N, BLOCK_DV), ACCUMULATOR)
    for member in range(0, group_size):
        head = head_kv * group_size + member
        q_base = head_base(q_source, batch, head, stride_qb, stride_qh, DESCRIPTORS)
        dout_base = head_base(dout_source, batch, head, stride_gb, stride_gh, DESCRIPTORS)
        row = (batch * heads_kv * group_size + head).to(tl.int64) * padded_q
        alibi = 0.0
        if ALIBI:
            alibi = alibi_slope(slopes_ptr, sequence, head, stride_ab, stride_ah, logit_scale, ACCUMULATOR)
        bias_base = 0
        if BIAS:
            bias_base = head_base(bias_ptr, batch, head, stride_bb, stride_bh, False)
            bias_base += tl.cast(first_key, tl.int64) * stride_bn
        for start in range(begin, end, BLOCK_M):
            queries = start + tl.arange(0, BLOCK_M)
            rows_left = seqlen_q - start
            lse, delta = row_statistic(rows_lse_ptr + row, rows_delta_ptr + row, queries, seqlen_q, PACKED)
            q = load_tile(
                q_base, batch, head, start, stride_qn, stride_qd, rows_left, head_dim,
                BLOCK_M, BLOCK_D, True, CHECK_D, WIDE, DESCRIPTORS, BF16,
            )  # fmt: skip
            scores = tl.dot(k, tl.trans(q), input_precision=PRECISION, out_dtype=ACCUMULATOR)  # (BLOCK_N, BLOCK_M)
            if SOFTCAP:
                scores, slope = tanh_and_slope(scores * inner_scale, ACCUMULATOR)
            if ALIBI:
                scores = biased(scores, alibi, (queries + query_places)[None, :], keys[:, None], ACCUMULATOR)
            if BIAS:
                scores = with_bias(
                    scores, bias_base, 0, start, stride_bn, stride_bm, keys_left, rows_left, inverse,
                    BIAS, BLOCK_N, BLOCK_M, True, True, WIDE, ACCUMULATOR, BF16,
                )  # fmt: skip
            p = probabilities(scores, lse[None, :], logit_scale)
            if BIAS:
                # Of hidden pairs, in a row that sees no key (lse = -inf) too; and of padding rows, whatever hidden keys hold.
                p = tl.where((scores == float("-inf")) | (lse == float("inf"))[None, :], 0.0, p)
            if CAUSAL or WINDOW:  # noqa: SIM102 (decided when the kernel is compiled)
                if (start < full_begin) | (start >= full_end) | (BLOCK_D > 128):  # the branch takes registers of the widest
                    if CAUSAL:
                        p = tl.where(keys[:, None] <= queries[None, :] + causal_offset, p, 0.0)
                    if WINDOW:
                        p = tl.where(keys[:, None] >= queries[None, :] + first_offset, p, 0.0)
            weights = p
            if DROPOUT:
                entry_and_head = sequence * heads_kv * group_size + head
                dropped = dropped_pairs(
                    seed, first_call, entry_and_head, start, first_key, largest_dropped, BLOCK_M, BLOCK_N, True
                )
                p = marked(p, dropped, DROPOUT)
                weights = kept(p, dropped, DROPOUT)
            dout = load_tile(
                dout_base, batch, head, start, stride_gn, stride_gd, rows_left, value_dim,
                BLOCK_M, BLOCK_DV, True, CHECK_DV, WIDE, DESCRIPTORS, BF16,
            )  # fmt: skip
            dv = tl.dot(as_operand(weights, STORAGE, BF16), dout, dv, input_precision=PRECISION, out_dtype=ACCUMULATOR)
            dp = tl.dot(v, tl.trans(dout), input_precision=PRECISION, out_dtype=ACCUMULATOR)
            if DROPOUT:  # noqa: SIM108 (decided when the kernel is compiled)
                ds = score_gradient(p, dropped, dp, delta[None, :], kept_scale, DROPOUT)
            else:
                ds = p * (dp - delta[None, :])
            if SOFTCAP:
                ds = ds * slope
            if BIAS:
                ds = tl.where(p == 0.0, 0.0, ds)
            dk = tl.dot(as_operand(ds, STORAGE, BF16), q, dk, input_precision=PRECISION, out_dtype=ACCUMULATOR)

    dk_base = head_base(dk_ptr, batch, head_kv, stride_xb, stride_xh, False)
    dk = dk * (scale * sign)
    if DROPOUT:
        dv = dv * kept_scale
    if PACKED:  # rows of the stretch that are not the sequence's
        dk = tl.where((keys < seqlen_k)[:, None], dk, 0.0)
        dv = tl.where((keys < seqlen_k)[:, None], dv, 0.0)
    stored_left = keys_stored - first_key
    store_tile(dk_base, dk, first_key, stride_xn, stride_xd, stored_left, head_dim, BLOCK_N, BLOCK_D, WIDE, BF16)
    if VALUE_DIM:  # laid out like dk, as B,N,H,D
        stride_xh = VALUE_DIM
        stride_xn = heads_kv * VALUE_DIM
        stride_xb = seqlen_k.to(tl.int64) * stride_xn
    dv_base = head_base(dv_ptr, batch, head_kv, stride_xb, stride_xh, False)
    store_tile(dv_base, dv, first_key, stride_xn, stride_xd, stored_left, value_dim, BLOCK_N, BLOCK_DV, WIDE, BF16)
