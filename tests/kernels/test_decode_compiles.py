"""The kernels that work on a cache compile for GPUs that are not here, fit their shared memory, and have no stray descriptors.

See test_compiles: the interpreter tests the algebra alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.test_compiles import SHARED_MEMORY

SMALLEST = 99 * 1024
"""Bytes of shared memory that a block has at least, compute capability 8.0 and newer."""

ENTRIES = {
    "90": (
        *("bf16:128:8:ragged", "bf16:128:8:ragged:paged:causal", "bf16:128:8:ragged:small-pages:indexed", "fp16:64:1:window"),
        *("bf16:128:64:causal", "bf16:256:64:causal:paged", "bf16:256:8", "fp16:64x24:64:causal", "bf16:24:64:small-pages"),
        *("bf16:192x128:16:softcap:alibi:float-angles", "fp32:128:8:causal:ragged:padded", "fp32:256:64:paged:alibi"),
        *(
            "fp64:64:8:causal:ragged",
            "fp64:256:64:softcap",
            "fp64:128:16:small-pages:window:alibi",
            "bf16:16:32",
            "fp16:40x64:9",
        ),
    ),
    "80": ("bf16:128:8:ragged:paged", "bf16:256:64:causal", "fp16:64:64", "fp32:256:64:small-pages", "fp64:256:64:causal"),
}
KERNELS = {"append_kernel", "rotary_kernel", "decode_kernel", "merge_kernel"}


@pytest.mark.slow
@pytest.mark.parametrize("capability", ENTRIES)
def test_kernels_compile_and_fit(capability: str, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "kernels"), os.environ.get("PYTHONPATH", "")])
    finished = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_decode_without_gpu", capability, *ENTRIES[capability]],
        cwd=root,
        env={**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    compiled = {line["entry"]: line for line in map(json.loads, finished.stdout.splitlines())}
    assert tuple(compiled) == ENTRIES[capability]
    for line in compiled.values():
        assert line["shared"].keys() == KERNELS
        assert max(line["shared"].values()) <= (SHARED_MEMORY[capability] if capability == "90" else SMALLEST)
        assert not any(line["stray"].values()), line
