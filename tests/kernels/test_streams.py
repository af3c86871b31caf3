"""Streams other than the default: all work is on the current one, so that it waits for its inputs and for nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from flashverify_kernels import flash_attn_with_kvcache

from tests.kernels.cache_support import Inputs
from tests.kernels.calls import CALLS, Call
from tests.kernels.support import differing

pytestmark = pytest.mark.gpu

LONG, SHORT = 2**31 - 1, 10**7
"""Cycles: about a second, in which a call is long over, and some milliseconds, in which one could have begun."""


def _while_the_default_stream_is_busy(
    produce: Callable[[], Callable[[], dict[str, torch.Tensor]]], device: torch.device
) -> dict[str, torch.Tensor]:
    """Results, on the host, of a call whose inputs come late on a side stream, while the default stream is occupied.

    Args:
        produce: makes the inputs on the current stream, and returns the call.
        device: where.
    """
    side = torch.cuda.Stream(device)

    def on_the_side() -> dict[str, torch.Tensor]:
        with torch.cuda.stream(side):
            torch.cuda._sleep(SHORT)
            call = produce()
            return _on_the_host(call())  # waits for the side stream alone

    on_the_side()  # compiles, loads and allocates, which may wait for the whole device
    torch.cuda.synchronize(device)
    torch.cuda._sleep(LONG)
    busy = torch.cuda.Event()
    busy.record(torch.cuda.default_stream(device))
    results = on_the_side()
    assert not busy.query(), "the default stream was waited for, or not busy for long enough to tell"
    torch.cuda.synchronize(device)
    return results


def _copied(x: torch.Tensor) -> torch.Tensor:
    """A copy that the current stream makes; before it does, its memory holds NaN or garbage."""
    return torch.empty_like(x).copy_(x)


def _on_the_host(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: x.cpu() for name, x in tensors.items()}


@pytest.mark.parametrize("name", CALLS)
def test_forward_and_backward_beside_a_busy_default_stream(name: str, device: torch.device) -> None:
    source, call = (Call(name, torch.bfloat16, device) for _ in range(2))
    expected = _on_the_host(source.results())

    def produce() -> Callable[[], dict[str, torch.Tensor]]:
        call.inputs = {key: _copied(x) for key, x in source.inputs.items()}
        call.cotangents = tuple(_copied(x) for x in source.cotangents)
        return call.results

    assert not differing(_while_the_default_stream_is_busy(produce, device), expected)


def _decoded(arguments: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    out, lse = flash_attn_with_kvcache(**arguments, causal=True, num_splits=3, return_softmax_lse=True)
    return {"out": out, "lse": lse, "k_cache": arguments["k_cache"], "v_cache": arguments["v_cache"]}


def test_a_cache_beside_a_busy_default_stream(device: torch.device) -> None:
    inputs = Inputs(torch.bfloat16, device, lengths=[300, 5], tokens=2, queries=2, capacity=512, page_size=16, head_dim=64)
    source = {name: x for name, x in inputs.arguments().items() if x is not None}
    expected = _on_the_host(_decoded({name: x.clone() for name, x in source.items()}))

    def produce() -> Callable[[], dict[str, torch.Tensor]]:
        copies = {name: _copied(x) for name, x in source.items()}
        return lambda: _decoded(copies)

    assert not differing(_while_the_default_stream_is_busy(produce, device), expected)


def test_backward_from_another_stream_than_forward(device: torch.device) -> None:
    """autograd runs the backward pass on the forward's stream, and the caller's waits for it."""
    call = Call("everything", torch.bfloat16, device)
    expected = call.results()
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    leaves = call.leaves()
    with torch.cuda.stream(side):
        torch.cuda._sleep(SHORT)
        outputs = call.function(**leaves)
    gradients = call.gradients(outputs, leaves)
    torch.cuda.current_stream(device).wait_stream(side)
    assert not differing(gradients, expected)


def test_results_are_consumed_on_the_default_stream(device: torch.device) -> None:
    call = Call("full", torch.bfloat16, device)
    expected = call.results()
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        torch.cuda._sleep(SHORT)
        results = call.results()
    torch.cuda.current_stream(device).wait_stream(side)
    doubled = {name: x * 2 for name, x in results.items()}
    assert not differing(doubled, {name: x * 2 for name, x in expected.items()})
