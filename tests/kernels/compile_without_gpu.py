"""Compile the kernels for a GPU that is not there, and print what each needs.

    python -m tests.kernels.compile_without_gpu 90 fp16:64:1

Triton compiles for any target; only loading the binary wants a driver. A stand-in driver names the target, launches become
warm-ups, and nothing runs. Arguments: compute capability (90), then dtype:head size:causal triples.
"""

from __future__ import annotations

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "0"

import torch
from flashverify_kernels.backward import attention_backward
from flashverify_kernels.forward import attention_forward
from flashverify_kernels.tiles import TABLES
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}


class StandIn:
    """A driver of a GPU that is not there."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def compile_entry(capability: int, dtype: str, head_dim: int, causal: bool) -> dict[str, int]:
    """Kernel name -> bytes of shared memory, for one entry of the tile table."""
    needs: dict[str, int] = {}
    launch = jit.JITFunction.run

    def warm_up(kernel, *arguments, grid, warmup, **options):
        compiled = launch(kernel, *arguments, grid=grid, warmup=True, **options)
        needs[kernel.__name__] = compiled.metadata.shared
        return compiled

    jit.JITFunction.run = warm_up
    try:
        torch_dtype = DTYPES[dtype]
        tiles = TABLES[f"sm{capability}"][torch_dtype][max(16, 1 << (head_dim - 1).bit_length()), causal]
        q, k, v, dout = (torch.zeros(1, 2, 64, head_dim, dtype=torch_dtype) for _ in range(4))
        offset = 0 if causal else None
        out, lse = attention_forward(q, k, v, 0.5, offset, "ieee", tiles.forward)
        attention_backward(dout, lse, q, k, v, out, lse, 0.5, offset, "ieee", tiles.dkdv, tiles.dq)
    finally:
        jit.JITFunction.run = launch
    return needs


def main(capability: str, *entries: str) -> None:
    driver.set_active(StandIn(int(capability)))
    for entry in entries:
        dtype, head_dim, causal = entry.split(":")
        needs = compile_entry(int(capability), dtype, int(head_dim), causal == "1")
        print(json.dumps({"entry": entry, "shared": needs}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
