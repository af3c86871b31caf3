"""Numerical contracts by device: what a FlashAttention kernel compiled for it may be held to.

Sources of the figures: tensor cores, Khattak and Mikaitis (arXiv 2512.07004); exponential, logarithm and division,
`numerics.published`. A campaign replaces them by what it measured on the device (`Arithmetic.refine`).
"""

from __future__ import annotations

from typing import Literal

import torch

from flashverify.numerics.contract import Contract
from flashverify.numerics.dots import AnyOrder, Dot, SplitProducts, TensorCore
from flashverify.numerics.formats import BF16, FORMATS, FP32, FP64, TF32
from flashverify.numerics.published import DIVISION_ULPS, EXP2_ULPS, LOG2_ABSOLUTE, LOG2_ULPS

TENSOR_CORES = {(9, 0): TensorCore(block=16, extra_bits=2), (8, 0): TensorCore(block=8, extra_bits=1)}
"""Half-precision tensor cores by compute capability, as far as they are published."""

UNKNOWN_TENSOR_CORE = TensorCore(block=4, extra_bits=0)
"""For any other device: the coarsest of the published models (Volta's blocks of four, no extra bits)."""

TF32_BLOCK = {16: 8, 8: 4, 4: 4}
"""Products of a tf32 step, by those of a half-precision step of the same tensor core."""


def tensor_core(device: torch.device) -> TensorCore:
    """The half-precision tensor core of a CUDA device."""
    return TENSOR_CORES.get(torch.cuda.get_device_capability(device), UNKNOWN_TENSOR_CORE)


Precision = Literal["ieee", "tf32", "tf32x3", "bf16x6"]
"""What float32 products are made of: float32 numbers, tf32 ones, or pieces in tf32 or bfloat16."""


def flash_attention(
    dtype: str, device: torch.device, *, block_q: int | None, block_k: int, precision: Precision = "ieee", **stated: object
) -> Contract:
    """The contract of a FlashAttention kernel: P and dS rounded to the dtype of the inputs, sums in float32.

    Args:
        dtype: short name of the case's dtype.
        device: a CUDA device, or cpu for Triton's interpreter, whose products are numpy's.
        block_q: query rows of a tile in the walk over queries, None if unknown.
        block_k: keys of a tile in the walk over keys; if unknown, the smallest that it may have, and block_k_exact=False.
        precision: of float32 products.
        stated: further fields of `Contract` that the kernel states.
    """
    storage = FORMATS[dtype]
    accumulator = FP64 if dtype == "fp64" else FP32
    is_half = dtype in {"fp16", "bf16"}
    tf32 = precision == "tf32" and dtype == "fp32" and device.type == "cuda"
    fields = {
        "storage": storage,
        "accumulator": accumulator,
        "dot": _dot(dtype, device, precision),
        "operand": TF32 if tf32 else None,
        "probability": storage if is_half else None,
        "score_gradient": storage if is_half else None,
        "exp2_ulps": EXP2_ULPS,
        "log2_ulps": LOG2_ULPS,
        "log2_absolute": 0.0 if dtype == "fp64" else LOG2_ABSOLUTE,
        "division_ulps": DIVISION_ULPS,
        "flushes_subnormals": dtype != "fp64",
        "block_q": block_q,
        "block_k": block_k,
    }
    return Contract(**(fields | stated))  # type: ignore[arg-type]


def _dot(dtype: str, device: torch.device, precision: Precision) -> Dot:
    """How products of that dtype are summed; in the interpreter as numpy does, whatever precision is asked for."""
    if device.type != "cuda" or dtype == "fp64" or (dtype == "fp32" and precision == "ieee"):
        return AnyOrder()
    core = tensor_core(device)
    if dtype in {"fp16", "bf16"}:
        return core
    if precision == "bf16x6":
        return SplitProducts(core, BF16, 3)
    short = TensorCore(TF32_BLOCK[core.block], core.extra_bits)
    return SplitProducts(short, TF32, 2) if precision == "tf32x3" else short
