"""Soft caps: what the kernels' tanh and its derivative err, against lemmas 11 and 12, and what budgets make of it."""

from __future__ import annotations

import flint
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from flashverify_kernels.launch import storage_of
from flashverify_kernels.primitives import tanh_and_slope

from flashverify.adapters.triton import TritonKernel
from flashverify.cases.case import AttentionCase
from flashverify.numerics.coefficients import Coefficients

BLOCK = 1024
KINDS = (torch.float32, torch.float64)


@triton.jit
def evaluate(x_ptr, tanh_ptr, slope_ptr, BLOCK: tl.constexpr, ACCUMULATOR: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tanh, slope = tanh_and_slope(tl.load(x_ptr + offsets), ACCUMULATOR)
    tl.store(tanh_ptr + offsets, tanh)
    tl.store(slope_ptr + offsets, slope)


def evaluated(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    tanh, slope = torch.empty_like(x), torch.empty_like(x)
    evaluate[(x.numel() // BLOCK,)](x, tanh, slope, BLOCK=BLOCK, ACCUMULATOR=storage_of(x.dtype))
    return tanh, slope


def arguments(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Every binade from 2^-30 to 2^7, denser about 1/2, where the two ways meet, and in both signs."""
    generator = torch.Generator().manual_seed(0)
    fractions = 1.0 + torch.rand(38, 96, generator=generator, dtype=torch.float64)
    binades = torch.ldexp(fractions, torch.arange(-30, 8)[:, None]).flatten()
    steps = torch.arange(-256, 240, dtype=torch.float64)
    meeting = 0.5 * (1.0 + steps * torch.finfo(dtype).eps)
    return torch.cat([binades, -binades[:1024], meeting, -binades[-1024:]])[: 6 * BLOCK].to(dtype).to(device)


def exact(x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """tanh and sech², rounded once to float64 from balls of 128 bits."""
    with flint.ctx.workprec(128):
        tanh = [float(flint.arb(value).tanh()) for value in x.double().tolist()]
        slope = [float(flint.arb(value).sech() * flint.arb(value).sech()) for value in x.double().tolist()]
    return np.array(tanh), np.array(slope)


def contract_of(dtype: torch.dtype, device: torch.device):
    kind = {torch.float32: "fp32", torch.float64: "fp64"}[dtype]
    case = AttentionCase(dtype=kind, seqlen_q=16, seqlen_k=16, head_dim=16, softcap=2.0)
    return TritonKernel(device).contract(case)


@pytest.mark.parametrize("dtype", KINDS)
def test_tanh_and_its_slope_keep_the_lemmas(dtype: torch.dtype, device: torch.device) -> None:
    x = arguments(dtype, device)
    assert x.numel() % BLOCK == 0
    coefficients = Coefficients(contract_of(dtype, device))
    tanh, slope = (y.cpu().double().numpy() for y in evaluated(x))
    true_tanh, true_slope = exact(x.cpu())
    tiny, once = coefficients.tiny, 2.0**-53  # the truth's own rounding
    assert (np.abs(tanh - true_tanh) <= (coefficients.tanh + once) * np.abs(true_tanh) + tiny).all()
    allowed = np.expm1(coefficients.sech + 6.2 * coefficients.unit * np.abs(x.cpu().double().numpy())) + once
    assert (np.abs(slope - true_slope) <= allowed * true_slope + 4.0 * tiny).all()


@pytest.mark.parametrize("dtype", KINDS)
def test_the_lemmas_see_the_plain_formulas(dtype: torch.dtype, device: torch.device) -> None:
    """1 - 2 / (exp(2x) + 1) cancels for small x, and 1 - t² for large ones: each is beyond the bounds."""
    x = arguments(dtype, device).cpu()
    coefficients = Coefficients(contract_of(dtype, device))
    true_tanh, true_slope = (torch.from_numpy(y) for y in exact(x))
    plain = (1.0 - 2.0 / ((2.0 * x).exp() + 1.0)).double()
    assert ((plain - true_tanh).abs() > 1e3 * coefficients.tanh * true_tanh.abs())[x.abs() < 2.0**-12].any()
    cancelled = (1.0 - torch.tanh(x).square()).double()
    allowed = torch.expm1(coefficients.sech + 6.2 * coefficients.unit * x.abs().double()) * true_slope
    assert ((cancelled - true_slope).abs() > 1e2 * allowed + 4.0 * coefficients.tiny).any()


def test_special_arguments(device: torch.device) -> None:
    x = torch.zeros(BLOCK, device=device)
    x[:5] = torch.tensor([float("inf"), -float("inf"), float("nan"), 1e30, -1e-38])
    tanh, slope = evaluated(x)
    assert tanh[:5].tolist()[:2] == [1.0, -1.0]
    assert tanh[2].isnan()
    assert slope[2].isnan()
    assert (tanh[3], slope[3]) == (1.0, 0.0)
    assert abs(float(tanh[4])) <= 1.001e-38
    assert slope[:2].tolist() == [0.0, 0.0]
    assert torch.equal(tanh[5:], torch.zeros_like(tanh[5:]))
    assert torch.equal(slope[5:], torch.ones_like(slope[5:]))
