"""Compile the kernels that work on a cache for a GPU that is not there, and print what each needs.

    python -m tests.kernels.compile_decode_without_gpu 90 bf16:128:1 fp16:64x32:16:paged:splits

See `compile_without_gpu`, whose stand-in driver this uses. Arguments: compute capability, then dtype:head size:rows of a tile
(queries times heads of a group), and names of FEATURES behind it. All four kernels are compiled for each.
"""

from __future__ import annotations

import json
import sys

import torch

from tests.kernels.compile_without_gpu import DTYPES, StandIn, machine_code  # sets TRITON_INTERPRET before Triton is imported
from tests.kernels.uniform_registers import stray_descriptors

# isort: split
from flashverify_kernels.append import append
from flashverify_kernels.decode import decode
from flashverify_kernels.decode_tiles import tile_of
from flashverify_kernels.rotary import rotate
from flashverify_kernels.tiles import padded_head_dim
from triton.runtime import driver, jit

FEATURES = ("paged", "small-pages", "window", "causal", "softcap", "alibi", "indexed", "padded", "ragged", "float-angles")


def compile_kernels(
    capability: int, dtype: str, head_dim: int, value_dim: int, rows: int, features: set[str]
) -> tuple[dict[str, int], dict[str, int]]:
    """Kernel name -> bytes of shared memory, and -> stray descriptors."""
    unknown = features - set(FEATURES)
    if unknown:
        raise KeyError(f"features: got {sorted(unknown)}, accepted are {FEATURES}")
    needs: dict[str, int] = {}
    stray: dict[str, int] = {}
    launch = jit.JITFunction.run

    def warm_up(kernel, *arguments, grid, warmup, **options):
        compiled = launch(kernel, *arguments, grid=grid, warmup=True, **options)
        needs[kernel.__name__] = max(compiled.metadata.shared, needs.get(kernel.__name__, 0))
        stray[kernel.__name__] = len(stray_descriptors(machine_code(compiled))) + stray.get(kernel.__name__, 0)
        return compiled

    torch_dtype = DTYPES[dtype]
    page_size = 16 if "small-pages" in features else 256
    is_paged = bool(features & {"paged", "small-pages"})
    padded = padded_head_dim(max(head_dim, value_dim))
    tile = tile_of(f"sm{capability}", torch_dtype, padded, value_dim, rows, is_paged)

    def zeros(*shape: int, dtype: torch.dtype = torch_dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    integers = torch.zeros(2, dtype=torch.int32)
    table = torch.zeros((2, 8), dtype=torch.int32) if is_paged else None
    places = (16, page_size) if is_paged else (2, 512)
    k_cache, v_cache = zeros(*places, 2, head_dim), zeros(*places, 2, value_dim)
    q, k, v = zeros(2, 1, 2 * rows, head_dim), zeros(2, 1, 2, head_dim), zeros(2, 1, 2, value_dim)
    angles = zeros(512, 8, dtype=torch.float32 if "float-angles" in features else torch_dtype)
    seqlens = integers if "ragged" in features else None
    entries = integers if "indexed" in features else None
    visible = (0 if "causal" in features else None, 20 if "window" in features else None)
    logits = (30.0 if "softcap" in features else None, torch.ones(2, 2 * rows) if "alibi" in features else None)
    jit.JITFunction.run = warm_up
    try:
        for interleaved in (False, True):
            append(k_cache, v_cache, k, v, angles, angles, seqlens, 3, entries, table, interleaved)
            rotate(q, torch.empty_like(q), angles, angles, seqlens, 3, 512, interleaved, interleaved)
        append(k_cache, v_cache, k, v, None, None, seqlens, 3, entries, table, True)
        leftpad = integers if "padded" in features else None
        for splits in (1, 20):
            decode(
                q, k_cache, v_cache, seqlens, 3, 1, entries, leftpad, table, 0.5, *logits, *visible, splits, "ieee", tile
            )  # fmt: skip
    finally:
        jit.JITFunction.run = launch
    return needs, stray


def main(capability: str, *entries: str) -> None:
    driver.set_active(StandIn(int(capability)))
    for entry in entries:
        dtype, columns, rows, *features = entry.split(":")
        head_dim, _, value_dim = columns.partition("x")
        sizes = int(head_dim), int(value_dim or head_dim), int(rows)
        needs, stray = compile_kernels(int(capability), dtype, *sizes, set(features))
        print(json.dumps({"entry": entry, "shared": needs, "stray": stray}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
