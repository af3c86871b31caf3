"""How the scripts of this folder time one call on the GPU."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

WARM_UPS, REPEATS = 3, 15
WRITTEN_AHEAD = 2**33
"""Bytes that are written before each call: the host has some two milliseconds to queue it, and launching is not timed."""


def median_ms(call: Callable[[], object]) -> float:
    """Milliseconds of one call on the GPU, median."""
    for _ in range(WARM_UPS):
        call()
    ahead = torch.empty(WRITTEN_AHEAD, dtype=torch.uint8, device="cuda")
    times = []
    for _ in range(REPEATS):
        ahead.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)
