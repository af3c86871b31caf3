"""Rotary embedding: every pair of columns is turned by the angles of its position, and rounded once."""

from __future__ import annotations

import math

import pytest
import torch
from flashverify_kernels.rotary import rotate

from tests.kernels.cache_reference import turned_queries
from tests.kernels.cache_support import DTYPES, angles, bits, rotary_allowed

LENGTHS = [0, 3, 11]


def draw(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device, dtype)


def run(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, advance: bool = True, interleaved: bool = True
) -> torch.Tensor:
    out = torch.full_like(x, math.nan)
    lengths = torch.tensor(LENGTHS, dtype=torch.int32, device=x.device)
    rotate(x, out, cos, sin, lengths, 0, 64, advance, interleaved)
    return out


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("advance", [False, True])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(16, 16), (40, 32), (24, 16), (64, 64)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_are_turned_by_the_angles_of_their_position(
    dtype: torch.dtype, head_dim: int, rotary_dim: int, advance: bool, interleaved: bool, device: torch.device
) -> None:
    x = draw(3, 7, 3, head_dim, dtype=dtype, device=device)
    cos, sin = angles(20, rotary_dim, dtype, device)
    exact = turned_queries(x.cpu(), LENGTHS, cos.cpu(), sin.cpu(), advance, interleaved)
    out = run(x, cos, sin, advance=advance, interleaved=interleaved)
    allowed = rotary_allowed(exact, dtype, x.abs().max().item())
    assert ((out.cpu().double() - exact).abs() <= allowed).all()
    assert torch.equal(bits(out[..., rotary_dim:]), bits(x[..., rotary_dim:]))


def test_angles_may_be_finer_than_rows(device: torch.device) -> None:
    x = draw(3, 2, 1, 16, dtype=torch.bfloat16, device=device)
    cos, sin = angles(20, 16, torch.float32, device)
    exact = turned_queries(x.cpu(), LENGTHS, cos.cpu(), sin.cpu(), True, True)
    assert ((run(x, cos, sin).cpu().double() - exact).abs() <= rotary_allowed(exact, x.dtype, x.abs().max().item())).all()


def test_any_strides(device: torch.device) -> None:
    x = draw(3, 5, 2, 32, dtype=torch.float32, device=device)
    cos, sin = angles(20, 16, torch.float32, device)
    want = run(x, cos, sin)
    apart = x.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)
    assert torch.equal(run(apart, cos.T.contiguous().T, torch.stack([sin, sin], 2)[..., 0]), want)


def test_the_two_pairings_differ_and_position_0_turns_nothing(device: torch.device) -> None:
    x = draw(3, 1, 1, 16, dtype=torch.float64, device=device)
    cos, sin = angles(20, 16, torch.float64, device)
    neighbours, halves = run(x, cos, sin), run(x, cos, sin, interleaved=False)
    assert torch.equal(neighbours[0], x[0])
    assert torch.equal(halves[0], x[0])
    assert not torch.equal(neighbours[1:], halves[1:])


def test_a_position_beyond_the_table_is_nan_and_not_read(device: torch.device) -> None:
    x = draw(3, 2, 1, 24, dtype=torch.float32, device=device)
    cos, sin = angles(12, 16, torch.float32, device)
    out = run(x, cos, sin)
    assert out[:2].isfinite().all()
    assert out[2, 0].isfinite().all()
    assert out[2, 1, :, :16].isnan().all()
    assert torch.equal(out[2, 1, :, 16:], x[2, 1, :, 16:])
