"""The kernels compile for GPUs that are not here, fit their shared memory, and give matrix units no other descriptors than its.

The interpreter tests the algebra alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from flashverify_kernels.tiles import LARGEST_DOUBLE_BYTES

SHARED_MEMORY = {"90": 227 * 1024, "80": 163 * 1024}
"""Bytes of shared memory that a block may have (CUDA C++ Programming Guide, specifications per compute capability)."""

ENTRIES = {
    "90": (
        *("fp16:64:1", "bf16:128:0", "bf16:128:1:descriptors", "bf16:256:0:descriptors", "fp32:64:1", "fp64:256:0"),
        *("fp32:64:0:bf16x6", "fp32:128:1:tf32x3", "bf16:128:1:window", "fp16:64:0:window", "fp64:64:1:window"),
        *("bf16:128:1:softcap", "fp16:64:0:softcap", "fp64:64:1:softcap", "fp32:64:0:softcap", "bf16:256:1:softcap"),
        *("bf16:128:1:alibi", "fp16:64:0:alibi", "fp64:64:1:alibi", "fp32:64:0:alibi", "bf16:24:1:alibi"),
        *(
            "bf16:128:1:bias",
            "bf16:128:0:long-bias",
            "bf16:256:1:long-bias",
            "fp16:64:1:bias",
            "fp32:64:0:bias",
            "fp64:64:1:bias",
            "bf16:64:1:capped-bias",
            "fp64:64:0:capped-bias",
        ),
        *("bf16:128:1:mask", "fp16:64:0:mask", "fp64:64:1:mask", "bf16:128:1:sink", "fp16:64:0:sink", "fp64:64:1:sink"),
        *("bf16:192x128:1:descriptors", "bf16:64x128:0", "fp32:40x64:1"),
        *("bf16:128:0:dropout", "fp16:64:1:dropout-mask", "bf16:64:1:bias+dropout", "fp32:64:0:dropout", "fp64:64:1:dropout"),
        *("bf16:128:1:packed", "bf16:64:0:packed-all", "fp32:40x64:1:packed-all", "fp64:64:1:packed-all"),
    ),
    "80": ("bf16:128:1", "fp64:256:0", "bf16:128:0:long-bias", "bf16:256:1:long-bias", "bf16:128:1:packed-all"),
}
KERNELS = {"forward_kernel", "delta_kernel", "dkdv_kernel", "dq_kernel"}
KERNELS_MORE = {
    "bias": {"dbias_kernel"},
    "capped-bias": {"dbias_kernel"},
    "long-bias": {"dbias_kernel"},
    "sink": {"dsink_kernel"},
    "packed-all": {"dsink_kernel"},
}
"""What a feature launches besides."""


def compile_entries(capability: str, entries: tuple[str, ...], cache: Path, what: str = "shared") -> dict[str, dict[str, int]]:
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "kernels"), os.environ.get("PYTHONPATH", "")])
    finished = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_without_gpu", capability, *entries],
        cwd=root,
        env={**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return {line["entry"]: line[what] for line in map(json.loads, finished.stdout.splitlines())}


@pytest.mark.slow
def test_float64_at_the_largest_head_size_takes_what_is_said(tmp_path: Path) -> None:
    """All other entries fit 99 KiB, the least that compute capability 8.0 and newer has; this one's need is a constant."""
    compiled = compile_entries("80", ("fp64:256:1", "fp16:128:1", "fp64:128:1"), tmp_path)
    assert max(compiled.pop("fp64:256:1").values()) == LARGEST_DOUBLE_BYTES
    for needs in compiled.values():
        assert max(needs.values()) <= 99 * 1024


@pytest.mark.slow
def test_a_bias_fits_too(tmp_path: Path) -> None:
    """Its tiles take shared memory in each stage: with three, dQ at the largest head size needed 256 KiB of Hopper's 227."""
    entries = tuple(f"bf16:{head_dim}:{causal}:long-bias" for head_dim in (64, 128, 256) for causal in (0, 1))
    for capability, largest in (("90", SHARED_MEMORY["90"]), ("80", 99 * 1024)):
        for entry, needs in compile_entries(capability, entries, tmp_path).items():
            assert max(needs.values()) <= largest, (capability, entry)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["bias", "long-bias", "mask", "sink"])
