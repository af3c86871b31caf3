"""Parts of one softmax become the whole: out and lse of rows whose keys were split.

    m = max m_s,  w_s = exp2((m_s - m)·scale·log2 e),  l = Σ w_s·l_s,  out = Σ w_s·acc_s / l,  lse = m·scale + ln l

m_s are maxima of raw scores, as in `decode`; a part that saw no key has m_s = -inf, and its acc_s is not read.
"""

import torch
import triton
import triton.language as tl

from flashverify_kernels.launch import EMULATE_BF16, scale_bits, storage_of
from flashverify_kernels.primitives import LN2, as_stored, unpack_scale, unpack_softcap
from flashverify_kernels.tiles import padded_head_dim

PARTS_AT_ONCE = 16
"""Parts of a tile: with the largest head size, 32 elements for each of 128 threads."""


@triton.jit(do_not_specialize=["heads", "seqlen_q", "splits", "scale_bits", "softcap_bits"])
def merge_kernel(
    parts_ptr,
    maxima_ptr,
    sums_ptr,
    out_ptr,
    lse_ptr,
    stride_ob,
    stride_on,
    stride_oh,
    stride_od,
    heads,
    seqlen_q,
    value_dim,
    splits,
    scale_bits,
    softcap_bits,
    SOFTCAP: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    EMULATE_BF16: tl.constexpr,
):
    """One program: one row (batch entry, head, query), whose number is its place in lse (B, Hq, Nq)."""
    row = tl.program_id(0)
    rows = tl.num_programs(0)
    _, scale, exponent_scale = unpack_scale(scale_bits, ACCUMULATOR)
    if SOFTCAP:
        _, scale, exponent_scale = unpack_softcap(scale_bits, softcap_bits, ACCUMULATOR)
    columns = tl.arange(0, BLOCK_DV)
    whole_max = tl.full((), float("-inf"), ACCUMULATOR)
    for first in range(0, splits, PARTS):
        parts = first + tl.arange(0, PARTS)
        maxima = tl.load(maxima_ptr + parts.to(tl.int64) * rows + row, mask=parts < splits, other=float("-inf"))
        whole_max = tl.maximum(whole_max, tl.max(maxima, 0))
    shift = tl.where(whole_max == float("-inf"), 0.0, whole_max)

    out = tl.zeros((BLOCK_DV,), ACCUMULATOR)
    whole_sum = tl.zeros((), ACCUMULATOR)
    for first in range(0, splits, PARTS):
        parts = first + tl.arange(0, PARTS)
        places = parts.to(tl.int64) * rows + row
        maxima = tl.load(maxima_ptr + places, mask=parts < splits, other=float("-inf"))
        sums = tl.load(sums_ptr + places, mask=parts < splits, other=0.0)
        weights = tl.exp2((maxima - shift) * exponent_scale)
        whole_sum += tl.sum(weights * sums, 0)
        read = (maxima > float("-inf"))[:, None] & (columns < value_dim)[None, :]
        part = tl.load(parts_ptr + places[:, None] * value_dim + columns[None, :], mask=read, other=0.0)
        out += tl.sum(part * weights[:, None], 0)

    saw_no_key = whole_sum == 0.0
    divisor = tl.where(saw_no_key, 1.0, whole_sum)
    lse = tl.where(saw_no_key, float("-inf"), whole_max * scale + tl.log2(divisor) * LN2)
    tl.store(lse_ptr + row, lse)
    query = (row % seqlen_q).to(tl.int64)
    head = (row // seqlen_q % heads).to(tl.int64)
    batch = (row // seqlen_q // heads).to(tl.int64)
    out_row = out_ptr + (batch * stride_ob + query * stride_on + head * stride_oh)
    rounded = as_stored(out / divisor, out_ptr.dtype.element_ty, EMULATE_BF16)
    tl.store(out_row + columns * stride_od, rounded, mask=columns < value_dim)


def merge(
    parts: torch.Tensor,
    maxima: torch.Tensor,
    sums: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    softcap: float | None,
) -> None:
    """Launch the merge kernel.

    Args:
        parts: acc, (splits, B, Hq, Nq, Dv), contiguous, float32 or float64.
        maxima: m, (splits, B, Hq, Nq), contiguous, of parts' dtype.
        sums: l, as maxima.
        out: (B, Nq, Hq, Dv), any strides and dtype: where the result goes.
        lse: (B, Hq, Nq), contiguous, of parts' dtype: likewise.
        scale: softmax scale.
        softcap: soft cap of the logits, or None.
    """
    splits, batch, heads, seqlen_q, value_dim = parts.shape
    merge_kernel[(batch * heads * seqlen_q,)](
        parts, maxima, sums, out, lse, *out.stride(), heads, seqlen_q, value_dim, splits,
        scale_bits(scale),
        scale_bits(0.0 if softcap is None else softcap),
        SOFTCAP=softcap is not None,
        PARTS=PARTS_AT_ONCE,
        BLOCK_DV=padded_head_dim(value_dim),
        ACCUMULATOR=storage_of(parts.dtype),
        EMULATE_BF16=EMULATE_BF16,
    )  # fmt: skip
