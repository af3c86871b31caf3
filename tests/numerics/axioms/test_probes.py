"""The probes compile for GPUs that are not here, through the instructions that they are for, and refuse the wrong lane."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flashverify.numerics.axioms.probes import TritonPrimitives

SMALLEST_SHARED_MEMORY = 99 * 1024
"""Bytes that a block may have on every GPU of compute capability 8.0 and newer (CUDA C++ Programming Guide)."""

INSTRUCTIONS = {
    "90": {"wgmma m64n64k16", "mma m16n8k16", "wgmma m64n64k8", "mma m16n8k8", "fma.rn.f32"},
    "80": {"mma m16n8k16", "mma m16n8k8", "fma.rn.f32"},
}


@pytest.mark.slow
@pytest.mark.parametrize("capability", INSTRUCTIONS)
def test_probes_compile_and_fit(capability, tmp_path):
    root = Path(__file__).parents[3]
    path = os.pathsep.join([str(root), str(root / "kernels"), os.environ.get("PYTHONPATH", "")])
    finished = subprocess.run(
        [sys.executable, "-m", "tests.numerics.axioms.compile_without_gpu", capability],
        cwd=root,
        env={**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    compiled = json.loads(finished.stdout)
    assert compiled["crashed"] == []
    assert max(compiled["shared"].values()) <= SMALLEST_SHARED_MEMORY
    assert set(compiled["instructions"]) >= INSTRUCTIONS[capability]


def test_a_device_of_the_other_lane_is_refused(device):
    other = torch.device("cuda" if device.type == "cpu" else "cpu")
    with pytest.raises(ValueError, match=f"device: got {other}, but Triton was imported for"):
        TritonPrimitives(other)


def test_matrices_may_have_any_strides(device):
    left, right = torch.randn(2, 32, 16, device=device).mT, torch.randn(2, 16, 32, device=device).mT
    accumulator = torch.randn(2, 16, 16, device=device).mT
    plain, chained = TritonPrimitives(device).dots(left, right, accumulator, precision="ieee")
    expected = left.double() @ right.double()
    bound = 33 * 2.0**-24 * (left.abs().double() @ right.abs().double() + accumulator.abs())
    assert bool(((plain - expected).abs() <= bound).all())
    assert bool(((chained - expected - accumulator).abs() <= bound).all())
