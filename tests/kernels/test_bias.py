"""Biases: an additive tensor, broadcast over entries, heads or rows, whose -inf hides a pair, and its gradient."""

from __future__ import annotations

import math

import pytest
import torch
from flashverify_kernels import TileConfig, Tiles, flash_attn_func, scaled_dot_product_attention
from flashverify_kernels.ops import attention as operator
from flashverify_kernels.ops import backward as backward_operator
from flashverify_kernels.unrounded import unrounded_attention

from tests.kernels.reference import attention
from tests.kernels.support import DTYPES, differing, draw, run

SHAPES = {
    "plain": ((2, 4, 2, 33, 40, 8), {}, None),
    "causal": ((2, 4, 2, 33, 40, 8), {"causal_offset": 7, "scale": -0.6}, None),
    "window, slopes, other columns in v": ((2, 2, 1, 37, 20, 8), {"causal_offset": 0, "first_offset": -9, "alibi": True}, 24),
    "cap": ((2, 2, 2, 20, 33, 5), {"softcap": 2.0, "scale": 0.0}, None),
    "cap, slopes, causal": ((2, 2, 2, 20, 17, 4), {"softcap": 1.5, "alibi": True, "causal_offset": -3}, None),
    "one query": ((2, 2, 1, 1, 70, 16), {}, None),
}
"""Shape, options, columns of v."""

BROADCASTS = ("", "B", "H", "N", "BH", "HN", "BN", "BHN")
"""Axes over which a bias is one for all."""


