"""How many bits of a mask the host predicts in a second, on one core."""

import numpy as np
import torch

from flashverify.dropout.mask import Stream, keep

BITS_A_SECOND = 1e7
"""What issue 5 asks for."""


def test_predicted_bits_a_second(benchmark):
    rows, columns = np.arange(1024), np.arange(4096)
    stream = Stream(seed=0x0123456789ABCDEF, offset=2**34 - 64, rate=0.1)
    torch.set_num_threads(1)
    benchmark.pedantic(keep, args=(stream, 8, 1, 3, rows, columns), rounds=10, warmup_rounds=1)
    assert rows.size * columns.size / benchmark.stats.stats.median >= BITS_A_SECOND
