"""Is it the same function? The float64 kernels against plain float64 torch, within what rounding explains."""

from __future__ import annotations

import math

import pytest
import torch
from flashverify_kernels import TileConfig, Tiles, flash_attn_func, scaled_dot_product_attention

from tests.kernels.reference import attention
from tests.kernels.support import RESULTS, draw, recorded_launches, run

# (B, Hq, Hkv, Nq, Nk, D), causal offset: bottom-right is Nk - Nq, top-left is 0.
PROBLEMS = {
    "one": ((1, 1, 1, 1, 1, 1), None),
    "one-query": ((1, 3, 1, 1, 37, 5), 36),
    "one-key": ((1, 1, 1, 35, 1, 16), None),
    "one-key-causal": ((1, 1, 1, 5, 1, 3), -4),
    "tile": ((1, 1, 1, 32, 32, 16), 0),
    "tile-less-1": ((1, 1, 1, 31, 31, 15), 0),
    "tile-plus-1": ((1, 1, 1, 33, 33, 17), 0),
    "two-tiles": ((1, 1, 1, 64, 64, 32), None),
    "mha": ((2, 2, 2, 20, 40, 8), None),
    "gqa": ((1, 6, 3, 17, 40, 12), None),
    "gqa-causal": ((2, 6, 2, 25, 9, 12), -16),
    "mqa": ((1, 5, 1, 20, 70, 7), 50),
    "queries-beyond-keys": ((1, 1, 1, 70, 20, 4), -50),
    "keys-beyond-queries": ((1, 1, 1, 20, 70, 4), 50),
    "top-left-wide": ((1, 1, 1, 20, 70, 4), 0),
    "top-left-tall": ((1, 1, 1, 70, 20, 4), 0),
    "nobody-sees": ((1, 1, 1, 3, 4, 4), -3),
    "head-40": ((1, 1, 1, 17, 18, 40), 1),
    "head-64": ((1, 1, 1, 18, 17, 64), None),
    "head-96": ((1, 1, 1, 17, 17, 96), 0),
    "head-128": ((1, 1, 1, 9, 17, 128), None),
    "head-255": ((1, 1, 1, 17, 9, 255), 0),
    "head-256": ((1, 1, 1, 17, 17, 256), None),
}


VALUE_DIMS = {
    "wider": ((2, 4, 2, 40, 70, 16), 64, 30, None),
    "narrower": ((2, 4, 2, 70, 40, 40), 24, -30, None),
    "one-column": ((1, 3, 1, 35, 33, 17), 1, None, None),
    "latent-attention": ((1, 2, 1, 20, 40, 192), 128, 20, None),
    "largest": ((1, 1, 1, 17, 18, 3), 256, None, None),
    "in-a-window": ((2, 2, 1, 70, 70, 8), 20, 5, -9),
}
"""(B, Hq, Hkv, Nq, Nk, D), columns of v, and the last and first offset of what is seen."""


@pytest.mark.parametrize("name", VALUE_DIMS)
def test_values_may_have_other_columns_than_keys(name: str, device: torch.device) -> None:
    shape, value_dim, last, first = VALUE_DIMS[name]
    inputs = draw(shape, torch.float64, device, value_dim=value_dim)
    dlse = _dlse(inputs[3])
    visible = {"causal_offset": last, "first_offset": first}
    expected = attention(*inputs, dlse, **visible)
    results = run(*inputs, dlse, **visible)
    assert {name: expected.worst(name, results[name]) <= 1.0 for name in RESULTS} == dict.fromkeys(RESULTS, True)


@pytest.mark.parametrize("causal", [False, True])
def test_public_functions_take_values_of_other_columns(causal: bool, device: torch.device) -> None:
    q, k, v, _ = draw((2, 4, 2, 9, 9, 6), torch.float64, device, value_dim=11)
    out = scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    assert out.shape == (2, 4, 9, 11)
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    expected = attention(q, k, v, torch.zeros_like(out), causal_offset=0 if causal else None)
    assert max(expected.worst("out", out), expected.worst("out", theirs)) <= 1.0
    flash = flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), causal=causal)
    assert torch.equal(flash.transpose(1, 2), out)


