"""64-bit addressing: offsets beyond 2^31 elements, which a stride reaches without the memory that it spans."""

from __future__ import annotations

import math
import mmap

import pytest
import torch

from tests.kernels.support import differing, draw, run

STRIDE = 2**30
"""Fits 32 bits; twice it does not. An index of 2 that wraps reads 2^31 elements before the tensor."""

ELEMENTS = 2**32 + 2**12
AXES = {"batch": 0, "heads": 1, "rows": 2, "columns": 3}
SHAPES = {
    "batch": (3, 1, 1, 2, 2, 3),
    "heads": (1, 3, 3, 2, 2, 3),
    "rows": (1, 1, 1, 3, 3, 3),
    "columns": (1, 1, 1, 3, 3, 3),
}


@pytest.fixture(scope="module")
def memory(device: torch.device) -> torch.Tensor:
    """8 GiB of float16, of which a CPU only holds the pages that are touched."""
    if device.type == "cpu":
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        return torch.frombuffer(mmap.mmap(-1, 2 * ELEMENTS, flags=flags), dtype=torch.float16)
    return torch.zeros(ELEMENTS, dtype=torch.float16, device=device)


def _far_apart(x: torch.Tensor, axis: int, memory: torch.Tensor) -> torch.Tensor:
    strides = [27, 9, 3, 1]
    strides[axis] = STRIDE
    view = memory.as_strided(x.shape, strides, 2**31)
    view.copy_(x)
    return view


@pytest.mark.slow
@pytest.mark.parametrize("axis", AXES)
def test_offsets_beyond_32_bits(axis: str, memory: torch.Tensor, device: torch.device) -> None:
    inputs = draw(SHAPES[axis], torch.float16, device)
    expected = run(*inputs)
    for place in range(4):
        one_far = [_far_apart(x, AXES[axis], memory) if index == place else x for index, x in enumerate(inputs)]
        assert one_far[place].storage_offset() + 2 * STRIDE == 2**32
        assert not differing(run(*one_far), expected)
        one_far[place].fill_(math.nan)
