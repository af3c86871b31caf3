"""New keys and values go to their places in the cache, bit for bit, and nowhere else."""

from __future__ import annotations

import math

import pytest
import torch
from flashverify_kernels.ops_cache import append_to_cache

from tests.kernels.cache_reference import appended
from tests.kernels.cache_support import DTYPES, Inputs, angles, bits, check_written

KINDS = {
    "contiguous": {},
    "indexed": {"entries": [4, 0, 2]},
    "paged": {"page_size": 16},
    "heads outside": {"layout": "heads-outside"},
    "every other column": {"layout": "every-other", "page_size": 32},
}


def check_append(
    inputs: Inputs, cos: torch.Tensor | None = None, sin: torch.Tensor | None = None, interleaved: bool = True
) -> None:
    """Run the operator, and fail unless the caches are what they should be."""
    before = inputs.k_cache.clone(), inputs.v_cache.clone()
    append_to_cache(
        inputs.k_cache, inputs.v_cache, inputs.k, inputs.v, cos, sin,
        inputs.integers(inputs.lengths), 0, inputs.integers(inputs.entries), inputs.integers(inputs.where.table), interleaved,
    )  # fmt: skip
    places = inputs.where, inputs.lengths, inputs.capacity
    new_k = appended(before[0], inputs.k, *places, cos, sin, interleaved)
    new_v = appended(before[1], inputs.v, *places)
    check_written(inputs, before, (new_k, new_v), is_turned=cos is not None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_are_copied(kind: str, dtype: torch.dtype, device: torch.device) -> None:
    check_append(Inputs(dtype, device, lengths=[0, 15, 40], tokens=9, heads_kv=3, heads=3, value_dim=24, **KINDS[kind]))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_keys_are_turned_and_values_are_not(kind: str, dtype: torch.dtype, interleaved: bool, device: torch.device) -> None:
    inputs = Inputs(dtype, device, lengths=[0, 15, 40], tokens=5, head_dim=40, **KINDS[kind])
    check_append(inputs, *angles(64, 32, dtype, device), interleaved)


@pytest.mark.parametrize("page_size", [0, 16])
@pytest.mark.parametrize("lengths", [[62, 0], [64, 64], [60, 63]])
def test_what_the_cache_has_no_room_for_is_not_written(lengths: list[int], page_size: int, device: torch.device) -> None:
    """The row of the page table ends with the cache: a look beyond it would find the next row's pages."""
    check_append(Inputs(torch.float32, device, lengths=lengths, tokens=4, page_size=page_size))


def test_any_bits_are_copied(device: torch.device) -> None:
    """NaN with a payload, infinities, subnormal numbers, and -0, in bfloat16, which the interpreter else holds as float32."""
    inputs = Inputs(torch.bfloat16, device, lengths=[3], tokens=2, head_dim=16)
    patterns = torch.arange(-(2**15), 2**15, 1031, dtype=torch.int32).to(torch.int16)[: inputs.k.numel()].to(device)
    inputs.k = patterns.view(torch.bfloat16).reshape(inputs.k.shape)
    inputs.v = inputs.k.flip(0)
    before = bits(inputs.k_cache).clone()
    append_to_cache(inputs.k_cache, inputs.v_cache, inputs.k, inputs.v, None, None, inputs.integers([3]), 0, None, None, True)
    assert torch.equal(bits(inputs.k_cache)[0, 3:5], bits(inputs.k)[0])
    before[0, 3:5] = bits(inputs.k)[0]
    assert torch.equal(bits(inputs.k_cache), before)


def test_new_rows_may_lie_anyhow(device: torch.device) -> None:
    inputs = Inputs(torch.float32, device, lengths=[3, 30], tokens=4)
    inputs.k = inputs.k.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    inputs.v = inputs.v[:, :1].expand(-1, 4, -1, -1)
    check_append(inputs)


def test_the_function_appends_before_it_attends(device: torch.device) -> None:
    inputs = Inputs(torch.float32, device, lengths=[0, 3], tokens=1)
    out, _ = inputs.run(causal=True)
    assert torch.equal(out[0], inputs.v[0].repeat_interleave(2, 1))
    assert not math.isnan(out.sum().item())
