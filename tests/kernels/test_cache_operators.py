"""What works on a cache under torch.compile and in graphs of launches; test_opcheck has the operators' schemas and fakes."""

from __future__ import annotations

import pytest
import torch
from flashverify_kernels import flash_attn_with_kvcache

from tests.kernels.cache_support import DTYPES, Inputs, angles, bits


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("page_size", [0, 16])
def test_compiled_whole_gives_the_bits_of_eager(page_size: int, dynamic: bool, device: torch.device) -> None:
    torch._dynamo.reset()

    def step(q, k_cache, v_cache, k, v, cos, sin, seqlens, table):
        return flash_attn_with_kvcache(
            q * 2, k_cache, v_cache, k, v, cos, sin, seqlens, None, None, table, None, True, (30, 0), return_softmax_lse=True
        )

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for lengths in ([5, 20], [7, 30]) if dynamic else ([5, 20],):
        results = []
        for function in (step, compiled):
            inputs = Inputs(torch.float32, device, lengths=lengths, tokens=2, queries=2, capacity=48, page_size=page_size)
            cos, sin = angles(48, 16, torch.float32, device)
            places = inputs.integers(lengths), inputs.integers(inputs.where.table)
            out, lse = function(inputs.q, inputs.k_cache, inputs.v_cache, inputs.k, inputs.v, cos, sin, *places)
            results.append((out, lse, inputs.k_cache, inputs.v_cache))
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(*results, strict=True))


def test_an_integer_length_that_grows_compiles(device: torch.device) -> None:
    torch._dynamo.reset()
    inputs = Inputs(torch.float32, device, lengths=[10, 10], tokens=1)

    def step(q, k_cache, v_cache, k, v, length):
        return flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=length, causal=True)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for length in (10, 11, 12, 13):
        arguments = (inputs.q, inputs.k_cache.clone(), inputs.v_cache.clone(), inputs.k, inputs.v, length)
        again = (inputs.q, inputs.k_cache, inputs.v_cache, inputs.k, inputs.v, length)
        assert torch.equal(step(*arguments), compiled(*again))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inductor_gives_the_bits_of_eager(dtype: torch.dtype, device: torch.device) -> None:
    torch._dynamo.reset()

    def step(q, k_cache, v_cache, k, v, seqlens):
        return flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=seqlens, causal=True)

    compiled = torch.compile(step, fullgraph=True)
    results = []
    for function in (step, compiled):
        inputs = Inputs(dtype, device, lengths=[5, 300], tokens=2, queries=2, capacity=512, head_dim=64)
        places = (inputs.k_cache, inputs.v_cache, inputs.k, inputs.v, inputs.integers(inputs.lengths))
        results.append((function(inputs.q, *places), inputs.k_cache, inputs.v_cache))
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(*results, strict=True))


@pytest.mark.gpu
def test_a_graph_of_launches_follows_the_lengths(device: torch.device) -> None:
    """Nothing on the host depends on lengths in a tensor: a captured step is right for the next lengths."""
    inputs = Inputs(torch.bfloat16, device, lengths=[400, 400], capacity=512, head_dim=64)
    seqlens = inputs.integers([400, 400])
    flash_attn_with_kvcache(inputs.q, inputs.k_cache, inputs.v_cache, cache_seqlens=seqlens)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = flash_attn_with_kvcache(inputs.q, inputs.k_cache, inputs.v_cache, cache_seqlens=seqlens)
    for lengths in ([400, 1], [0, 333]):
        seqlens.copy_(inputs.integers(lengths))
        graph.replay()
        want = flash_attn_with_kvcache(inputs.q, inputs.k_cache, inputs.v_cache, cache_seqlens=inputs.integers(lengths))
        assert torch.equal(out, want)
