"""FlashAttention forward: out and lse, one row block at a time over the keys.

    S = QKᵀ,  m = running maximum of S,  p = exp2((S - m)·scale·log2 e),  l = Σ p,  acc = Σ p·V
    out = acc / l,   lse = m·scale + ln l

A soft cap c makes logits c·tanh(S·scale / c): tanh then takes the place of S above, and c that of scale. A linear bias (ALiBi,
Press et al., arXiv 2108.12409) lowers S by slope / scale times the distance of key and query. Another additive bias adds
bias·(1 / scale) to S, and a mask puts -inf in its place. A sink s (Xiao et al., arXiv 2309.17453) starts m at s·(1 / scale) and
l at 1: it is part of the sum and of no product. Dropout (`dropout.py`) sets P to 0 behind the sum, and out is multiplied by
what makes up for it, once.

The online softmax is that of Milakov and Gimelshein (arXiv 1805.02867), its tiling that of FlashAttention-2 (Dao,
arXiv 2307.08691). The maximum is taken of the raw scores and subtracted before scaling: p <= 1 whatever the size of the logits,
and the error of an exponent is relative to its distance from the maximum, not to the logit. P is rounded to the dtype of v
for the product with V; l sums it unrounded. Key blocks are walked from the left.
"""

import torch
import triton
import triton.language as tl

from flashverify_kernels.dropout import Dropout, dropout_arguments, dropped_pairs, unpack_dropout
from flashverify_kernels.launch import (
    EMULATE_BF16,
    UNSPECIALIZED,
    accumulator_of,
    alibi_strides,
    bias_kind,
    dot_precision,
    expanded_bias,
    heads_at_once,
    loadable_bias,
    needs_wide_offsets,
    output_like,
    scale_bits,
    storage_of,
    tile_sources,
    with_strides,
)
from flashverify_kernels.packed import Packed, own_query_block, packed_arguments, rows_from
from flashverify_kernels.primitives import (
    LN2,
    alibi_slope,
    as_operand,
    biased,
    block_and_head,
    head_base,
    key_limits,
    load_tile,
    logit_at,
    store_tile,
    tanh_and_slope,
    unpack_scale,
    unpack_softcap,
    with_bias,
)
from flashverify_kernels.tiles import TileConfig, padded_head_dim, stages_of


