"""A cache in pages: any order, shared ones, any page size, and a table whose rest is garbage."""

from __future__ import annotations

import mmap

import pytest
import torch
from flashverify_kernels import flash_attn_with_kvcache

from tests.kernels.cache_support import Inputs, bits
from tests.kernels.test_decode import expected


@pytest.mark.parametrize("page_size", [16, 32, 48, 96])
@pytest.mark.parametrize("edge", [-1, 0, 1])
def test_lengths_at_the_edges_of_pages(page_size: int, edge: int, device: torch.device) -> None:
    """`Inputs` makes a table entry that stands for no key garbage, and every other row of the pool NaN."""
    inputs = Inputs(
        torch.float64, device, lengths=[page_size + edge, 2 * page_size + min(edge, 0)], queries=2, capacity=2 * page_size,
        page_size=page_size,
    )  # fmt: skip
    for splits in (1, 3):
        assert expected(inputs, right=0).worst(*inputs.run(causal=True, num_splits=splits)) <= 1.0


@pytest.mark.parametrize("page_size", [16, 32, 48])
def test_pages_give_the_bits_of_a_cache_without(page_size: int, device: torch.device) -> None:
    """Pages of 32 keys are found by one look into the table, others key by key; blocks are the same."""
    inputs = Inputs(torch.float16, device, lengths=[7, 90, 96], queries=3, capacity=96, page_size=page_size)
    want = inputs.run(causal=True, window_size=(40, 0))
    gathered = [cache.new_zeros(3, 96, *cache.shape[2:]) for cache in (inputs.k_cache, inputs.v_cache)]
    for b, length in enumerate(inputs.lengths):
        for key in range(length):
            for flat, cache in zip(gathered, (inputs.k_cache, inputs.v_cache), strict=True):
                flat[b, key] = cache[inputs.where.place(b, key)]
    options = {"cache_seqlens": inputs.integers(inputs.lengths), "causal": True, "window_size": (40, 0)}
    found = flash_attn_with_kvcache(inputs.q, *gathered, **options, return_softmax_lse=True)
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(want, found, strict=True))


def test_sequences_may_share_pages(device: torch.device) -> None:
    inputs = Inputs(torch.float64, device, lengths=[32, 40, 64], capacity=64, page_size=16)
    table = inputs.where.table
    assert table is not None
    table[0][:2] = table[2][:2]
    table[1][:3] = [table[2][3], table[2][0], table[2][3]]
    assert expected(inputs).worst(*inputs.run()) <= 1.0


def test_a_table_may_have_rows_apart(device: torch.device) -> None:
    inputs = Inputs(torch.float32, device, lengths=[20, 60], tokens=2, page_size=16)
    want = inputs.run()
    wide = torch.full((2, 9), -1, dtype=torch.int32, device=device)
    wide[:, :4] = inputs.integers(inputs.where.table)
    for table in (wide[:, :4], wide[:, :4].T.contiguous().T):
        found = inputs.run(block_table=table)
        assert all(torch.equal(a, b) for a, b in zip(want, found, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("page_size", [16, 32])
def test_a_pool_beyond_32_bits(page_size: int, device: torch.device) -> None:
    """Page 3 begins 3·2^30 elements into the pool: an index that wraps reads before it."""
    shape, stride = (4, page_size, 1, 16), 2**30
    elements = 3 * stride + page_size * 16
    if device.type == "cpu":
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        memory = torch.frombuffer(mmap.mmap(-1, 2 * elements, flags=flags), dtype=torch.float16)
    else:
        memory = torch.zeros(elements, dtype=torch.float16, device=device)
    pool = memory.as_strided(shape, (stride, 16, 16, 1))
    near = Inputs(torch.float16, device, lengths=[page_size], heads=1, heads_kv=1, capacity=page_size)
    pool[3] = near.k_cache[0]
    table = torch.tensor([[3]], dtype=torch.int32, device=device)
    new = torch.ones(1, 1, 1, 16, dtype=torch.float16, device=device)
    for cache_seqlens, k in ((page_size, None), (page_size - 1, new)):
        want = flash_attn_with_kvcache(near.q, near.k_cache, near.k_cache, k, k, cache_seqlens=cache_seqlens)
        found = flash_attn_with_kvcache(near.q, pool, pool, k, k, cache_seqlens=cache_seqlens, block_table=table)
        assert torch.equal(want, found)
        assert torch.equal(pool[3], near.k_cache[0])