def bias_of(
    shape: tuple[int, ...], over: str, device: torch.device, dtype: torch.dtype = torch.float64, hidden: float = 0.2
) -> torch.Tensor:
    """A bias of sizes (B, Hq, Hkv, Nq, Nk, D), one for all along the axes `over`, with a share of -inf, one row all of it."""
    batch, heads, _, seqlen_q, seqlen_k, _ = shape
    sizes = [1 if axis in over else size for axis, size in zip("BHN", (batch, heads, seqlen_q), strict=True)]
    generator = torch.Generator().manual_seed(11)
    bias = 2.0 * torch.randn(*sizes, seqlen_k, generator=generator, dtype=torch.float64)
    bias = bias.masked_fill(torch.rand(bias.shape, generator=generator) < hidden, -math.inf)
    if hidden and sizes[2] > 1:
        bias[:, :, sizes[2] // 2] = -math.inf
    return bias.to(device, dtype)


def options_of(name: str, device: torch.device) -> tuple[tuple[int, ...], dict[str, object], int | None]:
    shape, options, value_dim = SHAPES[name]
    options = dict(options)
    if options.pop("alibi", False):
        options["alibi"] = torch.linspace(-0.3, 0.5, shape[0] * shape[1], device=device).reshape(shape[0], shape[1])
    return shape, options, value_dim


def check(inputs: tuple[torch.Tensor, ...], tiles: Tiles | None = None, **options: object) -> None:
    """Fail unless every result of a float64 call with a cotangent of lse is that of the definition."""
    dlse = inputs[3][..., 0]
    expected, results = attention(*inputs, dlse, **options), run(*inputs, dlse, tiles=tiles, **options)
    assert results.keys() == expected.values.keys()
    assert {name: expected.worst(name, x) <= 1.0 for name, x in results.items()} == dict.fromkeys(results, True)


@pytest.mark.parametrize("name", SHAPES)
def test_float64_kernels_compute_the_definition(name: str, device: torch.device) -> None:
    shape, options, value_dim = options_of(name, device)
    check(draw(shape, torch.float64, device, value_dim=value_dim), bias=bias_of(shape, "", device), **options)


@pytest.mark.parametrize("name", ["causal", "window, slopes, other columns in v"])
@pytest.mark.parametrize("over", BROADCASTS[1:])
def test_a_bias_broadcasts_and_its_gradient_is_summed(over: str, name: str, device: torch.device) -> None:
    shape, options, value_dim = options_of(name, device)
    check(draw(shape, torch.float64, device, value_dim=value_dim), bias=bias_of(shape, over, device), **options)


@pytest.mark.parametrize("over", ["", "N"])
@pytest.mark.parametrize("tile", [TileConfig(16, 32), TileConfig(32, 16)])
def test_any_tile_gives_the_same_function(tile: TileConfig, over: str, device: torch.device) -> None:
    shape = (1, 2, 1, 50, 61, 8)
    bias = bias_of(shape, over, device)
    check(draw(shape, torch.float64, device), tiles=Tiles(tile, tile, tile), bias=bias, causal_offset=11)


@pytest.mark.parametrize("size", ["batch", "heads", "queries", "keys"])
def test_empty_sizes(size: str, device: torch.device) -> None:
    """A gradient that nothing is summed into is zero, not what was in memory."""
    shape = {
        "batch": (0, 2, 1, 3, 4, 4), "heads": (1, 0, 1, 3, 4, 4), "queries": (1, 2, 1, 0, 4, 4), "keys": (1, 2, 1, 3, 0, 4),
    }[size]  # fmt: skip
    bias = torch.zeros(1, 1, 1, shape[4], dtype=torch.float64, device=device)
    results = run(*draw(shape, torch.float64, device), bias=bias, sink=bias.new_zeros(shape[1]))
    assert torch.equal(results["dbias"], bias)


@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("long", [False, True])
def test_shorter_formats_are_near(dtype: torch.dtype, long: bool, device: torch.device) -> None:
    """Within 2^6 roundings of the largest element, with a bias of q's dtype or of lse's, whose gradient has that dtype."""
    shape = (1, 2, 1, 40, 45, 16)
    inputs, bias = draw(shape, dtype, device), bias_of(shape, "H", device, torch.float32 if long else dtype)
    expected, results = attention(*inputs, causal_offset=5, bias=bias), run(*inputs, causal_offset=5, bias=bias)
    assert results["dbias"].dtype == bias.dtype
    for name, x in results.items():
        true = expected.values[name]
        distance = torch.where(x.double() == true, 0.0, (x.double() - true).abs()).max()
        assert distance <= 2**6 * torch.finfo(dtype).eps * true[true.isfinite()].abs().max(), name


def test_a_bias_may_lie_anyhow(device: torch.device) -> None:
    shape = (2, 4, 2, 20, 33, 8)
    inputs, bias = draw(shape, torch.float32, device), bias_of(shape, "", device, torch.float32)
    apart = torch.full((33, 3, 20, 2, 4), math.nan, device=device)[:, 1].permute(2, 3, 1, 0).copy_(bias)
    expected = run(*inputs, bias=bias)
    assert not differing(run(*inputs, bias=apart), expected)
    one = bias_of(shape, "BN", device, torch.float32)
    summed, whole = run(*inputs, bias=one), run(*inputs, bias=one.expand(2, 4, 20, 33))
    assert not differing({name: summed[name] for name in ("out", "dq", "dk")}, {n: whole[n] for n in ("out", "dq", "dk")})


def test_hidden_pairs_and_empty_rows_give_zeros(device: torch.device) -> None:
    shape = (1, 2, 1, 20, 33, 8)
    q, k, v, dout = draw(shape, torch.float32, device)
    bias = bias_of(shape, "", device, torch.float32)
    bias[..., 7] = -math.inf
    results = run(q, k, v, dout, dout[..., 0].contiguous(), bias=bias)
    empty = 10
    assert not results["out"][:, :, empty].any()
    assert (results["lse"][:, :, empty] == -math.inf).all()
    assert not results["dq"][:, :, empty].any()
    assert not results["dk"][:, :, 7].any()
    assert not results["dv"][:, :, 7].any()
    assert not results["dbias"][bias == -math.inf].any()


def test_what_a_hidden_key_holds_is_not_seen(device: torch.device) -> None:
    """A key of NaN or infinity, hidden by -inf from every row, changes nothing but its own gradient's inputs."""
    shape = (1, 2, 1, 20, 33, 8)
    q, k, v, dout = draw(shape, torch.float32, device)
    bias = bias_of(shape, "BH", device, torch.float32)
    bias[..., 7:9] = -math.inf
    expected = run(q, k, v, dout, bias=bias)
    k[:, :, 7], k[:, :, 8] = math.nan, math.inf
    results = run(q, k, v, dout, bias=bias)
    names = ("out", "lse", "dk", "dv", "dbias")  # a product with 0 brings NaN to dq, as with keys that other masks hide
    assert not differing({name: results[name] for name in names}, {name: expected[name] for name in names})


def test_nan_in_a_bias_reaches_its_row(device: torch.device) -> None:
    shape = (1, 1, 1, 20, 33, 8)
    inputs, bias = draw(shape, torch.float32, device), bias_of(shape, "", device, torch.float32)
    bias[0, 0, 4, 5] = math.nan
    results = run(*inputs, bias=bias)
    assert results["out"].isnan().any(-1).nonzero().tolist() == [[0, 0, 4]]
    assert results["lse"].isnan().nonzero().tolist() == [[0, 0, 4]]


def test_a_bias_is_no_detail(device: torch.device) -> None:
    """The comparison above sees a bias that is left out, shifted by a key, or a 2^-30th off."""
    shape = (1, 2, 2, 20, 20, 16)
    inputs, bias = draw(shape, torch.float64, device), bias_of(shape, "", device, hidden=0.0)
    expected = attention(*inputs, bias=bias)
    for wrong in (torch.zeros_like(bias), bias.roll(1, 3), bias * (1.0 + 2.0**-30)):
        results = run(*inputs, bias=wrong)
        assert min(expected.worst(name, x) for name, x in results.items()) > 1.0


def test_runs_repeat_bit_for_bit(device: torch.device) -> None:
    shape = (2, 2, 1, 40, 45, 16)
    inputs, bias = draw(shape, torch.bfloat16, device), bias_of(shape, "BN", device, torch.bfloat16)
    assert not differing(run(*inputs, bias=bias), run(*inputs, bias=bias))


@pytest.mark.parametrize("over", ["", "BN"])
def test_gradcheck(over: str, device: torch.device) -> None:
    shape = (2, 2, 1, 3, 3, 2)
    inputs = [x.requires_grad_() for x in draw(shape, torch.float64, device)[:3]]
    bias = bias_of(shape, over, device, hidden=0.0)
    bias[..., 0, 1] = -math.inf
    sink = torch.tensor([0.5, -0.25], dtype=torch.float64, device=device, requires_grad=True)
    hidden = bias == -math.inf
    finite = bias.masked_fill(hidden, 0.0).requires_grad_()

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, finite: torch.Tensor, sink: torch.Tensor) -> object:
        heads_last = (x.transpose(1, 2) for x in (q, k, v))
        options = {"attn_bias": finite.masked_fill(hidden, -math.inf), "learnable_sink": sink, "softcap": 0.75}
        return flash_attn_func(*heads_last, **options, return_attn_probs=True)[:2]

    assert torch.autograd.gradcheck(call, (*inputs, finite, sink), fast_mode=True)


