"""Masks: False hides a pair, with torch's meaning, and is the same as an additive bias of -inf, bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
from flashverify_kernels import flash_attn_func, scaled_dot_product_attention
from flashverify_kernels.ops import attention as operator

from tests.kernels.support import DTYPES, differing, draw, run
from tests.kernels.test_bias import BROADCASTS, SHAPES, bias_of, check, options_of


def mask_of(shape: tuple[int, ...], over: str, device: torch.device) -> torch.Tensor:
    return bias_of(shape, over, device) > -math.inf


@pytest.mark.parametrize("name", SHAPES)
def test_float64_kernels_compute_the_definition(name: str, device: torch.device) -> None:
    shape, options, value_dim = options_of(name, device)
    check(draw(shape, torch.float64, device, value_dim=value_dim), bias=mask_of(shape, "", device), **options)


@pytest.mark.parametrize("over", BROADCASTS)
def test_a_mask_is_a_bias_of_zeros_and_minus_infinities(over: str, device: torch.device) -> None:
    shape = (2, 4, 2, 33, 40, 8)
    inputs, mask = draw(shape, torch.float32, device), mask_of(shape, over, device)
    bias = torch.zeros(mask.shape, device=device).masked_fill(~mask, -math.inf)
    results = run(*inputs, causal_offset=3, bias=bias)
    del results["dbias"]
    assert not differing(run(*inputs, causal_offset=3, bias=mask), results)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_causal_mask_is_causal(dtype: torch.dtype, device: torch.device) -> None:
    """A mask of what a causal offset shows gives the same bits: the blocks that it hides add nothing."""
    inputs = draw((1, 2, 1, 40, 45, 16), dtype, device)
    mask = torch.ones(40, 45, dtype=torch.bool, device=device).tril(2)[None, None]
    assert not differing(run(*inputs, bias=mask), run(*inputs, causal_offset=2))


def test_a_mask_that_hides_nothing_changes_nothing(device: torch.device) -> None:
    inputs = draw((1, 2, 1, 20, 33, 8), torch.float32, device)
    mask = torch.ones(1, 1, 1, 33, dtype=torch.bool, device=device)
    assert not differing(run(*inputs, bias=mask), run(*inputs))


def test_a_mask_may_lie_anyhow(device: torch.device) -> None:
    shape = (2, 2, 1, 20, 33, 8)
    inputs, mask = draw(shape, torch.float32, device), mask_of(shape, "", device)
    apart = torch.ones(33, 3, 20, 2, 2, dtype=torch.bool, device=device)[:, 1].permute(2, 3, 1, 0).copy_(mask)
    assert not differing(run(*inputs, bias=apart), run(*inputs, bias=mask))


@pytest.mark.parametrize("through", ["flash", "sdpa"])
def test_public_functions_take_torchs_masks(through: str, device: torch.device) -> None:
    q, k, v, _ = draw((2, 4, 4, 20, 33, 8), torch.float64, device)
    mask = mask_of((2, 4, 4, 20, 33, 8), "H", device)
    expected, _ = operator(q, k, v, 8**-0.5, None, None, mask, None, None, None, "ieee", None)
    if through == "flash":
        out = flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), attn_bias=mask).transpose(1, 2)
    else:
        out = scaled_dot_product_attention(q, k, v, mask)
    assert torch.equal(out, expected)


def test_opcheck(device: torch.device) -> None:
    shape = (1, 2, 1, 3, 4, 4)
    leaves = [x.requires_grad_() for x in draw(shape, torch.float32, device)[:3]]
    torch.library.opcheck(operator, (*leaves, 0.5, None, None, mask_of(shape, "H", device), None, 1, None, "ieee", None))
