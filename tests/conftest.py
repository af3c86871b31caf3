"""Which lane the tests run in: on the GPU if there is one, else in Triton's interpreter."""

from __future__ import annotations

import os

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
# Threads of several workers that wait for each other on the same cores take six times as long.
torch.set_num_threads(max(1, (os.cpu_count() or 1) // WORKERS))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if HAS_GPU and not INTERPRETED:
        return
    skip = pytest.mark.skip(reason="no GPU: " + ("TRITON_INTERPRET=1" if HAS_GPU else "none on this machine"))
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run: the GPU, or the CPU in Triton's interpreter."""
    return torch.device("cpu") if INTERPRETED else torch.device("cuda", 0)