@pytest.mark.parametrize("over", ["", "HN"])
def test_opcheck(over: str, device: torch.device) -> None:
    shape = (1, 2, 1, 3, 4, 4)
    q, k, v, dout = draw(shape, torch.float32, device)
    bias, sink = bias_of(shape, over, device, torch.float32), torch.ones(2, device=device)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    extras = [x.clone().requires_grad_() for x in (bias, sink)]
    torch.library.opcheck(operator, (*leaves, 0.5, None, None, *extras, 1, None, "ieee", None))
    features = (0.5, None, None, bias, sink, 1, None, "ieee")
    out, lse = operator(q, k, v, *features, None)
    for needs in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(backward_operator, (dout, None, q, k, v, out, lse, *features, *needs, None))


def test_only_what_is_asked_for_is_computed(device: torch.device) -> None:
    shape = (1, 2, 1, 3, 4, 4)
    q, k, v, dout = draw(shape, torch.float32, device)
    features = (0.5, None, None, bias_of(shape, "", device, torch.float32), torch.ones(2, device=device), 1, None, "ieee")
    out, lse = operator(q, k, v, *features, None)
    *_, dbias, dsink = backward_operator(dout, None, q, k, v, out, lse, *features, False, False, None)
    assert dbias.shape == dsink.shape == (0,)


def test_a_fixed_bias_gets_no_gradient_and_changes_no_other(device: torch.device) -> None:
    shape = (1, 2, 1, 20, 33, 8)
    q, k, v, dout = (x.transpose(1, 2) for x in draw(shape, torch.float32, device))
    bias = bias_of(shape, "", device, torch.float32)
    gradients = []
    for given in (bias, bias.clone().requires_grad_()):
        leaf = q.detach().clone().requires_grad_()
        gradients.append(torch.autograd.grad(flash_attn_func(leaf, k, v, attn_bias=given), leaf, dout)[0])
    assert torch.equal(*gradients)


def test_the_unrounded_mode_rounds_to_what_users_get(device: torch.device) -> None:
    shape = (1, 2, 1, 17, 33, 16)
    q, k, v, dout = draw(shape, torch.bfloat16, device)
    bias, sink = bias_of(shape, "N", device, torch.bfloat16), torch.tensor([0.5, -1.0], device=device, dtype=torch.bfloat16)
    given = run(q, k, v, dout, bias=bias, sink=sink, scale=0.25)
    results = unrounded_attention(q, k, v, dout, None, 0.25, None, bias=bias, sink=sink)
    seen = dict(zip(given, results, strict=True))
    for name, x in given.items():
        assert seen[name].dtype == torch.float32
        assert torch.equal(seen[name].to(x.dtype), x), name
    assert unrounded_attention(q, k, v, dout, None, 0.25, None)[5:] == (None, None)


@pytest.mark.parametrize("sizes", [(1, 33), (1, 1), (20, 33), (20, 1), (4, 1, 33), (1, 4, 20, 33), (2, 1, 1, 1)])
def test_the_drop_in_for_torch_broadcasts_as_torch_does(sizes: tuple[int, ...], device: torch.device) -> None:
    q, k, v, dout = draw((2, 4, 4, 20, 33, 8), torch.float64, device)
    generator = torch.Generator().manual_seed(3)
    mask = torch.randn(sizes, generator=generator, dtype=torch.float64).to(device).requires_grad_()
    expected = attention(q, k, v, dout, bias=mask.detach().expand(2, 4, 20, 33))
    out = scaled_dot_product_attention(q, k, v, mask)
    assert expected.worst("out", out.detach()) <= 1.0
    (gradient,) = torch.autograd.grad(out, mask, dout)
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)
    (their_gradient,) = torch.autograd.grad(theirs, mask, dout)
    allowed = expected.allowed["dbias"].sum_to_size((1,) * (4 - len(sizes)) + sizes).reshape(sizes)
    assert ((gradient - their_gradient).abs() <= 2.0 * allowed).all()  # each is within it of the truth
