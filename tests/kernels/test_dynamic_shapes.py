"""`torch.compile(fullgraph=True, dynamic=True)`: other batches and lengths compile nothing anew, and the bits stay."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from flashverify_kernels import flash_attn_with_kvcache

from tests.kernels.cache_support import Inputs, angles
from tests.kernels.calls import CALLS, Call, Sizes
from tests.kernels.support import differing

SIZES: tuple[Sizes, ...] = ((5, 4, 2, 9, 17, 16), (3, 4, 2, 18, 11, 16), (6, 4, 2, 7, 21, 16))
"""Batches and lengths change, up and down. In the first, no two sizes are equal but by meaning: torch would tie them."""


@pytest.fixture(autouse=True)
def no_graphs_of_other_tests() -> None:
    torch._dynamo.reset()


def _stance(is_compiled: bool) -> AbstractContextManager:
    """Under which a call that has to compile fails, once there is a graph."""
    return torch.compiler.set_stance("fail_on_recompile" if is_compiled else "default")


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_one_graph_for_all_sizes(name: str, device: torch.device) -> None:
    compiled = torch.compile(CALLS[name][0], fullgraph=True, dynamic=True, backend="aot_eager")
    for place, sizes in enumerate(SIZES):
        call = Call(name, torch.float32, device, sizes=sizes)
        with _stance(place > 0):
            found = call.results(compiled)
        assert not differing(found, call.results())


@pytest.mark.parametrize("name", ["window", "sdpa-mask"])
def test_sizes_that_turn_out_dynamic_compile_once_more(name: str, device: torch.device) -> None:
    """Without `dynamic`, torch takes sizes for constants until they change."""
    compiled = torch.compile(CALLS[name][0], fullgraph=True, backend="aot_eager")
    for place, sizes in enumerate(SIZES):
        call = Call(name, torch.float32, device, sizes=sizes)
        with _stance(place > 1):
            found = call.results(compiled)
        assert not differing(found, call.results())


def _step(is_rotary: bool) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    def step(cos: torch.Tensor, sin: torch.Tensor, **arguments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        turns = {"rotary_cos": cos, "rotary_sin": sin} if is_rotary else {}
        return flash_attn_with_kvcache(**arguments, **turns, window_size=(9, 0), return_softmax_lse=True)

    return step


@pytest.mark.parametrize("is_rotary", [False, True])
@pytest.mark.parametrize("kind", [{}, {"page_size": 16}], ids=["rows", "pages"])
def test_one_graph_for_all_sizes_of_a_cache(kind: dict[str, int], is_rotary: bool, device: torch.device) -> None:
    step = _step(is_rotary)
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    sizes = (([5, 20, 7, 1, 2], 7, 9, 48), ([9] * 3, 12, 9, 64), ([0, 3, 30, 1, 2, 8, 9], 9, 3, 80))
    for place, (lengths, queries, tokens, capacity) in enumerate(sizes):
        results = []
        for function in (step, compiled):
            inputs = Inputs(torch.float32, device, lengths=lengths, queries=queries, tokens=tokens, capacity=capacity, **kind)
            cos, sin = angles(capacity + 11, 16, torch.float32, device)
            arguments = {name: x for name, x in inputs.arguments().items() if x is not None}
            with _stance(function is compiled and place > 0):
                out, lse = function(cos, sin, **arguments)
            results.append({"out": out, "lse": lse, "k_cache": inputs.k_cache, "v_cache": inputs.v_cache})
        assert not differing(*results)


def test_integer_lengths_share_a_graph(device: torch.device) -> None:
    inputs = Inputs(torch.float32, device, lengths=[40, 40])

    def step(length: int) -> torch.Tensor:
        return flash_attn_with_kvcache(inputs.q, inputs.k_cache, inputs.v_cache, cache_seqlens=length, causal=True)

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for place, length in enumerate((7, 8, 31, 40)):
        with _stance(place > 0):
            found = compiled(length)
        assert torch.equal(found, step(length))
