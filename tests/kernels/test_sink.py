"""Sinks: one more logit for each head's denominators, without a value, and its gradient."""

from __future__ import annotations

import math

import pytest
import torch
from flashverify_kernels import TileConfig, Tiles
from flashverify_kernels.ops import attention as operator

from tests.kernels.reference import attention
from tests.kernels.support import DTYPES, differing, draw, run
from tests.kernels.test_bias import SHAPES, bias_of, check, options_of


def sinks(heads: int, device: torch.device, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Below, among and above the logits."""
    return torch.linspace(-3.0, 4.0, heads, dtype=torch.float64).to(device, dtype)


@pytest.mark.parametrize("bias", [None, "", "BN"])
@pytest.mark.parametrize("name", SHAPES)
def test_float64_kernels_compute_the_definition(name: str, bias: str | None, device: torch.device) -> None:
    shape, options, value_dim = options_of(name, device)
    options["bias"] = None if bias is None else bias_of(shape, bias, device)
    check(draw(shape, torch.float64, device, value_dim=value_dim), sink=sinks(shape[1], device), **options)


@pytest.mark.parametrize("tile", [TileConfig(16, 32), TileConfig(32, 16)])
def test_any_tile_gives_the_same_function(tile: TileConfig, device: torch.device) -> None:
    """Rows from 300 on take dsink's kernel another step."""
    tiles = Tiles(tile, tile, tile)
    check(draw((1, 2, 1, 300, 20, 8), torch.float64, device), tiles=tiles, sink=sinks(2, device), causal_offset=11)


@pytest.mark.parametrize("size", [-1e6, 1e6, 1e300])
def test_sinks_of_any_size(size: float, device: torch.device) -> None:
    """A sink far above all logits takes all weight, one far below none, and lse is the larger one."""
    q, k, v, dout = draw((1, 2, 1, 20, 33, 8), torch.float64, device)
    sink = torch.full((2,), size, dtype=torch.float64, device=device)
    results, without = run(q, k, v, dout, sink=sink), run(q, k, v, dout)
    if size < 0:
        assert not results.pop("dsink").any()
        assert not differing(results, without)
    else:
        assert torch.equal(results["lse"], sink[:, None].expand(1, 2, 20))
        assert not any(results[name].any() for name in ("out", "dq", "dk", "dv", "dsink"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [None, -25])
def test_minus_infinity_is_no_sink(dtype: torch.dtype, offset: int | None, device: torch.device) -> None:
    """Its gradient is 0; with the offset there are rows that see no key."""
    inputs = draw((1, 2, 1, 40, 33, 8), dtype, device)
    sink = torch.full((2,), -math.inf, dtype=dtype, device=device)
    results = run(*inputs, causal_offset=offset, sink=sink)
    assert not results.pop("dsink").any()
    assert not differing(results, run(*inputs, causal_offset=offset))


@pytest.mark.parametrize("hides", ["causal", "bias", "no keys"])
@pytest.mark.parametrize("scale", [0.3, -0.7])
def test_a_row_that_sees_no_key_has_the_sink_as_its_lse(hides: str, scale: float, device: torch.device) -> None:
    shape = (1, 2, 1, 20, 0 if hides == "no keys" else 17, 4)
    inputs, sink = draw(shape, torch.float32, device), sinks(2, device, torch.float32)
    options: dict[str, object] = {"scale": scale, "sink": sink}
    if hides == "causal":
        options["causal_offset"] = -20
    if hides == "bias":
        options["bias"] = torch.full((1, 1, 20, 17), -math.inf, device=device)
    results = run(*inputs, inputs[3][..., 0].contiguous(), **options)
    assert torch.equal(results["lse"], sink[:, None].expand(1, 2, 20))
    assert not any(results[name].any() for name in ("out", "dq", "dk", "dv"))
    # Such a row's lse is the sink, and dlse all that reaches it: within the sum's 20 roundings and those of its terms.
    expected = inputs[3][..., 0].sum((0, 2))
    allowed = 32 * torch.finfo(torch.float32).eps * inputs[3][..., 0].abs().sum((0, 2))
    assert ((results["dsink"] - expected).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("long", [False, True])
def test_shorter_formats_are_near(dtype: torch.dtype, long: bool, device: torch.device) -> None:
    """Within 2^6 roundings of the largest element, with sinks of q's dtype or of lse's."""
    inputs, sink = draw((1, 2, 1, 40, 45, 16), dtype, device), sinks(2, device, torch.float32 if long else dtype)
    expected, results = attention(*inputs, causal_offset=5, sink=sink), run(*inputs, causal_offset=5, sink=sink)
    assert results["dsink"].dtype == sink.dtype
    for name, x in results.items():
        true = expected.values[name]
        assert (x.double() - true).abs().max() <= 2**6 * torch.finfo(dtype).eps * true.abs().max(), name


def test_sinks_may_lie_anyhow(device: torch.device) -> None:
    inputs, sink = draw((2, 4, 2, 20, 33, 8), torch.float32, device), sinks(4, device, torch.float32)
    apart = torch.zeros(4, 3, device=device)[:, 1].copy_(sink)
    assert not differing(run(*inputs, sink=apart), run(*inputs, sink=sink))


def test_a_sink_is_no_detail(device: torch.device) -> None:
    """The comparison above sees sinks that are left out, or of other heads, or a 2^-30th off."""
    inputs, sink = draw((1, 2, 2, 20, 20, 16), torch.float64, device), sinks(2, device)
    expected = attention(*inputs, sink=sink)
    for wrong in (torch.full_like(sink, -math.inf), sink.flip(0), sink * (1.0 + 2.0**-30)):
        results = run(*inputs, sink=wrong)
        assert min(expected.worst(name, x) for name, x in results.items()) > 1.0


def test_runs_repeat_bit_for_bit(device: torch.device) -> None:
    inputs, sink = draw((2, 2, 1, 40, 45, 16), torch.bfloat16, device), sinks(2, device, torch.bfloat16)
    assert not differing(run(*inputs, sink=sink), run(*inputs, sink=sink))


def test_opcheck(device: torch.device) -> None:
    leaves = [x.requires_grad_() for x in draw((1, 2, 1, 3, 4, 4), torch.float32, device)[:3]]
    sink = sinks(2, device, torch.float32).requires_grad_()
    torch.library.opcheck(operator, (*leaves, 0.5, None, None, None, sink, 1, None, "ieee", None))
