"""The gradient of sinks, the logits of each head that only its denominators hold: one program a head, in a fixed order.

dsink = -Σ exp(sink - lse)·delta,   over batch entries and rows; delta is that of `backward.py`
"""

import torch
import triton
import triton.language as tl

from flashverify_kernels.launch import EMULATE_BF16, UNSPECIALIZED, storage_of
from flashverify_kernels.primitives import LOG2E, logit_at, store_tile


@triton.jit(do_not_specialize=[*UNSPECIALIZED, "batch_size"])
def dsink_kernel(
    rows_lse_ptr,
    rows_delta_ptr,
    sink_ptr,
    stride_sh,
    dsink_ptr,
    batch_size,
    heads_q,
    padded_q,
    BLOCK: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    BF16: tl.constexpr,
):
    """One program: dsink of one head. Padding rows have lse = inf and delta = 0, and add nothing."""
    head = tl.program_id(0)
    sink = logit_at(sink_ptr, head * stride_sh, ACCUMULATOR, BF16)
    sums = tl.zeros((BLOCK,), ACCUMULATOR)
    for batch in range(0, batch_size):
        first = (batch * heads_q + head).to(tl.int64) * padded_q
        for start in range(0, padded_q, BLOCK):
            rows = start + tl.arange(0, BLOCK)
            lse = tl.load(rows_lse_ptr + first + rows, mask=rows < padded_q, other=float("inf"))
            delta = tl.load(rows_delta_ptr + first + rows, mask=rows < padded_q, other=0.0)
            # A weight is at most 1, however lse is rounded. A row that sees nothing, not even a sink, has lse = -inf.
            exponent = tl.minimum(sink - lse, 0.0, propagate_nan=tl.PropagateNan.ALL)
            sums -= tl.where(lse == float("-inf"), 0.0, tl.exp2(exponent * LOG2E) * delta)
    total = tl.sum(sums[None, :], 1)[:, None]  # (1, 1)
    store_tile(dsink_ptr + head, total, 0, 1, 1, 1, 1, 1, 1, False, BF16)


def sink_gradient(
    rows_lse: torch.Tensor, rows_delta: torch.Tensor, sink: torch.Tensor, output_dtype: torch.dtype | None
) -> torch.Tensor:
    """Launch the kernel of dsink.

    Args:
        rows_lse: of every row, (B, Hq, Nq padded), as `delta.row_statistics` gives it.
        rows_delta: likewise.
        sink: (Hq,), any stride.
        output_dtype: dtype that the gradient is rounded to; None: that of sink.

    Returns:
        dsink (Hq,).
    """
    dsink = torch.empty(sink.shape, dtype=output_dtype or sink.dtype, device=sink.device)
    batch, heads_q, padded_q = rows_lse.shape
    if heads_q:
        dsink_kernel[(heads_q,)](
            rows_lse, rows_delta, sink, sink.stride(0), dsink, batch, heads_q, padded_q,
            BLOCK=256,
            ACCUMULATOR=storage_of(rows_lse.dtype),
            BF16=EMULATE_BF16 and torch.bfloat16 in (sink.dtype, dsink.dtype),
            enable_fp_fusion=False,
        )  # fmt: skip
    return dsink
