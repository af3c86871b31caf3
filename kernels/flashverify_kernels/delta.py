"""The first step of the backward pass: for each query row, delta = Σ_d dO·out - dlse, and lse beside it."""

import torch
import triton
import triton.language as tl

from flashverify_kernels.launch import EMULATE_BF16, UNSPECIALIZED, needs_wide_offsets, storage_of
from flashverify_kernels.primitives import head_base, load_tile
from flashverify_kernels.tiles import padded_head_dim


@triton.jit(do_not_specialize=UNSPECIALIZED)
def delta_kernel(
    out_ptr,
    dout_ptr,
    dlse_ptr,
    lse_ptr,
    rows_lse_ptr,
    rows_delta_ptr,
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
    padded_q,
    head_dim,
    HAS_DLSE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHECK_D: tl.constexpr,
    WIDE: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    BF16: tl.constexpr,
):
    """For BLOCK_M rows of one head: delta = rowsum(dO·out) - dlse, and lse beside it.

    Rows are padded to whole tiles, with lse = inf and delta = 0, so that the other kernels load them without a mask.
    """
    row_blocks = padded_q // BLOCK_M
    first_row = tl.program_id(0) % row_blocks * BLOCK_M
    batch_and_head = tl.program_id(0) // row_blocks
    batch = batch_and_head // heads_q
    head = batch_and_head % heads_q
    rows_left = seqlen_q - first_row

    out = load_tile(
        head_base(out_ptr, batch, head, stride_ob, stride_oh, False), batch, head, first_row, stride_on, stride_od,
        rows_left, head_dim, BLOCK_M, BLOCK_D, True, CHECK_D, WIDE, False, BF16,
    )  # fmt: skip
    dout = load_tile(
        head_base(dout_ptr, batch, head, stride_gb, stride_gh, False), batch, head, first_row, stride_gn, stride_gd,
        rows_left, head_dim, BLOCK_M, BLOCK_D, True, CHECK_D, WIDE, False, BF16,
    )  # fmt: skip
    delta = tl.sum(out.to(ACCUMULATOR) * dout.to(ACCUMULATOR), 1)

    rows = first_row + tl.arange(0, BLOCK_M)
    inside = rows < seqlen_q
    offsets = batch_and_head.to(tl.int64) * seqlen_q + rows
    if HAS_DLSE:
        delta -= tl.load(dlse_ptr + offsets, mask=inside, other=0.0)
    lse = tl.load(lse_ptr + offsets, mask=inside, other=float("inf"))
    padded_offsets = batch_and_head.to(tl.int64) * padded_q + rows
    tl.store(rows_delta_ptr + padded_offsets, delta)
    tl.store(rows_lse_ptr + padded_offsets, lse)


def row_statistics(
    dout: torch.Tensor, dlse: torch.Tensor | None, out: torch.Tensor, lse: torch.Tensor, tile_rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lse and delta of every row, (B, Hq, Nq padded to tiles of tile_rows)."""
    batch, heads_q, seqlen_q, head_dim = out.shape
    block_m = 32
    padded_q = triton.cdiv(seqlen_q, max(block_m, tile_rows)) * max(block_m, tile_rows)
    rows_lse, rows_delta = torch.empty((2, batch, heads_q, padded_q), dtype=lse.dtype, device=out.device)
    programs = padded_q // block_m * batch * heads_q
    if programs == 0:
        return rows_lse, rows_delta
    block_d = padded_head_dim(head_dim)
    delta_kernel[(programs,)](
        out, dout, lse if dlse is None else dlse.contiguous(), lse, rows_lse, rows_delta,
        *out.stride(), *dout.stride(), heads_q, seqlen_q, padded_q, head_dim,
        HAS_DLSE=dlse is not None,
        BLOCK_M=block_m,
        BLOCK_D=block_d,
        CHECK_D=block_d != head_dim,
        WIDE=needs_wide_offsets((out, block_m, block_d), (dout, block_m, block_d)),
        ACCUMULATOR=storage_of(lse.dtype),
        BF16=EMULATE_BF16 and out.dtype == torch.bfloat16,
    )  # fmt: skip
    return rows_lse, rows_delta
