"""Compile the kernels for a GPU that is not there, and print what each needs.

    python -m tests.kernels.compile_without_gpu 90 fp16:64:1 bf16:24:0:keys-along-n

Triton compiles for any target; only loading the binary wants a driver. A stand-in driver names the target, launches become
warm-ups, and nothing runs. Arguments: compute capability (90), then dtype:head size:causal, with a layout behind it if it is
not contiguous: a name of LAYOUTS or MIXED. "descriptors" stands for contiguous tensors that are loaded by tensor
descriptors, a name of SPLIT for them with float32 products of that precision, and a name of FEATURES for them with a sliding
window, a soft cap, linear biases, a bias of q's dtype or of lse's ("long-bias") and its gradient, a boolean mask, or sinks and
their gradient, or dropout whose mask the backward pass keeps in the sign bits of P, or ("dropout-mask") beside it. "packed" and
"packed-all" stand for packed sequences, the latter with a window, a cap, linear biases, sinks and dropout. "+dropout" behind another
of these adds dropout.
A head size "192x128" is that of q and k, and that of v.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from flashverify_kernels import launch as launching
from flashverify_kernels.backward import attention_backward
from flashverify_kernels.dropout import Dropout
from flashverify_kernels.forward import attention_forward
from flashverify_kernels.launch import accumulator_of
from flashverify_kernels.packed import Packed
from flashverify_kernels.tiles import entry as tiles_of
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit

from tests.kernels.uniform_registers import stray_descriptors

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


LAYOUTS = {
    "contiguous": lambda x: x,
    "descriptors": lambda x: x,
    "rows-apart": lambda x: torch.zeros(*x.shape[:3], x.shape[3] + 1, dtype=x.dtype)[..., :-1],
    "every-other": lambda x: torch.zeros(*x.shape[:3], 2 * x.shape[3], dtype=x.dtype)[..., ::2],
    "along-n": lambda x: x.mT.contiguous().mT,
}
FEATURES = ("window", "softcap", "alibi", "bias", "capped-bias", "long-bias", "mask", "sink", "dropout", "dropout-mask")
PACKED = ("packed", "packed-all")
SPLIT = ("bf16x6", "tf32x3")
"""Precisions of float32 whose products are made of pieces."""

MIXED = {
    "keys-along-n": ("contiguous", "along-n", "contiguous", "contiguous"),
    "values-rows-apart": ("contiguous", "contiguous", "rows-apart", "contiguous"),
}
"""Layouts of q, k, v and dO that differ."""


def machine_code(compiled: triton.compiler.CompiledKernel) -> str:
    """The SASS of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-sass", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def compile_entry(
    capability: int, dtype: str, head_dim: int, causal: bool, layout: str = "contiguous", value_dim: int | None = None
) -> tuple[dict[str, int], dict[str, int]]:
    """For one entry of the tile table: kernel name -> bytes of shared memory, and -> stray descriptors."""
    layout, _, more = layout.partition("+")
    has_dropout = more == "dropout" or layout in ("dropout", "dropout-mask", "packed-all")
    needs: dict[str, int] = {}
    stray: dict[str, int] = {}
    launch = jit.JITFunction.run

    def warm_up(kernel, *arguments, grid, warmup, **options):
        compiled = launch(kernel, *arguments, grid=grid, warmup=True, **options)
        needs[kernel.__name__] = compiled.metadata.shared
        stray[kernel.__name__] = len(stray_descriptors(machine_code(compiled)))
        return compiled

    jit.JITFunction.run = warm_up
    launching.DESCRIPTOR_PRODUCTS = 0 if layout in ("descriptors", *FEATURES, *PACKED, *SPLIT) else math.inf
    try:
        torch_dtype = DTYPES[dtype]
        precision = layout if layout in SPLIT else "ieee"
        value_dim = value_dim or head_dim
        masked = causal or layout in ("window", "packed-all")
        tiles = tiles_of(f"sm{capability}", torch_dtype, head_dim, value_dim, masked, precision, has_dropout)
        shapes = [(1, 2, 64, columns) for columns in (head_dim, head_dim, value_dim, value_dim)]
        layouts = MIXED.get(layout, ("contiguous" if layout in (*SPLIT, *FEATURES, *PACKED) else layout,) * 4)
        tensors = (LAYOUTS[name](torch.zeros(shape, dtype=torch_dtype)) for name, shape in zip(layouts, shapes, strict=True))
        q, k, v, dout = tensors
        visible = (0 if causal else None, -20 if layout in ("window", "packed-all") else None)
        bias_dtype = {
            "bias": torch_dtype,
            "capped-bias": torch_dtype,
            "long-bias": accumulator_of(torch_dtype),
            "mask": torch.bool,
        }.get(layout)
        features = {
            "softcap": 30.0 if layout in ("softcap", "capped-bias", "packed-all") else None,
            "alibi": torch.ones(1, 2) if layout in ("alibi", "packed-all") else None,
            "bias": None if bias_dtype is None else torch.zeros(1, 2, 64, 64, dtype=bias_dtype),
            "sink": torch.zeros(2, dtype=torch_dtype) if layout in ("sink", "packed-all") else None,
            "dropout": Dropout(torch.zeros(2, dtype=torch.int64), 2**29, layout == "dropout-mask") if has_dropout else None,
            "packed": Packed(*(torch.zeros(size, dtype=torch.int32) for size in (2, 2, 1, 1))) if layout in PACKED else None,
        }
        out, lse = attention_forward(q, k, v, 0.5, *visible, precision, tiles.forward, **features)
        features |= {"needs_bias_grad": True, "needs_sink_grad": True}
        attention_backward(dout, lse, q, k, v, out, lse, 0.5, *visible, precision, tiles.dkdv, tiles.dq, **features)
    finally:
        jit.JITFunction.run = launch
    return needs, stray


def main(capability: str, *entries: str) -> None:
    driver.set_active(StandIn(int(capability)))
    for entry in entries:
        dtype, head_dim, causal, *layout = entry.split(":")
        head_dim, _, value_dim = head_dim.partition("x")
        columns = int(value_dim) if value_dim else None
        needs, stray = compile_entry(int(capability), dtype, int(head_dim), causal == "1", *layout, value_dim=columns)
        print(json.dumps({"entry": entry, "shared": needs, "stray": stray}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
