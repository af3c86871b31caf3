"""Exact roundings in float64, on any device: what a primitive's result is compared with. No function here rounds by itself."""

from __future__ import annotations

from typing import Literal

import torch

from flashverify.numerics.formats import Format

Mode = Literal["nearest even", "nearest away", "truncated"]
MODES: tuple[Mode, ...] = ("nearest even", "nearest away", "truncated")

_BIAS, _FRACTION_BITS = 1023, 52


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """2^exponent as float64, by its bits: exact on every device.

    Args:
        exponent: integer tensor, from -1022 to 1023.
    """
    return ((exponent.to(torch.int64) + _BIAS) << _FRACTION_BITS).view(torch.float64)


def exponent_of(x: torch.Tensor, smallest: int) -> torch.Tensor:
    """floor(log2 |x|) of a float64 tensor as int64, at least `smallest`; `smallest` for 0."""
    _, exponent = torch.frexp(x)
    return torch.where(x == 0, smallest, exponent.to(torch.int64) - 1).clamp(min=smallest)


def round_to(x: torch.Tensor, target: Format, mode: Mode) -> torch.Tensor:
    """Values rounded to a format, with gradual underflow (IEEE 754-2019, section 4.3).

    Args:
        x: float64 tensor whose values have 29 significant bits less than float64 at most, as all float32 values do; NaN and
            infinities stay what they are.
        target: the format.
        mode: ties to even, ties away from zero, or toward zero.

    Returns:
        float64 tensor; what is too large becomes an infinity, or the largest number if truncated.
    """
    finite = torch.where(torch.isfinite(x), x, 0.0)
    spacing = power_of_two(exponent_of(finite, target.emin) - target.precision + 1)
    scaled = finite / spacing
    if mode == "nearest even":
        scaled = torch.round(scaled)
    elif mode == "nearest away":
        scaled = torch.copysign(torch.floor(scaled.abs() + 0.5), scaled)
    else:
        scaled = torch.trunc(scaled)
    rounded = scaled * spacing
    beyond = torch.full_like(x, target.largest if mode == "truncated" else torch.inf)
    rounded = torch.where(rounded.abs() > target.largest, torch.copysign(beyond, x), rounded)
    return torch.where(torch.isfinite(x), rounded, x)


def truncate_to_fp32(x: torch.Tensor) -> torch.Tensor:
    """Finite float64 values truncated toward zero to float32 values."""
    nearest = x.float()
    return torch.where(nearest.double().abs() > x.abs(), torch.nextafter(nearest, torch.zeros_like(nearest)), nearest)


def fused_multiply_add(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """a·b + c of finite float32 tensors, rounded once, to nearest even.

    The product is exact in float64; the sum is rounded to odd there, so that rounding it to float32 is as good as rounding the
    exact sum (Boldo and Melquiond, Emulation of FMA and correctly rounded sums, IEEE Transactions on Computers 57, 2008).
    """
    product, addend = a.double() * b.double(), c.double()
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)  # Knuth's TwoSum: total + error is exact
    bits = total.view(torch.int64)
    toward_zero = (error > 0) != (total > 0)  # the exact sum is smaller in magnitude than total
    odd = torch.where(toward_zero, bits - 1, bits) | 1
    return torch.where((error == 0) | (total == 0), bits, odd).view(torch.float64).float()
