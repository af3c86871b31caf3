"""Tensors on another GPU than the current one: results lie there, and have the bits of a call made from there."""

from __future__ import annotations

import pytest
import torch
from flashverify_kernels import flash_attn_func, flash_attn_with_kvcache

from tests.kernels.cache_support import Inputs, angles
from tests.kernels.calls import CALLS, Call
from tests.kernels.support import differing

pytestmark = pytest.mark.gpu


@pytest.fixture
def second() -> torch.device:
    """The second GPU, while the first is the current one."""
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two GPUs, found {torch.cuda.device_count()}")
    assert torch.cuda.current_device() == 0
    return torch.device("cuda", 1)


@pytest.mark.parametrize("name", CALLS)
def test_forward_and_backward(name: str, second: torch.device) -> None:
    call = Call(name, torch.bfloat16, second)
    found = call.results()
    assert torch.cuda.current_device() == 0
    assert {x.device for x in found.values()} == {second}
    with torch.cuda.device(second):
        expected = call.results()
    assert not differing(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_other_formats(dtype: torch.dtype, second: torch.device) -> None:
    call = Call("everything", dtype, second)
    found = call.results()
    with torch.cuda.device(second):
        assert not differing(found, call.results())


def test_two_devices_of_one_kind_give_the_same_bits(device: torch.device, second: torch.device) -> None:
    if torch.cuda.get_device_name(device) != torch.cuda.get_device_name(second):
        pytest.skip("needs two GPUs of one kind")
    first = {name: x.cpu() for name, x in Call("everything", torch.bfloat16, device).results().items()}
    other = {name: x.cpu() for name, x in Call("everything", torch.bfloat16, second).results().items()}
    assert not differing(first, other)


def test_autocast(second: torch.device) -> None:
    call = Call("sdpa-bias", torch.float32, second)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        (found,) = call.function(**call.inputs)
        with torch.cuda.device(second):
            (expected,) = call.function(**call.inputs)
    assert found.dtype == torch.bfloat16
    assert not differing({"out": found}, {"out": expected})


@pytest.mark.parametrize("name", ["everything", "sdpa-mask"])
def test_compiled_whole(name: str, second: torch.device) -> None:
    torch._dynamo.reset()
    call = Call(name, torch.bfloat16, second)
    compiled = torch.compile(call.function, fullgraph=True)
    assert not differing(call.results(compiled), call.results())


@pytest.mark.parametrize("page_size", [0, 16])
def test_a_cache(page_size: int, second: torch.device) -> None:
    results = []
    for current in (0, 1):
        inputs = Inputs(
            torch.bfloat16, second, lengths=[300, 5], tokens=2, queries=2, capacity=512, page_size=page_size, head_dim=64
        )
        cos, sin = angles(520, 64, torch.bfloat16, second)
        with torch.cuda.device(current):
            out, lse = inputs.run(rotary_cos=cos, rotary_sin=sin, causal=True, num_splits=3)
        results.append({"out": out, "lse": lse, "k_cache": inputs.k_cache, "v_cache": inputs.v_cache})
    assert {x.device for x in results[0].values()} == {second}
    assert not differing(*results)


def test_a_stream_of_the_second_device(second: torch.device) -> None:
    call = Call("everything", torch.bfloat16, second)
    expected = call.results()
    torch.cuda.synchronize(second)
    side = torch.cuda.Stream(second)
    with torch.cuda.stream(side):
        assert torch.cuda.current_device() == second.index
        found = call.results()
    side.synchronize()
    assert not differing(found, expected)


@pytest.mark.parametrize("name", ["k", "v", "alibi_slopes", "attn_bias", "learnable_sink"])
def test_tensors_on_different_devices_are_refused(name: str, device: torch.device, second: torch.device) -> None:
    inputs = Call("everything", torch.bfloat16, second).inputs
    inputs[name] = inputs[name].to(device)
    with pytest.raises(ValueError, match=f"{name}: got a tensor on cuda:0, accepted is q's device, cuda:1"):
        flash_attn_func(**inputs)


@pytest.mark.parametrize("name", ["k_cache", "v_cache", "k", "v", "cache_seqlens", "block_table"])
def test_parts_of_a_cache_on_different_devices_are_refused(name: str, device: torch.device, second: torch.device) -> None:
    inputs = Inputs(torch.bfloat16, second, lengths=[20, 5], tokens=2, page_size=16)
    arguments = {key: x for key, x in inputs.arguments().items() if x is not None}
    arguments[name] = arguments[name].to(device)
    with pytest.raises(ValueError, match=f"{name}: got a tensor on cuda:0, accepted is q's device, cuda:1"):
        flash_attn_with_kvcache(**arguments)
