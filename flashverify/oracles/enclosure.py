"""Enclosures: float64 midpoints and radii that provably hold the exact values, and their making from Arb balls."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from flint import arb

from flashverify.cases.tensors import Outputs
from flashverify.numerics.formats import FP64

GUARD_BITS = 20
"""A ball is sharp if its radius is at most 2^-20 roundoffs of float64: the rounding of the midpoint dominates then."""

SHARP_BITS = FP64.precision + GUARD_BITS

# A radius below this is lost in the smallest step of float64 numbers, whatever the value.
_NEGLIGIBLE = arb(2) ** (FP64.emin - FP64.precision + 1 - GUARD_BITS)


@dataclass(frozen=True, slots=True)
class EnclosedTensor:
    """A tensor that is known to within a proven radius: |exact - mid| <= radius, elementwise.

    Attributes:
        mid: float64. -inf (radius 0) for the lse of a row without keys; NaN (radius inf) where inputs are not finite.
        radius: float64, >= 0, the rounding of mid included; inf where the exact value is beyond float64's range.
    """

    mid: torch.Tensor
    radius: torch.Tensor


@dataclass(frozen=True, slots=True)
class Enclosure:
    """All outputs of a case, each known to within a proven radius: |exact - mid| <= radius, elementwise.

    Attributes:
        mid: float64 midpoints.
        radius: float64 radii, as in `EnclosedTensor`.
    """

    mid: Outputs
    radius: Outputs


def enclose(value: Any) -> tuple[float, float]:
    """The float64 next to a ball's midpoint, and a radius about it that holds the whole ball.

    The distance from that float64 is computed in ball arithmetic, its upper bound is exact, and its own rounding to
    float64 is raised to the next number where it fell short: nothing is assumed of a rounding mode.

    Args:
        value: an `arb`.

    Returns:
        (mid, radius), both float64.
    """
    if not value.is_finite():
        return (-math.inf, 0.0) if value == arb.neg_inf() else (math.nan, math.inf)
    mid = float(value)
    if math.isinf(mid):
        mid = math.copysign(sys.float_info.max, mid)
    distance = (value - arb(mid)).abs_upper()
    radius = float(distance)
    if arb(radius) < distance:
        radius = math.nextafter(radius, math.inf)
    return mid, radius


def is_sharp(value: Any, terms: Any) -> bool:
    """Whether more precision would change nothing that float64 could show.

    A ball about a value far from zero is sharp relative to that value. One that contains zero (complete cancellation,
    which no precision resolves) is sharp relative to the terms that cancelled.

    Args:
        value: an `arb`.
        terms: an `arb`, upper bound of the magnitude of the sum's terms.
    """
    if value.rel_accuracy_bits() >= SHARP_BITS or value == arb.neg_inf():
        return True
    if not value.is_finite():
        return False
    radius = value.rad()
    return bool(radius <= _NEGLIGIBLE or (value.contains(0) and radius <= terms * arb(2) ** -SHARP_BITS))


def enclosed_tensor(values: Iterable[Any], shape: tuple[int, ...]) -> EnclosedTensor:
    """Balls, in row-major order, as float64 tensors of that shape on the CPU."""
    pairs = [enclose(value) for value in values]
    tensor = torch.tensor(pairs, dtype=torch.float64).reshape(*shape, 2)
    return EnclosedTensor(tensor[..., 0].contiguous(), tensor[..., 1].contiguous())