def test_descriptors_come_from_shared_memory_with_a_bias(layout: str, tmp_path: Path) -> None:
    entries = tuple(f"bf16:{head_dim}:{causal}:{layout}" for head_dim in (24, 128) for causal in (0, 1))
    for stray in compile_entries("90", entries, tmp_path, "stray").values():
        assert not any(stray.values()), stray


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["90", "80"])
def test_descriptors_of_packed_sequences_come_from_shared_memory(capability: str, tmp_path: Path) -> None:
    """Tiles that begin at rows which only the GPU knows, at the head sizes where others went astray."""
    entries = ("bf16:24:1:packed-all", "bf16:64x24:0:packed", "bf16:128:0:packed", "fp16:256:1:packed-all")
    for entry, stray in compile_entries(capability, entries, tmp_path, "stray").items():
        assert not any(stray.values()), (entry, stray)


@pytest.mark.slow
@pytest.mark.parametrize("capability", ENTRIES)
def test_kernels_compile_and_fit(capability: str, tmp_path: Path) -> None:
    compiled = compile_entries(capability, ENTRIES[capability], tmp_path)
    assert tuple(compiled) == ENTRIES[capability]
    for entry, needs in compiled.items():
        assert needs.keys() == KERNELS | KERNELS_MORE.get(entry.rpartition(":")[2].partition("+")[0], set())
        assert max(needs.values()) <= SHARED_MEMORY[capability]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["dropout", "dropout-mask", "keys-along-n+dropout", "window+dropout"])
def test_descriptors_come_from_shared_memory_with_dropout(layout: str, tmp_path: Path) -> None:
    entries = tuple(f"bf16:{head_dim}:1:{layout}" for head_dim in ("24", "64x24"))
    for entry, stray in compile_entries("90", entries, tmp_path, "stray").items():
        assert not any(stray.values()), (entry, stray)


def test_an_unknown_entry_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="KeyError"):
        compile_entries("90", ("fp8:64:1",), tmp_path)


LAYOUTS_AT_24 = ("contiguous", "descriptors", "window", "rows-apart", "every-other", "along-n", "keys-along-n")


@pytest.mark.slow
@pytest.mark.parametrize(("head_dim", "layout"), [(8, "keys-along-n"), (64, "keys-along-n"), *((24, x) for x in LAYOUTS_AT_24)])
def test_descriptors_come_from_shared_memory(head_dim: int, layout: str, tmp_path: Path) -> None:
    """On an H200, D = 24 with keys along N in memory ended in an illegal memory access: ptxas had formed a descriptor of V from
    a uniform register that nothing had written. It does so where K's and V's tiles lie in one place with different swizzles."""
    entries = tuple(f"bf16:{head_dim}:{causal}:{layout}" for causal in (0, 1))
    for stray in compile_entries("90", entries, tmp_path, "stray").values():
        assert stray.keys() == KERNELS
        assert not any(stray.values()), stray


NARROW_VALUES = {
    "64x24": ("keys-along-n", "rows-apart", "every-other", "window"),
    "40x16": ("values-rows-apart",),
    "128x24": ("rows-apart",),
    "256x8": ("keys-along-n",),
}
"""Head sizes of K and V on the two sides of 32 columns, and layouts in which a table's entry for the larger one went astray."""


@pytest.mark.slow
@pytest.mark.parametrize("head_dims", NARROW_VALUES)
def test_descriptors_come_from_shared_memory_with_narrow_values(head_dims: str, tmp_path: Path) -> None:
    entries = tuple(f"bf16:{head_dims}:{causal}:{layout}" for layout in NARROW_VALUES[head_dims] for causal in (0, 1))
    for stray in compile_entries("90", entries, tmp_path, "stray").values():
        assert not any(stray.values()), stray
