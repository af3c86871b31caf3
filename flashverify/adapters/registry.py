"""Kernels by name."""

from __future__ import annotations

import torch

from flashverify.adapters.contracts import Precision
from flashverify.adapters.function import FunctionKernel
from flashverify.adapters.kernel import Kernel
from flashverify.adapters.sdpa import BACKENDS, SdpaKernel
from flashverify.adapters.triton import TritonKernel

SDPA = "sdpa:"
OURS = "triton"
PRECISIONS: dict[str, Precision] = {
    OURS: "ieee",
    f"{OURS}:bf16x6": "bf16x6",
    f"{OURS}:tf32x3": "tf32x3",
    f"{OURS}:tf32": "tf32",
}
"""Our kernels by what their float32 products are made of."""

NAMES = (*PRECISIONS, *(f"{SDPA}{backend}" for backend in BACKENDS))
ACCEPTED = f"{', '.join(NAMES)}, and package.module:function"


def load(name: str, device: torch.device) -> Kernel:
    """The kernel of that name.

    Args:
        name: "triton" (ours); "triton:bf16x6", "triton:tf32x3" or "triton:tf32" (the same, float32 products on tensor cores);
            "sdpa:flash", "sdpa:cudnn" or "sdpa:efficient" (torch's, on a GPU); or "package.module:function" (any function with
            the signature of torch's SDPA).
        device: where it runs.

    Raises:
        ValueError: if there is no kernel of that name.
    """
    if name in PRECISIONS:
        return TritonKernel(device, name, precision=PRECISIONS[name])
    if name.startswith(SDPA):
        return SdpaKernel(name.removeprefix(SDPA), device)
    if ":" in name and not name.startswith(f"{OURS}:"):
        return FunctionKernel(name, device)
    raise ValueError(f"kernel: got {name!r}, accepted are {ACCEPTED}")