WINDOWS = {
    "left": ((1, 2, 1, 100, 100, 8), None, -20),
    "left-of-nothing": ((1, 1, 1, 40, 40, 4), None, 0),
    "causal-left": ((1, 4, 2, 100, 100, 8), 0, -33),
    "itself-alone": ((1, 1, 1, 70, 70, 4), 0, 0),
    "both": ((2, 3, 1, 70, 100, 8), 35, 10),
    "right-of-its-place": ((1, 1, 1, 40, 100, 4), 50, 33),
    "narrow-at-tile-edges": ((1, 1, 1, 97, 129, 4), 33, 31),
    "no-key-for-most": ((1, 1, 1, 100, 40, 4), -50, -61),
    "keys-that-nobody-sees": ((1, 1, 1, 33, 200, 4), 100, 90),
    "no-key-at-all": ((1, 1, 1, 40, 40, 4), -3, 3),
    "beyond-all-keys": ((1, 2, 1, 40, 70, 4), None, 200),
    "before-all-keys": ((1, 2, 1, 40, 70, 4), None, -200),
}
"""(B, Hq, Hkv, Nq, Nk, D); query i sees no key after i + the first offset and none before i + the second."""


@pytest.mark.parametrize("name", WINDOWS)
def test_float64_kernels_compute_the_definition_in_a_window(name: str, device: torch.device) -> None:
    shape, last, first = WINDOWS[name]
    inputs = draw(shape, torch.float64, device)
    dlse = _dlse(inputs[3])
    visible = {"causal_offset": last, "first_offset": first}
    expected = attention(*inputs, dlse, **visible)
    results = run(*inputs, dlse, **visible)
    assert {name: expected.worst(name, results[name]) <= 1.0 for name in RESULTS} == dict.fromkeys(RESULTS, True)


@pytest.mark.parametrize(("block_m", "block_n"), [(16, 32), (32, 16)])
def test_windows_at_every_place_of_their_edges_among_tiles(block_m: int, block_n: int, device: torch.device) -> None:
    """Each edge of the window on, before and after each edge of a tile."""
    tile = TileConfig(block_m, block_n)
    inputs = draw((1, 1, 1, 34, 49, 2), torch.float64, device)
    edges = (-16, -15, 0, 1, 15, 16, 17, 33)
    for first in (None, *edges):
        for last in (None, *edges):
            visible = {"causal_offset": last, "first_offset": first}
            expected = attention(*inputs, **visible)
            results = run(*inputs, tiles=Tiles(tile, tile, tile), **visible)
            assert max(expected.worst(name, results[name]) for name in RESULTS) <= 1.0, (first, last)


@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(9, 9), (5, 12), (12, 5)])
@pytest.mark.parametrize("window", [(-1, -1), (3, -1), (-1, 2), (3, 2), (0, 0), (10**15, 10**15), (2, 4)])
@pytest.mark.parametrize("causal", [False, True])
def test_windows_are_aligned_bottom_right(seqlen_q: int, seqlen_k: int, window, causal: bool, device: torch.device) -> None:
    """Query i sees keys i + Nk - Nq - left .. i + Nk - Nq + right (flash-attn 2.8); a causal mask has no right side."""
    q, k, v, dout = draw((1, 4, 2, seqlen_q, seqlen_k, 6), torch.float64, device)
    position = seqlen_k - seqlen_q
    left, right = (None if side == -1 else min(side, 100) for side in window)
    last = position if causal else None if right is None else position + right
    expected = attention(q, k, v, dout, causal_offset=last, first_offset=None if left is None else position - left)
    arguments = [x.transpose(1, 2) for x in (q, k, v)]
    out, lse, _ = flash_attn_func(*arguments, causal=causal, window_size=window, return_attn_probs=True)
    assert expected.worst("out", out.transpose(1, 2)) <= 1.0
    assert expected.worst("lse", lse) <= 1.0


