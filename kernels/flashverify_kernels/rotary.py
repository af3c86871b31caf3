"""Rotary position embedding (RoPE, Su et al., arXiv 2104.09864): pairs of columns are turned by angles of a position.

    out[a] = x[a]·cos - x[b]·sin,   out[b] = x[b]·cos + x[a]·sin,   cos and sin of (position, pair)

The first `rotary_dim` columns take part, the others stay. Pair i is columns (2i, 2i + 1) if interleaved (GPT-J), else columns
(i, i + rotary_dim / 2) (GPT-NeoX). Products and sums are float32 (float64 for float64), and rounded once to x's dtype.
"""

import torch
import triton
import triton.language as tl

from flashverify_kernels.cache import CACHE_UNSPECIALIZED, cached_length
from flashverify_kernels.launch import EMULATE_BF16, accumulator_of, storage_of
from flashverify_kernels.primitives import as_stored, bf16_to_fp32
from flashverify_kernels.tiles import padded_head_dim

ROWS = 16
"""Rows (tokens times heads) of a program."""


@triton.jit
def widened(x, ACCUMULATOR: tl.constexpr, EMULATE_BF16: tl.constexpr):
    """A tile of stored values in ACCUMULATOR, exactly."""
    if EMULATE_BF16 and x.dtype == tl.bfloat16:
        return bf16_to_fp32(x).to(ACCUMULATOR)
    else:
        return x.to(ACCUMULATOR)


@triton.jit
def rotated_rows(
    rows_ptr,
    inside,
    positions,
    cos_ptr,
    sin_ptr,
    stride_column,
    stride_cn,
    stride_cd,
    stride_sn,
    stride_sd,
    table_rows,
    rotary_dim,
    head_dim,
    INTERLEAVED: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    EMULATE_BF16: tl.constexpr,
):
    """Rows (ROWS, BLOCK_D) of x at rows_ptr (ROWS,), each turned by the angles of its position, in ACCUMULATOR.

    A position outside of the tables of angles, of table_rows rows, is not read: its row becomes NaN.
    """
    columns = tl.arange(0, BLOCK_D)
    half = rotary_dim // 2
    turned = columns < rotary_dim
    if INTERLEAVED:
        pair = columns // 2
        is_first = columns % 2 == 0
        partner = tl.where(is_first, columns + 1, columns - 1)
    else:
        is_first = columns < half
        pair = tl.where(is_first, columns, columns - half)
        partner = tl.where(is_first, columns + half, columns - half)
    loaded = inside[:, None] & (columns < head_dim)[None, :]
    has_pair = inside[:, None] & turned[None, :]
    own = tl.load(rows_ptr[:, None] + columns[None, :] * stride_column, mask=loaded, other=0.0)
    other = tl.load(rows_ptr[:, None] + partner[None, :] * stride_column, mask=has_pair, other=0.0)
    has_angle = has_pair & ((positions >= 0) & (positions < table_rows))[:, None]
    places = positions.to(tl.int64)[:, None]
    cos = tl.load(cos_ptr + places * stride_cn + pair[None, :] * stride_cd, mask=has_angle, other=float("nan"))
    sin = tl.load(sin_ptr + places * stride_sn + pair[None, :] * stride_sd, mask=has_angle, other=float("nan"))
    own = widened(own, ACCUMULATOR, EMULATE_BF16)
    other = widened(other, ACCUMULATOR, EMULATE_BF16)
    cos = widened(cos, ACCUMULATOR, EMULATE_BF16)
    sin = widened(sin, ACCUMULATOR, EMULATE_BF16)
    signed = tl.where(is_first[None, :], -other, other)
    return tl.where(turned[None, :], own * cos + signed * sin, own)


@triton.jit(do_not_specialize=[*CACHE_UNSPECIALIZED, "tokens", "heads", "table_rows"])
def rotary_kernel(
    x_ptr,
    out_ptr,
    cos_ptr,
    sin_ptr,
    seqlens_ptr,
    stride_xb,
    stride_xn,
    stride_xh,
    stride_xd,
    stride_ob,
    stride_on,
    stride_oh,
    stride_od,
    stride_cn,
    stride_cd,
    stride_sn,
    stride_sd,
    tokens,
    heads,
    seqlen,
    capacity,
    table_rows,
    rotary_dim,
    head_dim,
    RAGGED: tl.constexpr,
    ADVANCE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    EMULATE_BF16: tl.constexpr,
):
    """One program: ROWS of the rows (token, head) of one batch entry. Token i has place length + i if ADVANCE, else length."""
    blocks = tl.cdiv(tokens * heads, ROWS)
    batch = tl.program_id(0) // blocks
    rows = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    inside = rows < tokens * heads
    token = rows // heads
    head = (rows % heads).to(tl.int64)
    positions = cached_length(seqlens_ptr, batch, seqlen, capacity, RAGGED) + tl.zeros_like(rows)
    if ADVANCE:
        positions += token
    batch = batch.to(tl.int64)
    rows_ptr = x_ptr + (batch * stride_xb + token.to(tl.int64) * stride_xn + head * stride_xh)
    out = rotated_rows(
        rows_ptr, inside, positions, cos_ptr, sin_ptr, stride_xd, stride_cn, stride_cd, stride_sn, stride_sd,
        table_rows, rotary_dim, head_dim, INTERLEAVED, BLOCK_D, ACCUMULATOR, EMULATE_BF16,
    )  # fmt: skip
    columns = tl.arange(0, BLOCK_D)[None, :]
    out_rows = out_ptr + (batch * stride_ob + token.to(tl.int64) * stride_on + head * stride_oh)
    rounded = as_stored(out, out_ptr.dtype.element_ty, EMULATE_BF16)
    tl.store(out_rows[:, None] + columns * stride_od, rounded, mask=inside[:, None] & (columns < head_dim))


def rotate(
    x: torch.Tensor,
    out: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    seqlens: torch.Tensor | None,
    seqlen: int,
    capacity: int,
    advance: bool,
    interleaved: bool,
) -> None:
    """Launch the rotary kernel.

    Args:
        x: (B, N, H, D), any strides.
        out: (B, N, H, D), any strides: where the turned rows go.
        cos: (positions, rotary_dim / 2), any strides.
        sin: as cos.
        seqlens: (B,), int32, contiguous: the position of each batch entry's first token; None: all have `seqlen`.
        seqlen: that position.
        capacity: what positions of first tokens are cut off at.
        advance: whether token i stands i places after the first; else all stand where the first does.
        interleaved: whether pairs are neighbours.
    """
    batch, tokens, heads, head_dim = x.shape
    programs = batch * triton.cdiv(tokens * heads, ROWS)
    if programs == 0:
        return
    rotary_kernel[(programs,)](
        x, out, cos, sin, cos if seqlens is None else seqlens,
        *x.stride(), *out.stride(), *cos.stride(), *sin.stride(),
        tokens, heads, seqlen, capacity, cos.shape[0], 2 * cos.shape[1], head_dim,
        RAGGED=seqlens is not None,
        ADVANCE=advance,
        INTERLEAVED=interleaved,
        ROWS=ROWS,
        BLOCK_D=padded_head_dim(head_dim),
        ACCUMULATOR=storage_of(accumulator_of(x.dtype)),
        EMULATE_BF16=EMULATE_BF16,
    )  # fmt: skip