@triton.jit(do_not_specialize=UNSPECIALIZED)
def forward_kernel(
    q_source,
    k_source,
    v_source,
    out_ptr,
    lse_ptr,
    slopes_ptr,
    bias_ptr,
    stride_bb,
    stride_bh,
    stride_bm,
    stride_bn,
    sink_ptr,
    stride_sh,
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
    SINK: tl.constexpr,
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
    """One program: BLOCK_M query rows of one head. Causal: the row blocks with most keys come first.

    VALUE_DIM: columns of v and out, or 0 if they are those of q and k. With starts, sequences are packed (`packed.py`): batch
    is 1, seqlen_q and seqlen_k are the rows of all, and offsets count from a sequence's own alignment.
    """
    PACKED: tl.constexpr = starts_q_ptr is not None
    if not PACKED:
        row_blocks = tl.cdiv(seqlen_q, BLOCK_M)
        place, batch_and_head = block_and_head(row_blocks, section)
        batch = batch_and_head // heads_q
        head = batch_and_head % heads_q
        first_row = (row_blocks - 1 - place) * BLOCK_M
        lse_row = lse_ptr + batch_and_head.to(tl.int64) * seqlen_q
        sequence = batch
        rows_stored = seqlen_q
    else:
        slot, head = block_and_head(seqlen_q // BLOCK_M + sequences + 1, section)
        batch = head * 0
        lse_row = lse_ptr + head.to(tl.int64) * seqlen_q
        sequence, first_row, start_q, rows_stored, seqlen_q, start_k, seqlen_k = own_query_block(
            slot, starts_q_ptr, used_q_ptr, starts_k_ptr, used_k_ptr, sequences, seqlen_q, seqlen_k, BLOCK_M
        )
        q_source = rows_from(q_source, start_q, stride_qn)
        k_source = rows_from(k_source, start_k, stride_kn)
        v_source = rows_from(v_source, start_k, stride_vn)
        out_ptr = rows_from(out_ptr, start_q, stride_on)
        lse_row += start_q
        causal_offset += seqlen_k - seqlen_q
        first_offset += seqlen_k - seqlen_q
    head_kv = head // group_size

    query_rows = first_row + tl.arange(0, BLOCK_M)
    rows_left = seqlen_q - first_row
    sign, scale, exponent_scale = unpack_scale(scale_bits, ACCUMULATOR)
    inner_scale = scale
    if SOFTCAP:
        inner_scale, scale, exponent_scale = unpack_softcap(scale_bits, softcap_bits, ACCUMULATOR)
    slope = 0.0
    query_places = query_rows
    if ALIBI:
        slope = alibi_slope(slopes_ptr, sequence, head, stride_ab, stride_ah, scale, ACCUMULATOR)
        query_places = query_rows + (seqlen_k - seqlen_q)
    inverse = 0.0
    if BIAS or SINK:
        inverse = 1.0 / scale
    bias_base = 0
    if BIAS:
        bias_base = head_base(bias_ptr, batch, head, stride_bb, stride_bh, False) + tl.cast(first_row, tl.int64) * stride_bm
    value_dim = head_dim
    if VALUE_DIM:
        value_dim = VALUE_DIM

    q_base = head_base(q_source, batch, head, stride_qb, stride_qh, DESCRIPTORS)
    q = load_tile(
        q_base, batch, head, first_row, stride_qn, stride_qd, rows_left, head_dim,
        BLOCK_M, BLOCK_D, True, CHECK_D, WIDE, DESCRIPTORS, BF16,
    )  # fmt: skip
    if SIGNED:
        q = (q * sign).to(q.dtype)
    k_base = head_base(k_source, batch, head_kv, stride_kb, stride_kh, DESCRIPTORS)
    v_base = head_base(v_source, batch, head_kv, stride_vb, stride_vh, DESCRIPTORS)

    if PACKED:
        seqlen_k = tl.where(rows_left > 0, seqlen_k, 0)  # a block that holds no query walks over nothing
    begin, full_begin, full_end, end = key_limits(
        first_row, seqlen_k, causal_offset, first_offset, CAUSAL, WINDOW, BLOCK_M, BLOCK_N
    )

    accumulator = tl.zeros((BLOCK_M, BLOCK_DV), ACCUMULATOR)
    running_max = tl.full((BLOCK_M,), float("-inf"), ACCUMULATOR)
    running_sum = tl.zeros((BLOCK_M,), ACCUMULATOR)
    if SINK:
        sink = logit_at(sink_ptr, head * stride_sh, ACCUMULATOR, BF16)
        sink_score = sink * inverse
        running_max = tl.zeros((BLOCK_M,), ACCUMULATOR) + sink_score
        running_sum = tl.where(running_max == float("-inf"), running_sum, 1.0)
    if DROPOUT:
        seed, first_call, kept_scale = unpack_dropout(dropout_ptr, dropout_bits, ACCUMULATOR)
    for start in range(begin, end, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        keys_left = seqlen_k - start
        k = load_tile(
            k_base, batch, head_kv, start, stride_kn, stride_kd, keys_left, head_dim,
            BLOCK_N, BLOCK_D, True, CHECK_D, WIDE, DESCRIPTORS, BF16,
        )  # fmt: skip
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACCUMULATOR)  # (BLOCK_M, BLOCK_N)
        if SOFTCAP:
            scores, _slope = tanh_and_slope(scores * inner_scale, ACCUMULATOR)
        if ALIBI:
            scores = biased(scores, slope, query_places[:, None], keys[None, :], ACCUMULATOR)
        if BIAS:
            scores = with_bias(
                scores, bias_base, 0, start, stride_bm, stride_bn, rows_left, keys_left, inverse,
                BIAS, BLOCK_M, BLOCK_N, True, True, WIDE, ACCUMULATOR, BF16,
            )  # fmt: skip
        if (start < full_begin) | (start >= full_end):
            seen = (keys < seqlen_k)[None, :]
            if CAUSAL:
                seen = seen & (keys[None, :] <= query_rows[:, None] + causal_offset)
            if WINDOW:
                seen = seen & (keys[None, :] >= query_rows[:, None] + first_offset)
            scores = tl.where(seen, scores, float("-inf"))
        new_max = tl.maximum(running_max, tl.max(scores, 1))
        # A row that has seen no key keeps -inf as its maximum; -inf - 0 is defined, -inf - (-inf) is not.
        shift = tl.where(new_max == float("-inf"), 0.0, new_max)
        p = tl.exp2((scores - shift[:, None]) * exponent_scale)
        rescale = tl.exp2((running_max - shift) * exponent_scale)
        running_sum = running_sum * rescale + tl.sum(p, 1)
        accumulator = accumulator * rescale[:, None]
        v = load_tile(
            v_base, batch, head_kv, start, stride_vn, stride_vd, keys_left, value_dim,
            BLOCK_N, BLOCK_DV, True, CHECK_DV, WIDE, DESCRIPTORS, BF16,
        )  # fmt: skip
        if DROPOUT:  # behind the sum: lse is that of all probabilities
            dropped = dropped_pairs(
                seed, first_call, sequence * heads_q + head, first_row, start, largest_dropped, BLOCK_M, BLOCK_N, False
            )
            p = tl.where(dropped, 0.0, p)
        accumulator = tl.dot(as_operand(p, STORAGE, BF16), v, accumulator, input_precision=PRECISION, out_dtype=ACCUMULATOR)
        running_max = new_max

    saw_no_key = running_sum == 0.0
    divisor = tl.where(saw_no_key, 1.0, running_sum)
    out = accumulator / divisor[:, None]
    if DROPOUT:
        out = out * kept_scale
    lse = tl.where(saw_no_key, float("-inf"), running_max * scale + tl.log2(divisor) * LN2)
    if SINK:  # not scaled back where it is the maximum: a row that sees no key has the sink itself as its lse
        lse = tl.where(running_max == sink_score, sink + tl.log2(divisor) * LN2, lse)
    if PACKED:  # rows of the stretch that are not the sequence's
        out = tl.where((query_rows < seqlen_q)[:, None], out, 0.0)
        lse = tl.where(query_rows < seqlen_q, lse, float("-inf"))

    out_base = head_base(out_ptr, batch, head, stride_ob, stride_oh, False)
    stored_left = rows_stored - first_row
    store_tile(out_base, out, first_row, stride_on, stride_od, stored_left, value_dim, BLOCK_M, BLOCK_DV, WIDE, BF16)
    tl.store(lse_row + query_rows, lse, mask=query_rows < rows_stored)


def attention_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    causal_offset: int | None,
    first_offset: int | None,
    precision: str,
    tile: TileConfig,
    output_dtype: torch.dtype | None = None,
    softcap: float | None = None,
    alibi: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
    dropout: Dropout | None = None,
    packed: Packed | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the forward kernel.

    Args:
        q: (B, Hq, Nq, D), any strides.
        k: (B, Hkv, Nk, D), any strides; Hq is a multiple of Hkv.
        v: (B, Hkv, Nk, Dv), any strides.
        scale: softmax scale.
        causal_offset: query i sees no key after i + causal_offset; None: no such limit.
        first_offset: query i sees no key before i + first_offset; None: no such limit.
        precision: Triton's input precision of float32 products.
        tile: block sizes, warps and stages.
        output_dtype: dtype that out is rounded to; None: that of q.
        softcap: logits become softcap·tanh(logit / softcap); None: they stay.
        alibi: slopes (B, Hq), float32, any strides: logits are lowered by slope·|i + Nk - Nq - j|; None: they stay.
        bias: (1|B, 1|Hq, 1|Nq, Nk), any strides: of q's dtype or lse's, added to logits after a cap and slopes, -inf hiding a
            pair; or bool, False hiding it; None: logits stay.
        sink: one more logit for each head's denominators, (Hq,), of q's dtype or lse's; None: there is none.
        dropout: which pairs are dropped; None: none is.
        packed: where sequences lie in q, k and v, whose B is 1, while slopes are one row a sequence. Offsets then count from
            each sequence's own alignment (0: its last query sees its last key last), and there is no bias. Rows that are no
            sequence's get out 0 and lse -inf.

    Returns:
        out (B, Hq, Nq, Dv), laid out as B,N,H,D in memory; lse (B, Hq, Nq), float32 (float64 for float64 inputs).
    """
    batch, heads_q, seqlen_q, head_dim = q.shape
    value_dim = v.shape[3]
    bias = loadable_bias(bias, q.dtype)
    out = output_like(q, output_dtype, value_dim)
    lse = torch.empty((batch, heads_q, seqlen_q), dtype=accumulator_of(q.dtype), device=q.device)
    slots = triton.cdiv(seqlen_q, tile.block_m) if packed is None else packed.slots(seqlen_q, tile.block_m)
    programs = slots * batch * heads_q
    if programs == 0 or seqlen_q == 0:
        return out, lse
    heads_kv, seqlen_k = k.shape[1], k.shape[2]
    block_d, block_dv = padded_head_dim(head_dim), padded_head_dim(value_dim)
    tiles = ((q, tile.block_m, block_d), (k, tile.block_n, block_d), (v, tile.block_n, block_dv))
    products = batch * heads_q * seqlen_q * seqlen_k * head_dim if packed is None else None
    sources, has_descriptors = tile_sources(*tiles, products=products)
    bias_view = expanded_bias(bias, q, k)
    bias_tiles = () if bias_view is None else ((bias_view, tile.block_m, tile.block_n),)
    forward_kernel[(programs,)](
        *sources, out, lse, lse if alibi is None else alibi, *with_strides(bias_view, 4), *with_strides(sink, 1),
        *q.stride(), *k.stride(), *v.stride(), *out.stride(), *alibi_strides(alibi),
        *packed_arguments(packed),
        heads_q, heads_q // heads_kv, heads_at_once(k, heads_q // heads_kv, batch * heads_q), seqlen_q, seqlen_k, head_dim,
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
        SINK=sink is not None,
        SIGNED=scale <= 0.0,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_D=block_d,
        BLOCK_DV=block_dv,
        CHECK_D=block_d != head_dim,
        CHECK_DV=block_dv != value_dim,
        VALUE_DIM=0 if value_dim == head_dim else value_dim,
        WIDE=needs_wide_offsets(*tiles, (out, tile.block_m, block_dv), *bias_tiles),
        DESCRIPTORS=has_descriptors,
        STORAGE=storage_of(q.dtype),
        ACCUMULATOR=storage_of(lse.dtype),
        PRECISION=dot_precision(precision),
        BF16=EMULATE_BF16 and q.dtype == torch.bfloat16,
        enable_fp_fusion=bias is None,  # the backward pass recomputes biased scores without contraction
        num_warps=tile.num_warps,
        num_stages=stages_of(tile, bias),
    )  # fmt: skip
    return out, lse
