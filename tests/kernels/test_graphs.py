"""CUDA graphs: a captured call, forward and backward, gives the bits of eager for whatever its inputs hold at the replay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from flashverify_kernels import flash_attn_with_kvcache

from tests.kernels.cache_support import Inputs, angles, bits
from tests.kernels.calls import CALLS, Call
from tests.kernels.support import differing

pytestmark = pytest.mark.gpu


def _captured(function: Callable[[], object]) -> tuple[torch.cuda.CUDAGraph, object]:
    """The graph of a call, made twice before on a stream of its own, and what it returned."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()
    return graph, results


def _check_replays(name: str, dtype: torch.dtype, device: torch.device) -> None:
    call = Call(name, dtype, device)
    graph, results = _captured(call.results)
    for seed in (1, 2):
        other = Call(name, dtype, device, seed=seed)
        expected = other.results()
        call.copy_(other)
        for x in results.values():
            x.zero_()
        graph.replay()
        assert not differing(results, expected)


@pytest.mark.parametrize("name", CALLS)
def test_forward_and_backward(name: str, device: torch.device) -> None:
    _check_replays(name, torch.bfloat16, device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_other_formats(dtype: torch.dtype, device: torch.device) -> None:
    _check_replays("everything", dtype, device)


def test_under_autocast(device: torch.device) -> None:
    """A region that is entered inside of the capture; its cache of casts would outlive the graph."""
    call = Call("sdpa-bias", torch.float32, device)
    call.cotangents = tuple(x.to(torch.bfloat16) for x in call.cotangents)

    def function(**tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False):
            return call.function(**tensors)

    graph, results = _captured(lambda: call.results(function))
    other = Call("sdpa-bias", torch.float32, device, seed=1)
    other.cotangents = tuple(x.to(torch.bfloat16) for x in other.cotangents)
    call.copy_(other)
    graph.replay()
    assert not differing(results, other.results(function))


@pytest.mark.parametrize("name", ["full", "everything", "sdpa-bias"])
def test_graphs_that_inductor_makes(name: str, device: torch.device) -> None:
    torch._dynamo.reset()
    function = CALLS[name][0]
    compiled = torch.compile(function, fullgraph=True, mode="reduce-overhead")
    for seed in range(4):
        call = Call(name, torch.bfloat16, device, seed=seed)
        torch.compiler.cudagraph_mark_step_begin()
        found = {key: x.clone() for key, x in call.results(compiled).items()}
        assert not differing(found, call.results())


KINDS: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "rows": ({}, {}),
    "pages": ({"page_size": 16}, {}),
    "indexed and padded": ({"entries": [2, 0], "leftpad": [1, 3]}, {}),
    "window": ({}, {"window_size": (50, 0), "softcap": 2.0}),
    "one part": ({}, {"num_splits": 1}),
    "many parts": ({"page_size": 64}, {"num_splits": 7}),
}
"""What the cache is like, and arguments of the function."""


@pytest.mark.parametrize("is_rotary", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_of_decoding_steps(kind: str, is_rotary: bool, device: torch.device) -> None:
    """A captured step appends, attends, and moves the lengths on: each replay is the next step, of new queries and keys."""
    like, options = KINDS[kind]
    steps, capacity = 5, 256

    def fresh() -> Inputs:
        # Room in the page table for all steps: elements beyond the lengths that are given hold no page.
        inputs = Inputs(torch.bfloat16, device, lengths=[100, 37], tokens=steps, capacity=capacity, head_dim=64, **like)
        inputs.k, inputs.v = inputs.k[:, :1].contiguous(), inputs.v[:, :1].contiguous()
        return inputs

    if is_rotary:
        cos, sin = angles(capacity + 1, 64, torch.bfloat16, device)
        options = {**options, "rotary_cos": cos, "rotary_sin": sin}

    def stepper(inputs: Inputs) -> tuple[Callable[[], tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
        arguments = inputs.arguments(causal=True, return_softmax_lse=True, **options)
        seqlens = arguments["cache_seqlens"]

        def step() -> tuple[torch.Tensor, torch.Tensor]:
            results = flash_attn_with_kvcache(**arguments)
            seqlens.add_(1)
            return results

        return step, seqlens

    static, eager = fresh(), fresh()
    (step, seqlens), (eager_step, _) = stepper(static), stepper(eager)
    before = static.k_cache.clone(), static.v_cache.clone(), seqlens.clone()
    graph, results = _captured(step)
    for x, old in zip((static.k_cache, static.v_cache, seqlens), before, strict=True):
        x.copy_(old)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for name in ("q", "k", "v"):
            new = torch.randn(getattr(static, name).shape, generator=generator, dtype=torch.float64)
            getattr(static, name).copy_(new)
            getattr(eager, name).copy_(new)
        graph.replay()
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(results, eager_step(), strict=True))
    for a, b in ((static.k_cache, eager.k_cache), (static.v_cache, eager.v_cache)):
        assert torch.equal(bits(a), bits(b))
