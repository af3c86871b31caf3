"""Kernels by name."""

from __future__ import annotations

import torch

from flashverify.adapters.function import FunctionKernel
from flashverify.adapters.kernel import Kernel
from flashverify.adapters.sdpa import BACKENDS, SdpaKernel
from flashverify.adapters.triton import TritonKernel

SDPA = "sdpa:"
NAMES = ("triton", *(f"{SDPA}{backend}" for backend in BACKENDS))
ACCEPTED = f"{', '.join(NAMES)}, and package.module:function"


def load(name: str, device: torch.device) -> Kernel:
    """The kernel of that name.

    Args:
        name: "triton" (ours), "sdpa:flash", "sdpa:cudnn" or "sdpa:efficient" (torch's, on a GPU), or "package.module:function"
            (any function with the signature of torch's SDPA).
        device: where it runs.

    Raises:
        ValueError: if there is no kernel of that name.
    """
    if name == "triton":
        return TritonKernel(device)
    if name.startswith(SDPA):
        return SdpaKernel(name.removeprefix(SDPA), device)
    if ":" in name:
        return FunctionKernel(name, device)
    raise ValueError(f"kernel: got {name!r}, accepted are {ACCEPTED}")
