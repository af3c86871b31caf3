"""`torch.autocast`: it changes nothing for flash-attn's functions, and casts for the one that stands in for torch's."""

from __future__ import annotations

import contextlib

import pytest
import torch
from flashverify_kernels import flash_attn_with_kvcache, scaled_dot_product_attention

from tests.kernels.cache_support import Inputs
from tests.kernels.calls import CALLS, Call, named
from tests.kernels.support import differing

LOWER = (torch.bfloat16, torch.float16)
SDPA = [name for name in CALLS if name.startswith("sdpa")]


def _cast_by_hand(call: Call, dtype: torch.dtype):
    """The call's function outside of any region, its floating inputs cast."""
    return lambda **tensors: call.function(**{name: x.to(dtype) if x.is_floating_point() else x for name, x in tensors.items()})


def _in_region(call: Call, dtype: torch.dtype, device: torch.device):
    def function(**tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.autocast(device.type, dtype=dtype):
            return call.function(**tensors)

    return function


def _to_outputs(call: Call, dtype: torch.dtype) -> Call:
    """The call with cotangents of the outputs' dtype."""
    call.cotangents = tuple(x.to(dtype) for x in call.cotangents)
    return call


@pytest.mark.parametrize("backward_inside", [False, True])
@pytest.mark.parametrize("name", [name for name in CALLS if name not in SDPA])
def test_flash_attns_functions_take_inputs_as_they_come(name: str, backward_inside: bool, device: torch.device) -> None:
    call = Call(name, torch.float32, device)
    leaves = call.leaves()
    region = torch.autocast(device.type, dtype=torch.bfloat16)
    with region:
        outputs = call.function(**leaves)
        gradients = call.gradients(outputs, leaves) if backward_inside else None
    found = {**named(outputs), **(gradients or call.gradients(outputs, leaves))}
    expected = call.results()
    assert {key: x.dtype for key, x in found.items()} == {key: x.dtype for key, x in expected.items()}
    assert not differing(found, expected)


def test_a_cache_is_taken_as_it_comes(device: torch.device) -> None:
    results = []
    for region in (contextlib.nullcontext(), torch.autocast(device.type, dtype=torch.bfloat16)):
        inputs = Inputs(torch.float32, device, lengths=[5, 20], tokens=2, queries=2)
        with region:
            out, lse = inputs.run(causal=True)
        results.append({"out": out, "lse": lse, "k_cache": inputs.k_cache, "v_cache": inputs.v_cache})
    assert results[1]["out"].dtype == torch.float32
    assert not differing(*results)


@pytest.mark.parametrize("backward_inside", [False, True])
@pytest.mark.parametrize("dtype", LOWER, ids=str)
@pytest.mark.parametrize("name", SDPA)
def test_torchs_function_casts_as_torchs_does(
    name: str, dtype: torch.dtype, backward_inside: bool, device: torch.device
) -> None:
    call = _to_outputs(Call(name, torch.float32, device), dtype)
    leaves = call.leaves()
    region = torch.autocast(device.type, dtype=dtype)
    with region:
        outputs = call.function(**leaves)
        gradients = call.gradients(outputs, leaves) if backward_inside else None
        theirs = torch.nn.functional.scaled_dot_product_attention(**call.inputs, enable_gqa=True)
    found = {**named(outputs), **(gradients or call.gradients(outputs, leaves))}
    assert outputs[0].dtype == theirs.dtype == dtype
    assert all(x.dtype == torch.float32 for key, x in found.items() if key != "out")
    assert not differing(found, call.results(_cast_by_hand(call, dtype)))


@pytest.mark.parametrize(
    "dtypes", [(torch.float32, torch.bfloat16, torch.float16), (torch.float16, torch.float32, torch.float32)]
)
def test_inputs_of_several_dtypes_become_one(dtypes: tuple[torch.dtype, ...], device: torch.device) -> None:
    call = Call("sdpa", torch.float32, device)
    inputs = {name: x.to(dtype) for (name, x), dtype in zip(call.inputs.items(), dtypes, strict=True)}
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found = scaled_dot_product_attention(**inputs, enable_gqa=True)
    expected = scaled_dot_product_attention(**{name: x.to(torch.bfloat16) for name, x in inputs.items()}, enable_gqa=True)
    assert not differing({"out": found}, {"out": expected})


@pytest.mark.parametrize("name", SDPA)
def test_float64_stays(name: str, device: torch.device) -> None:
    call = Call(name, torch.float64, device)
    assert not differing(call.results(_in_region(call, torch.bfloat16, device)), call.results())


def test_a_region_that_is_switched_off_changes_nothing(device: torch.device) -> None:
    call = Call("sdpa-bias", torch.float32, device)

    def function(**tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.autocast(device.type, dtype=torch.bfloat16), torch.autocast(device.type, enabled=False):
            return call.function(**tensors)

    assert not differing(call.results(function), call.results())


def test_a_tensor_that_no_region_is_of_is_refused_as_ever(device: torch.device) -> None:
    q, k, v = (torch.empty(1, 2, 3, 4, device="meta") for _ in range(3))
    with torch.autocast(device.type, dtype=torch.bfloat16), pytest.raises(ValueError, match="query: got a tensor on meta"):
        scaled_dot_product_attention(q, k, v)
    with torch.autocast(device.type, dtype=torch.bfloat16), pytest.raises(TypeError, match="query: got list"):
        scaled_dot_product_attention([1.0], k, v)


@pytest.mark.parametrize("region_inside", [False, True])
@pytest.mark.parametrize("name", ["everything", *SDPA])
def test_compiled_whole_gives_the_bits_of_eager(name: str, region_inside: bool, device: torch.device) -> None:
    """The region may be inside of the compiled function or around its call, and a call after it is outside of it."""
    torch._dynamo.reset()
    is_cast = name in SDPA
    call = Call(name, torch.float32, device)
    if is_cast:
        _to_outputs(call, torch.bfloat16)
    eager = _in_region(call, torch.bfloat16, device)
    expected = call.results(eager)
    if region_inside:
        found = call.results(torch.compile(eager, fullgraph=True, backend="aot_eager"))
    else:
        compiled = torch.compile(call.function, fullgraph=True, backend="aot_eager")
        leaves = call.leaves()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            outputs = compiled(**leaves)
        found = {**named(outputs), **call.gradients(outputs, leaves)}
        outside = Call(name, torch.float32, device)
        assert not differing(outside.results(compiled), outside.results())
    assert found["out"].dtype == (torch.bfloat16 if is_cast else torch.float32)
    assert not differing(found, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["everything", "sdpa", "sdpa-bias"])
def test_inductor_gives_the_bits_of_eager(name: str, device: torch.device) -> None:
    torch._dynamo.reset()
    call = Call(name, torch.float32, device)
    if name in SDPA:
        _to_outputs(call, torch.bfloat16)
    eager = _in_region(call, torch.bfloat16, device)
    assert not differing(call.results(torch.compile(eager, fullgraph=True)), call.results(eager))


def test_flash_attn_with_kvcache_compiles_in_a_region(device: torch.device) -> None:
    torch._dynamo.reset()
    inputs = Inputs(torch.float32, device, lengths=[5, 20])
    compiled = torch.compile(flash_attn_with_kvcache, fullgraph=True, backend="aot_eager")
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found = compiled(**inputs.arguments())
    assert not differing({"out": found}, {"out": flash_attn_with_kvcache(**inputs.arguments())})
