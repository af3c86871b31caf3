"""What the launchers share: dtypes, the scale's bits, and the layout of outputs."""

import struct

import torch
import triton
import triton.language as tl

INTERPRETED: bool = bool(triton.knobs.runtime.interpret)
"""Whether Triton's interpreter runs the kernels (TRITON_INTERPRET=1 when this package was imported)."""

EMULATE_BF16: bool = INTERPRETED

UNSPECIALIZED = ["heads_q", "heads_kv", "group_size", "seqlen_q", "seqlen_k", "causal_offset", "scale_bits"]
"""Arguments whose value compiles no kernel anew. Strides and the head size do: loads are vectorised by their divisors."""

_TRITON_DTYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


def accumulator_of(dtype: torch.dtype) -> torch.dtype:
    """The dtype of scores, softmax state, accumulators and lse: float64 for float64 inputs, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def storage_of(dtype: torch.dtype) -> tl.dtype:
    """Triton's name of a dtype."""
    return _TRITON_DTYPES[dtype]


def scale_bits(scale: float) -> int:
    """The 64 bits of a float64, as a signed integer: how the scale reaches a kernel unrounded."""
    return struct.unpack("<q", struct.pack("<d", scale))[0]


def output_like(x: torch.Tensor) -> torch.Tensor:
    """An uninitialised tensor shaped like x (B, H, N, D) whose memory is laid out as B,N,H,D, whatever x's strides."""
    batch, heads, seqlen, head_dim = x.shape
    return torch.empty((batch, seqlen, heads, head_dim), dtype=x.dtype, device=x.device).transpose(1, 2)