def test_blocks_that_a_window_hides_are_not_read(device: torch.device) -> None:
    """NaN in every tile that no query of a block sees leaves the block alone: a window costs what it sees."""
    q, k, v, dout = draw((1, 1, 1, 32, 160, 4), torch.float64, device)
    clean = run(q, k, v, dout, causal_offset=96, first_offset=64)
    k[:, :, :64], v[:, :, :64], k[:, :, 128:], v[:, :, 128:] = (torch.nan,) * 4
    dirty = run(q, k, v, dout, causal_offset=96, first_offset=64)
    for name in ("out", "lse", "dq"):
        assert torch.equal(clean[name], dirty[name])
    for name in ("dk", "dv"):
        assert torch.equal(clean[name][:, :, 64:128], dirty[name][:, :, 64:128])


def _dlse(dout: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(99)
    return torch.randn(dout.shape[:3], dtype=torch.float64, generator=generator).to(dout.device)


@pytest.mark.parametrize("name", PROBLEMS)
def test_float64_kernels_compute_the_definition(name: str, device: torch.device) -> None:
    shape, offset = PROBLEMS[name]
    inputs = draw(shape, torch.float64, device)
    dlse = _dlse(inputs[3])
    expected = attention(*inputs, dlse, causal_offset=offset)
    results = run(*inputs, dlse, causal_offset=offset)
    assert {name: expected.worst(name, results[name]) <= 1.0 for name in RESULTS} == dict.fromkeys(RESULTS, True)


@pytest.mark.parametrize("scale", [0.0, -0.0, -0.3, 1.0, 1 / 3, 7.0, -40.0, 1e-200])
@pytest.mark.parametrize("offset", [None, 7])
def test_any_scale(scale: float, offset: int | None, device: torch.device) -> None:
    """1/3 tells a scale that was rounded to float32 on its way; -0.3 a maximum taken of the wrong end."""
    inputs = draw((1, 1, 1, 17, 40, 9), torch.float64, device)
    expected = attention(*inputs, scale=scale, causal_offset=offset)
    results = run(*inputs, scale=scale, causal_offset=offset)
    assert max(expected.worst(name, results[name]) for name in RESULTS) <= 1.0


@pytest.mark.parametrize("magnitude", [1e-150, 1e-3, 30.0, 1e4])
def test_any_magnitude_of_logits(magnitude: float, device: torch.device) -> None:
    q, k, v, dout = draw((1, 1, 1, 35, 70, 8), torch.float64, device)
    inputs = (q * magnitude, k, v, dout)
    expected = attention(*inputs, causal_offset=35)
    results = run(*inputs, causal_offset=35)
    assert max(expected.worst(name, results[name]) for name in RESULTS) <= 1.0


@pytest.mark.parametrize("cotangent", ["out", "lse"])
def test_only_one_output_has_a_cotangent(cotangent: str, device: torch.device) -> None:
    q, k, v, dout = draw((1, 2, 1, 9, 11, 5), torch.float64, device)
    dlse = _dlse(dout)
    leaves = [x.transpose(1, 2).requires_grad_() for x in (q, k, v)]
    out, lse, _ = flash_attn_func(*leaves, causal=True, return_attn_probs=True)
    if cotangent == "out":
        expected = attention(q, k, v, dout, causal_offset=2)
        gradients = torch.autograd.grad(out, leaves, dout.transpose(1, 2))
    else:
        expected = attention(q, k, v, torch.zeros_like(dout), dlse, causal_offset=2)
        gradients = torch.autograd.grad(lse, leaves, dlse)
    for name, gradient in zip(("dq", "dk", "dv"), gradients, strict=True):
        assert expected.worst(name, gradient.transpose(1, 2)) <= 1.0


@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(5, 5), (3, 7), (7, 3)])
@pytest.mark.parametrize("causal", [False, True])
def test_public_functions_align_their_masks(seqlen_q: int, seqlen_k: int, causal: bool, device: torch.device) -> None:
    """flash-attn's causal mask ends at the last key (bottom-right), torch's begins at the first (top-left)."""
    q, k, v, dout = draw((1, 4, 2, seqlen_q, seqlen_k, 6), torch.float64, device)
    bottom_right = attention(q, k, v, dout, causal_offset=seqlen_k - seqlen_q if causal else None)
    out, lse, probabilities = flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), causal=causal, return_attn_probs=True)
    assert bottom_right.worst("out", out.transpose(1, 2)) <= 1.0
    assert bottom_right.worst("lse", lse) <= 1.0
    assert probabilities is None
    top_left = attention(q, k, v, dout, causal_offset=0 if causal else None)
    out = scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    assert top_left.worst("out", out) <= 1.0
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    assert top_left.worst("out", theirs) <= 1.0


