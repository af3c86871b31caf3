"""The kernels' building blocks: the emulation of bfloat16 over all its patterns, and the scale's bits."""

from __future__ import annotations

import math

import pytest
import torch
import triton
import triton.language as tl
from flashverify_kernels.launch import scale_bits
from flashverify_kernels.primitives import as_operand, bf16_to_fp32, fp32_to_bf16_bits, unpack_scale

BLOCK = 8192


@triton.jit
def _widen_kernel(source, target, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + places, bf16_to_fp32(tl.load(source + places)))


@triton.jit
def _round_kernel(source, bits, operand, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(source + places)
    tl.store(bits + places, fp32_to_bf16_bits(x).to(tl.int32))
    tl.store(operand + places, as_operand(x, tl.bfloat16, True))


@triton.jit(do_not_specialize=["bits"])
def _scale_kernel(bits, target, ACCUMULATOR: tl.constexpr):
    sign, magnitude, exponent_scale = unpack_scale(bits, ACCUMULATOR)
    tl.store(target, sign)
    tl.store(target + 1, magnitude)
    tl.store(target + 2, exponent_scale)


def test_widening_is_exact_for_every_pattern(device: torch.device) -> None:
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32, device=device)
    source = patterns.to(torch.int16).view(torch.bfloat16)
    target = torch.empty(2**16, device=device)
    _widen_kernel[(2**16 // BLOCK,)](source, target, BLOCK=BLOCK)
    assert torch.equal(target.view(torch.int32), patterns << 16)
    number = ~source.isnan()
    assert torch.equal(target[number], source.float()[number])


def _float32_patterns() -> torch.Tensor:
    """Every bfloat16 with lower halves that truncate, tie and round up, and random patterns: int32."""
    upper = torch.arange(-(2**15), 2**15, dtype=torch.int64) << 16
    lower = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    generator = torch.Generator().manual_seed(7)
    anything = torch.randint(-(2**31), 2**31, (2**16,), generator=generator)
    return torch.cat([(upper[:, None] + lower).flatten(), anything]).to(torch.int32)


def test_rounding_is_to_nearest_even(device: torch.device) -> None:
    patterns = _float32_patterns().to(device)
    source = patterns.view(torch.float32)
    bits, operand = torch.empty_like(patterns), torch.empty_like(source)
    _round_kernel[(patterns.numel() // BLOCK,)](source, bits, operand, BLOCK=BLOCK)
    rounded = bits.to(torch.int16).view(torch.bfloat16)
    expected = source.to(torch.bfloat16)
    number = ~source.isnan()
    assert torch.equal(rounded.isnan(), ~number)
    assert torch.equal(rounded.view(torch.int16)[number], expected.view(torch.int16)[number])
    assert torch.equal(operand.isnan(), ~number)
    assert torch.equal(operand.view(torch.int32)[number], expected.float().view(torch.int32)[number])


def test_rounding_by_hand(device: torch.device) -> None:
    """Ties, the first overflow, subnormals and signed zeros, worked out rather than compared with torch."""
    largest = torch.finfo(torch.bfloat16).max
    cases = {
        1.0 + 2.0**-8: 1.0,
        1.0 + 3 * 2.0**-8: 1.0 + 2.0**-6,
        1.0 + 2.0**-8 + 2.0**-23: 1.0 + 2.0**-7,
        -(1.0 + 2.0**-8): -1.0,
        largest: largest,
        (2.0 - 2.0**-8) * 2.0**127: math.inf,
        (2.0 - 2.0**-8 - 2.0**-23) * 2.0**127: largest,
        2.0**-133: 2.0**-133,
        2.0**-134: 0.0,
        3 * 2.0**-134: 2.0**-132,
        -(2.0**-140): -0.0,
        -math.inf: -math.inf,
    }
    source = torch.zeros(BLOCK, device=device)
    source[: len(cases)] = torch.tensor(list(cases), device=device)
    bits, operand = torch.empty(BLOCK, dtype=torch.int32, device=device), torch.empty_like(source)
    _round_kernel[(1,)](source, bits, operand, BLOCK=BLOCK)
    expected = torch.tensor(list(cases.values()), device=device)
    assert torch.equal(operand[: len(cases)].view(torch.int32), expected.view(torch.int32))


SCALES = [1.0, -1.0, 0.0, -0.0, 1 / 3, -1 / 3, math.pi, 2.0**-1022, -1.7e308 / 2, 1e-300, 1.0 + 2.0**-52, 2.0**-1000]


@pytest.mark.parametrize("scale", SCALES)
def test_the_scale_arrives_unrounded(scale: float, device: torch.device) -> None:
    target = torch.empty(3, dtype=torch.float64, device=device)
    _scale_kernel[(1,)](scale_bits(scale), target, ACCUMULATOR=tl.float64)
    sign, magnitude, exponent_scale = target.tolist()
    assert sign * magnitude == scale
    assert magnitude > 0.0
    assert exponent_scale == magnitude * math.log2(math.e)


@pytest.mark.parametrize("scale", [1 / 3, -math.pi, 0.0, 1e30, 1e-37])
def test_the_scale_is_rounded_once_to_single(scale: float, device: torch.device) -> None:
    """Its product with log2(e) too: formed in float64 and rounded, not formed of rounded factors."""
    target = torch.empty(3, dtype=torch.float32, device=device)
    _scale_kernel[(1,)](scale_bits(scale), target, ACCUMULATOR=tl.float32)
    magnitude = abs(scale) or 1.0
    expected = torch.tensor([magnitude, magnitude * math.log2(math.e)], dtype=torch.float64).float()
    assert target[0].item() == (scale > 0) - (scale < 0)
    assert torch.equal(target[1:].cpu(), expected)


@pytest.mark.parametrize("scale", SCALES)
def test_bits_of_the_scale(scale: float) -> None:
    bits = scale_bits(scale)
    assert -(2**63) <= bits < 2**63
    back = torch.tensor([bits], dtype=torch.int64).view(torch.float64).item()
    assert math.copysign(1.0, back) == math.copysign(1.0, scale)
    assert back == scale
