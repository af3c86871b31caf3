"""Soft caps: logits x become cap·tanh(x / cap) before anything is hidden, and gradients get the factor 1 - tanh²."""

from __future__ import annotations

import pytest
import torch
from flashverify_kernels import TileConfig, Tiles, flash_attn_func
from flashverify_kernels.ops import attention as operator
from flashverify_kernels.ops import backward as backward_operator

from tests.kernels.reference import attention
from tests.kernels.support import RESULTS, differing, draw, run

SHAPES = {
    "plain": ((1, 2, 2, 40, 45, 16), None, None, None),
    "causal, grouped": ((2, 4, 2, 33, 40, 8), 7, None, None),
    "window, other columns in v": ((1, 2, 1, 50, 40, 8), 0, -20, 24),
    "rows that see no key": ((1, 1, 1, 40, 17, 4), -23, None, None),
    "one query": ((1, 2, 1, 1, 70, 16), None, None, None),
}
"""Shape, the last and the first key that a query sees relative to its row, columns of v."""


def agree(inputs, dlse=None, **options) -> bool:
    expected, results = attention(*inputs, dlse, **options), run(*inputs, dlse, **options)
    return all(expected.worst(name, results[name]) <= 1.0 for name in RESULTS)


@pytest.mark.parametrize("cap", [2.0**-20, 0.25, 2.0, 30.0, 2.0**40])
@pytest.mark.parametrize("name", SHAPES)
def test_float64_kernels_compute_the_definition(name: str, cap: float, device: torch.device) -> None:
    shape, last, first, value_dim = SHAPES[name]
    inputs = draw(shape, torch.float64, device, value_dim=value_dim)
    dlse = inputs[3][..., 0]
    assert agree(inputs, dlse, causal_offset=last, first_offset=first, softcap=cap)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1e-30, 40.0])
def test_scales_of_any_sign_and_size(scale: float, device: torch.device) -> None:
    """Scores far beyond the cap end at it, and their gradients vanish."""
    assert agree(draw((1, 2, 1, 20, 33, 8), torch.float64, device), scale=scale, softcap=3.0)


@pytest.mark.parametrize("tile", [TileConfig(16, 32), TileConfig(32, 16), TileConfig(64, 64)])
def test_any_tile_gives_the_same_function(tile: TileConfig, device: torch.device) -> None:
    inputs = draw((1, 2, 1, 70, 81, 8), torch.float64, device)
    expected = attention(*inputs, causal_offset=11, softcap=1.5)
    results = run(*inputs, causal_offset=11, softcap=1.5, tiles=Tiles(tile, tile, tile))
    assert max(expected.worst(name, results[name]) for name in RESULTS) <= 1.0


def test_a_cap_is_no_detail(device: torch.device) -> None:
    """The comparison above sees a cap that is left out, or put in the place of another."""
    inputs = draw((1, 1, 1, 20, 20, 16), torch.float64, device)
    expected = attention(*inputs, softcap=2.0)
    for wrong in (None, 2.0 + 2.0**-30):
        results = run(*inputs, softcap=wrong)
        assert min(expected.worst(name, results[name]) for name in RESULTS) > 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_shorter_formats_are_near(dtype: torch.dtype, device: torch.device) -> None:
    """Within 2^6 roundings of the largest element; what an element may lack is what the budgets say."""
    inputs = draw((1, 2, 1, 40, 45, 16), dtype, device)
    expected, results = attention(*inputs, causal_offset=5, softcap=4.0), run(*inputs, causal_offset=5, softcap=4.0)
    for name in RESULTS:
        true = expected.values[name]
        assert (results[name].double() - true).abs().max() <= 2**6 * torch.finfo(dtype).eps * true.abs().max(), name


def test_the_public_function_caps(device: torch.device) -> None:
    q, k, v, dout = draw((1, 4, 2, 9, 12, 6), torch.float64, device)
    expected = attention(q, k, v, dout, causal_offset=3, softcap=1.25)
    out, lse, _ = flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), causal=True, softcap=1.25, return_attn_probs=True)
    assert expected.worst("out", out.transpose(1, 2)) <= 1.0
    assert expected.worst("lse", lse) <= 1.0


def test_zero_is_no_cap(device: torch.device) -> None:
    q, k, v, _ = draw((1, 2, 2, 9, 12, 6), torch.float32, device)
    heads_last = [x.transpose(1, 2) for x in (q, k, v)]
    assert torch.equal(flash_attn_func(*heads_last, softcap=0.0), flash_attn_func(*heads_last))


def test_runs_repeat_bit_for_bit(device: torch.device) -> None:
    inputs = draw((1, 2, 1, 40, 45, 16), torch.bfloat16, device)
    assert not differing(run(*inputs, softcap=3.0), run(*inputs, softcap=3.0))


def test_gradcheck(device: torch.device) -> None:
    inputs = [x.requires_grad_() for x in draw((1, 1, 1, 3, 3, 2), torch.float64, device)[:3]]

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        heads_last = (x.transpose(1, 2) for x in (q, k, v))
        return flash_attn_func(*heads_last, softcap=0.75, causal=True, return_attn_probs=True)[:2]

    assert torch.autograd.gradcheck(call, inputs)


def test_opcheck(device: torch.device) -> None:
    q, k, v, dout = draw((1, 2, 1, 17, 20, 8), torch.float32, device)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(operator, (*leaves, 0.5, 3.0, None, None, None, 1, None, "ieee", None))
    out, lse = operator(q, k, v, 0.5, 3.0, None, None, None, 1, None, "ieee", None)
    torch.library.opcheck(
        backward_operator, (dout, None, q, k, v, out, lse, 0.5, 3.0, None, None, None, 1, None, "ieee", False, False, None)
    )
