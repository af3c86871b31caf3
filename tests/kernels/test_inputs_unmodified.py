"""No function writes to an input, nor to memory around a view: all storages keep their bits, forward and backward.

Caches that keys are appended to are the exception: of these, the rows of new keys change, and nothing beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from flashverify_kernels import flash_attn_with_kvcache

from tests.kernels.cache_support import Inputs, angles
from tests.kernels.calls import CALLS, Call
from tests.kernels.support import differing

BAND = 64
"""Elements before and behind a view: a multiple of what loads by descriptors want bases to be aligned to."""


@dataclass
class Placed:
    """A tensor in memory that is watched.

    Attributes:
        view: the tensor.
        memory: all of the memory that it lies in, with a band on each side.
    """

    view: torch.Tensor
    memory: torch.Tensor

    def bits(self) -> torch.Tensor:
        """A copy of the memory's bytes."""
        return self.memory.view(torch.uint8).clone()


def _memory(elements: int, like: torch.Tensor) -> torch.Tensor:
    """Memory for so many elements, with bands, of NaN (of the largest value, for integers)."""
    if like.dtype == torch.bool:
        filler: float | int | bool = True
    else:
        filler = math.nan if like.is_floating_point() else torch.iinfo(like.dtype).max
    return torch.full((elements + 2 * BAND,), filler, dtype=like.dtype, device=like.device)


def _dense(x: torch.Tensor) -> Placed:
    memory = _memory(x.numel(), x)
    view = memory[BAND : BAND + x.numel()].view(x.shape)
    view.copy_(x)
    return Placed(view, memory)


def _every_other(x: torch.Tensor) -> Placed:
    memory = _memory(2 * x.numel(), x)
    view = memory[BAND : BAND + 2 * x.numel()].view(*x.shape[:-1], 2 * x.shape[-1])[..., ::2]
    view.copy_(x)
    return Placed(view, memory)


def _turned(x: torch.Tensor) -> Placed:
    """The first axis innermost."""
    placed = _dense(x.movedim(0, -1))
    return Placed(placed.view.movedim(-1, 0), placed.memory)


def _expanded(x: torch.Tensor) -> Placed:
    """The first of what there is along the first axis, with a stride of 0."""
    placed = _dense(x[:1])
    return Placed(placed.view.expand(x.shape), placed.memory)


PLACES: dict[str, Callable[[torch.Tensor], Placed]] = {
    "dense": _dense,
    "every other": _every_other,
    "turned": _turned,
    "expanded": _expanded,
}


def _place(call: Call, place: Callable[[torch.Tensor], Placed]) -> list[Placed]:
    """Move all tensors of a call."""
    inputs = {name: place(x) for name, x in call.inputs.items()}
    cotangents = [place(x) for x in call.cotangents]
    call.inputs = {name: placed.view for name, placed in inputs.items()}
    call.cotangents = tuple(placed.view for placed in cotangents)
    return [*inputs.values(), *cotangents]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", CALLS)
def test_forward_and_backward(name: str, place: str, device: torch.device) -> None:
    call = Call(name, torch.float32, device)
    placed = _place(call, PLACES[place])
    before = [x.bits() for x in placed]
    results = call.results()
    assert all(torch.equal(x.bits(), old) for x, old in zip(placed, before, strict=True))
    memories = {x.memory.untyped_storage().data_ptr() for x in placed}
    assert not any(x.untyped_storage().data_ptr() in memories for x in results.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["everything", "mask"])
def test_other_formats(name: str, dtype: torch.dtype, device: torch.device) -> None:
    call = Call(name, dtype, device)
    placed = _place(call, _dense)
    before = [x.bits() for x in placed]
    call.results()
    assert all(torch.equal(x.bits(), old) for x, old in zip(placed, before, strict=True))


def test_under_autocast(device: torch.device) -> None:
    call = Call("sdpa-bias", torch.float32, device)
    placed = _place(call, _dense)
    before = [x.bits() for x in placed]
    with torch.autocast(device.type, dtype=torch.bfloat16):
        outputs = call.function(**(leaves := call.leaves()))
    call.cotangents = tuple(x.to(torch.bfloat16) for x in call.cotangents)
    call.gradients(outputs, leaves)
    assert all(torch.equal(x.bits(), old) for x, old in zip(placed, before, strict=True))


CACHES = {"rows": {}, "pages": {"page_size": 16}, "indexed and padded": {"entries": [2, 0], "leftpad": [1, 3]}}


@pytest.mark.parametrize("tokens", [0, 3])
@pytest.mark.parametrize("place", ["dense", "every other", "turned"])
@pytest.mark.parametrize("kind", CACHES)
def test_a_cache_changes_in_the_rows_of_new_keys_alone(kind: str, place: str, tokens: int, device: torch.device) -> None:
    inputs = Inputs(torch.float32, device, lengths=[5, 46], tokens=tokens, queries=2, capacity=48, **CACHES[kind])
    arguments = inputs.arguments()
    if tokens:
        arguments["rotary_cos"], arguments["rotary_sin"] = angles(50, 16, torch.float32, device)
    arguments["alibi_slopes"] = torch.ones(4, device=device)
    placed = {name: PLACES[place](x) for name, x in arguments.items() if x is not None}
    before = {name: x.bits() for name, x in placed.items()}
    found = flash_attn_with_kvcache(**{name: x.view for name, x in placed.items()}, causal=True)
    assert not differing({"out": found}, {"out": flash_attn_with_kvcache(**arguments, causal=True)})
    for name, x in placed.items():
        after = x.bits()
        if name in ("k_cache", "v_cache"):
            assert torch.equal(after, before[name]) == (tokens == 0)
            x.memory.view(torch.uint8).copy_(before[name])
            x.view[inputs.written()] = getattr(inputs, name)[inputs.written()]  # which the second call wrote
            assert torch.equal(x.bits(), after)
        else:
            assert torch.equal(after, before[name]), name


def test_a_shared_prompt_is_left_alone(device: torch.device) -> None:
    """A cache whose entries are one and the same memory can be read, and is."""
    inputs = Inputs(torch.float32, device, lengths=[20], capacity=32)
    placed = [_dense(x[:1]) for x in (inputs.k_cache, inputs.v_cache)]
    before = [x.bits() for x in placed]
    k_cache, v_cache = (x.view.expand(3, -1, -1, -1) for x in placed)
    q = _dense(inputs.q)
    old = q.bits()
    out = flash_attn_with_kvcache(q.view.expand(3, -1, -1, -1), k_cache, v_cache, cache_seqlens=20)
    assert torch.equal(out[0], out[1])
    assert torch.equal(q.bits(), old)
    assert all(torch.equal(x.bits(), old) for x, old in zip(placed, before, strict=True))
