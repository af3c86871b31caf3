"""What the launchers share: dtypes, the scale's bits, how tiles are addressed, and the layout of outputs."""

import struct

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

INTERPRETED: bool = bool(triton.knobs.runtime.interpret)
"""Whether Triton's interpreter runs the kernels (TRITON_INTERPRET=1 when this package was imported)."""

EMULATE_BF16: bool = INTERPRETED

UNSPECIALIZED = [
    "heads_q",
    "heads_kv",
    "group_size",
    "section",
    "sequences",
    "seqlen_q",
    "seqlen_k",
    "stored_q",
    "stored_k",
    "causal_offset",
    "first_offset",
    "scale_bits",
    "softcap_bits",
    "largest_dropped",
    "dropout_bits",
]
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


def dot_precision(precision: str) -> str:
    """Triton's input precision; the interpreter knows not all of them, and multiplies in float32 whatever it is told."""
    return "ieee" if INTERPRETED else precision


def output_like(x: torch.Tensor, dtype: torch.dtype | None = None, columns: int | None = None) -> torch.Tensor:
    """An uninitialised tensor shaped like x (B, H, N, D) whose memory is laid out as B,N,H,D, whatever x's strides.

    Args:
        x: the model.
        dtype: dtype of the new tensor; None: that of x.
        columns: its D; None: that of x.
    """
    batch, heads, seqlen, head_dim = x.shape
    shape = (batch, seqlen, heads, head_dim if columns is None else columns)
    return torch.empty(shape, dtype=dtype or x.dtype, device=x.device).transpose(1, 2)


def alibi_strides(slopes: torch.Tensor | None) -> tuple[int, int]:
    """The strides of slopes (B, H), or zeros where there are none."""
    return (0, 0) if slopes is None else (slopes.stride(0), slopes.stride(1))


def bias_kind(bias: torch.Tensor | None) -> int:
    """0 where there is no bias, else `ADDITIVE` or `BOOLEAN` of `primitives.py`."""
    if bias is None:
        return 0
    return 2 if bias.dtype == torch.bool else 1


def loadable_bias(bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """A bias or mask as kernels of q's dtype take it: beside float64 products a mask becomes zeros and -inf, of its own shape.

    Triton lays out the operands of a product by the narrowest type that they come from, bytes of a mask among them, and asserts
    that float64 has no such layout (MMAv2.cpp, "Currently fp64 don't support largeK MMA").
    """
    if bias is None or bias.dtype != torch.bool or dtype != torch.float64:
        return bias
    return torch.zeros(bias.shape, dtype=dtype, device=bias.device).masked_fill_(~bias, -torch.inf)


def expanded_bias(bias: torch.Tensor | None, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor | None:
    """A bias (1|B, 1|Hq, 1|Nq, Nk) as (B, Hq, Nq, Nk) without a copy, of bytes if it is a mask; None stays None."""
    if bias is None:
        return None
    expanded = bias.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    return expanded.view(torch.uint8) if bias.dtype == torch.bool else expanded


def with_strides(x: torch.Tensor | None, axes: int) -> tuple[torch.Tensor | int | None, ...]:
    """A tensor and its strides as arguments of a kernel; Nones, which compile to nothing, where it is absent."""
    return (None,) * (1 + axes) if x is None else (x, *x.stride())


CACHE_BYTES = 2**25
"""What the tensors of one section of heads may take: about half of the second-level cache of an H200."""


def heads_at_once(walked: torch.Tensor, sharing: int, heads: int) -> int:
    """How many heads run side by side, so that what they walk over stays in the cache.

    Args:
        walked: one of the two tensors (B, H, N, D) that every program of a head walks over.
        sharing: heads of the grid for each head that is walked over.
        heads: heads of the grid, over all batches.
    """
    bytes_of_one = 2 * walked.shape[2] * walked.shape[3] * walked.element_size()
    return max(1, min(CACHE_BYTES // max(1, bytes_of_one) * sharing, heads))


TileOf = tuple[torch.Tensor, int, int]
"""A tensor (B, H, N, D), with the rows and the columns of its tiles."""


def needs_wide_offsets(*tiles: TileOf) -> bool:
    """Whether an offset inside a tile may take more than 32 bits."""
    largest = max((rows - 1) * x.stride(2) + (columns - 1) * x.stride(3) for x, rows, columns in tiles)
    return largest > torch.iinfo(torch.int32).max


DESCRIPTOR_PRODUCTS = 2**26
"""Multiply-adds of QKᵀ from which on tiles are loaded by descriptors: below, encoding them takes longer than the kernel does.

Low enough that the verifier's standard matrix has cases of every dtype above it.
"""

DESCRIPTOR_ALIGNMENT = 16
"""Bytes that a descriptor's base, and its strides but the last, are multiples of (CUDA driver API, cuTensorMapEncodeTiled)."""

DESCRIPTOR_STRIDE_BYTES = 2**40
"""What a descriptor's strides stay below (ibid.)."""


def fits_descriptor(x: torch.Tensor) -> bool:
    """Whether the hardware's tensor copies can address x (B, H, N, D)."""
    *strides, last = ((x.stride(axis) * x.element_size(), x.shape[axis]) for axis in range(4))
    return (
        x.numel() > 0
        and x.data_ptr() % DESCRIPTOR_ALIGNMENT == 0
        and (last[0] == x.element_size())
        and all(
            size == 1 or (stride % DESCRIPTOR_ALIGNMENT == 0 and 0 < stride < DESCRIPTOR_STRIDE_BYTES)
            for stride, size in strides
        )
        and max(x.shape) <= torch.iinfo(torch.int32).max
    )


def has_tensor_copies(device: torch.device) -> bool:
    """Whether the device copies tiles by descriptors: compute capability 9.0 and newer, and the interpreter."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)


def tile_sources(*tiles: TileOf, products: int | None) -> tuple[list[torch.Tensor | TensorDescriptor], bool]:
    """What a kernel loads its tiles from: the tensors, or descriptors of all of them where that can be done and pays.

    float64 has no fast matrix units to feed, and is loaded by pointers.

    Args:
        tiles: tensors (B, H, N, D), each with the rows and the columns of its tiles.
        products: multiply-adds of QKᵀ; None: descriptors can't be taken, since heads begin at rows that only the GPU knows.

    Returns:
        the sources in that order, and whether they are descriptors.
    """
    tensors = [x for x, _, _ in tiles]
    x = tensors[0]
    pays = products is not None and products >= DESCRIPTOR_PRODUCTS and x.dtype != torch.float64
    if not (pays and has_tensor_copies(x.device) and all(fits_descriptor(x) for x in tensors)):
        return list(tensors), False
    return [_descriptor(*tile) for tile in tiles], True


def _descriptor(x: torch.Tensor, rows: int, columns: int) -> TensorDescriptor:
    strides = [DESCRIPTOR_ALIGNMENT if size == 1 else stride for size, stride in zip(x.shape[:3], x.stride()[:3], strict=True)]
    return TensorDescriptor(x, list(x.shape), [*strides, 1], [1, 1, rows, columns])
