"""Linear biases: logits are lowered by slope·|i + Nk - Nq - j|, by a slope of each query head, or of each batch entry too."""

from __future__ import annotations

import pytest
import torch
from flashverify_kernels import TileConfig, Tiles, flash_attn_func
from flashverify_kernels.ops import attention as operator
from flashverify_kernels.ops import backward as backward_operator

from tests.kernels.reference import attention
from tests.kernels.support import RESULTS, differing, draw, run

SHAPES = {
    "plain": ((2, 2, 2, 40, 45, 16), None, None),
    "causal, grouped": ((2, 4, 2, 33, 40, 8), 7, None),
    "window": ((1, 2, 1, 50, 40, 8), 0, -20),
    "rows that see no key": ((1, 1, 1, 40, 17, 4), -23, None),
    "one query": ((1, 2, 1, 1, 70, 16), None, None),
}
"""Shape, the last and the first key that a query sees relative to its row."""


def slopes_of(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Slopes of either sign, 0 among them."""
    batch, heads = shape[:2]
    return (torch.arange(batch * heads, dtype=torch.float32, device=device).reshape(batch, heads) - 1.0) * 0.3


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("scale", [None, -1.0, 0.0])
@pytest.mark.parametrize("name", SHAPES)
def test_float64_kernels_compute_the_definition(
    name: str, scale: float | None, softcap: float | None, device: torch.device
) -> None:
    shape, last, first = SHAPES[name]
    inputs = draw(shape, torch.float64, device)
    options = {"causal_offset": last, "first_offset": first, "scale": scale, "softcap": softcap}
    options["alibi"] = slopes_of(shape, device)
    dlse = inputs[3][..., 0]
    expected, results = attention(*inputs, dlse, **options), run(*inputs, dlse, **options)
    assert {name: expected.worst(name, results[name]) <= 1.0 for name in RESULTS} == dict.fromkeys(RESULTS, True)


@pytest.mark.parametrize("tile", [TileConfig(16, 32), TileConfig(32, 16), TileConfig(64, 64)])
def test_any_tile_gives_the_same_function(tile: TileConfig, device: torch.device) -> None:
    shape = (1, 2, 1, 70, 81, 8)
    inputs, alibi = draw(shape, torch.float64, device), slopes_of(shape, device) + 0.1
    expected = attention(*inputs, causal_offset=11, alibi=alibi)
    results = run(*inputs, causal_offset=11, alibi=alibi, tiles=Tiles(tile, tile, tile))
    assert max(expected.worst(name, results[name]) for name in RESULTS) <= 1.0


def test_slopes_may_lie_anyhow(device: torch.device) -> None:
    shape = (2, 4, 2, 20, 33, 8)
    inputs, alibi = draw(shape, torch.float32, device), slopes_of(shape, device)
    apart = torch.zeros(4, 2, 3, device=device)[..., 0].mT.copy_(alibi)
    assert not differing(run(*inputs, alibi=alibi), run(*inputs, alibi=apart))


@pytest.mark.parametrize("by_entry", [False, True])
def test_the_public_function_takes_slopes_of_heads_or_of_entries(by_entry: bool, device: torch.device) -> None:
    q, k, v, dout = draw((2, 4, 2, 9, 12, 6), torch.float64, device)
    slopes = slopes_of(q.shape, device) if by_entry else slopes_of(q.shape, device)[0]
    expected = attention(q, k, v, dout, causal_offset=3, alibi=slopes.expand(2, 4))
    heads_last = (x.transpose(1, 2) for x in (q, k, v))
    out, lse, _ = flash_attn_func(*heads_last, causal=True, alibi_slopes=slopes, return_attn_probs=True)
    assert expected.worst("out", out.transpose(1, 2)) <= 1.0
    assert expected.worst("lse", lse) <= 1.0


def test_a_bias_is_no_detail(device: torch.device) -> None:
    """The comparison above sees slopes that are left out, or of other heads."""
    shape = (1, 2, 2, 20, 20, 16)
    inputs, alibi = draw(shape, torch.float64, device), slopes_of(shape, device)
    expected = attention(*inputs, alibi=alibi)
    for wrong in (None, alibi.flip(1)):
        results = run(*inputs, alibi=wrong)
        assert min(expected.worst(name, results[name]) for name in RESULTS) > 1.0


def test_gradcheck(device: torch.device) -> None:
    inputs = [x.requires_grad_() for x in draw((1, 2, 1, 3, 3, 2), torch.float64, device)[:3]]
    slopes = torch.tensor([0.5, -0.25], device=device)

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        heads_last = (x.transpose(1, 2) for x in (q, k, v))
        return flash_attn_func(*heads_last, alibi_slopes=slopes, causal=True, return_attn_probs=True)[:2]

    assert torch.autograd.gradcheck(call, inputs)


def test_opcheck(device: torch.device) -> None:
    shape = (1, 2, 1, 17, 20, 8)
    q, k, v, dout = draw(shape, torch.float32, device)
    leaves, alibi = [x.clone().requires_grad_() for x in (q, k, v)], slopes_of(shape, device)
    torch.library.opcheck(operator, (*leaves, 0.5, None, alibi, None, None, 1, None, "ieee", None))
    out, lse = operator(q, k, v, 0.5, None, alibi, None, None, 1, None, "ieee", None)
    torch.library.opcheck(
        backward_operator, (dout, None, q, k, v, out, lse, 0.5, None, alibi, None, None, 1, None, "ieee", False, False, None)
    )