@pytest.mark.parametrize("heads_kv", [1, 2, 3])
def test_grouped_heads_equal_repeated_heads(heads_kv: int, device: torch.device) -> None:
    """Forward and dQ bit for bit; dK and dV are the sums over the group, which rounding reorders."""
    q, k, v, dout = draw((1, 6, heads_kv, 9, 35, 5), torch.float64, device)
    group = 6 // heads_kv
    grouped = run(q, k, v, dout, causal_offset=26)
    repeated = run(q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), dout, causal_offset=26)
    assert all(torch.equal(grouped[name], repeated[name]) for name in ("out", "lse", "dq"))
    expected = attention(q, k, v, dout, causal_offset=26)
    for name in ("dk", "dv"):
        assert expected.worst(name, repeated[name].unflatten(1, (-1, group)).sum(2)) <= 1.0
        assert expected.worst(name, grouped[name]) <= 1.0


FORCED = {
    "smallest": Tiles(*[TileConfig(16, 16, 2, 1)] * 3),
    "tall": Tiles(*[TileConfig(64, 16, 4, 1)] * 3),
    "wide": Tiles(*[TileConfig(16, 64, 4, 2)] * 3),
    "each-its-own": Tiles(TileConfig(16, 32, 4, 1), TileConfig(32, 16, 2, 2), TileConfig(64, 32, 8, 1)),
}


@pytest.mark.parametrize("name", FORCED)
@pytest.mark.parametrize("offset", [None, 13, -9])
def test_forced_tiles_are_used_and_compute_the_same_function(name: str, offset: int | None, device: torch.device) -> None:
    tiles = FORCED[name]
    inputs = draw((1, 1, 1, 67, 70, 20), torch.float64, device)
    with recorded_launches() as launches:
        results = run(*inputs, causal_offset=offset, tiles=tiles)
    expected = attention(*inputs, causal_offset=offset)
    assert max(expected.worst(name, results[name]) for name in RESULTS) <= 1.0
    for kernel, tile in (("forward_kernel", tiles.forward), ("dkdv_kernel", tiles.dkdv), ("dq_kernel", tiles.dq)):
        (options,) = [launch.options for launch in launches if launch.kernel == kernel]
        used = [options[key] for key in ("BLOCK_M", "BLOCK_N", "num_warps", "num_stages")]
        assert used == [tile.block_m, tile.block_n, tile.num_warps, tile.num_stages]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("function", [flash_attn_func, scaled_dot_product_attention])
def test_gradcheck(function: object, causal: bool, device: torch.device) -> None:
    inputs = [x.requires_grad_() for x in draw((1, 1, 1, 3, 2, 2), torch.float64, device)[:3]]

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if function is scaled_dot_product_attention:
            return (scaled_dot_product_attention(q, k, v, is_causal=causal),)
        heads_last = (x.transpose(1, 2) for x in (q, k, v))
        out, lse, _ = flash_attn_func(*heads_last, causal=causal, return_attn_probs=True)
        return (out, torch.where(lse == -math.inf, 0.0, lse))

    assert torch.autograd.gradcheck(call, inputs)


def test_gradcheck_in_a_window_with_other_columns_in_v(device: torch.device) -> None:
    inputs = [x.requires_grad_() for x in draw((1, 1, 1, 3, 3, 1), torch.float64, device, value_dim=2)[:3]]

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        heads_last = (x.transpose(1, 2) for x in (q, k, v))
        return flash_attn_func(*heads_last, window_size=(1, 1), return_attn_probs=True)[:2]

    assert torch.autograd.gradcheck(call, inputs)
