"""What one step of the measurement hands over, and how errors and inputs are counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from flashverify.numerics.axioms.arithmetic import Observation
from flashverify.numerics.axioms.primitives import Primitives
from flashverify.numerics.formats import FP32, FP64

REFERENCE_ULPS = 2.0 ** (FP32.precision - FP64.precision)
"""Error of a float64 reference that errs by one ulp of its own, in ulps of float32."""

CHUNK = 2**24
"""Inputs at a time: a few hundred MB of float64."""

SIGN = 1 << 31


@dataclass(frozen=True, slots=True)
class Finding:
    """Fields of `Arithmetic`, and lines of its table."""

    fields: dict[str, object] = field(default_factory=dict)
    observations: tuple[Observation, ...] = ()


Step = Callable[[Primitives], Finding]


class Errors:
    """Statistics of errors, in one unit: the largest, the mean with its sign, the root mean square."""

    def __init__(self) -> None:
        self.count = 0
        self.largest = 0.0
        self._sum = 0.0
        self._squares = 0.0

    def add(self, errors: torch.Tensor) -> None:
        """Count a float64 tensor of signed errors; NaN and infinities make the largest error infinite."""
        if errors.numel() == 0:
            return
        largest = float(errors.abs().max())
        self.largest = max(self.largest, largest if math.isfinite(largest) else math.inf)
        self.count += errors.numel()
        self._sum += float(errors.sum())
        self._squares += float(errors.square().sum())

    def merge(self, other: Errors) -> None:
        """Count what another counted, too."""
        self.largest = max(self.largest, other.largest)
        self.count += other.count
        self._sum += other._sum
        self._squares += other._squares

    @property
    def mean(self) -> float:
        """Mean signed error, NaN if nothing was counted."""
        return self._sum / self.count if self.count else math.nan

    @property
    def rms(self) -> float:
        """Root mean square error, NaN if nothing was counted."""
        return math.sqrt(self._squares / self.count) if self.count else math.nan


def is_complete(primitives: Primitives) -> bool:
    """Whether all inputs are tried: on a GPU they are, in the interpreter a systematic sample is."""
    return primitives.lane == "gpu"


def float32_patterns(first: int, last: int, sample: int, primitives: Primitives) -> Iterator[torch.Tensor]:
    """The float32 numbers whose bits lie from `first` to `last`, in chunks: all on a GPU, else `sample` evenly spaced ones."""
    step = 1 if is_complete(primitives) else max(1, (last - first) // sample) | 1
    for start in range(first, last + 1, CHUNK * step):
        end = min(last + 1, start + CHUNK * step)
        yield as_float32(torch.arange(start, end, step, dtype=torch.int64, device=primitives.device))


def as_float32(bits: torch.Tensor) -> torch.Tensor:
    """float32 numbers from their bits, int64 from 0 to 2^32 - 1."""
    return torch.where(bits >= SIGN, bits - 2 * SIGN, bits).to(torch.int32).view(torch.float32)


def bits_of(x: float) -> int:
    """The bits of a float32 number, from 0 to 2^32 - 1."""
    return int(torch.tensor(x, dtype=torch.float32).view(torch.int32)) % (2 * SIGN)


def figure(x: float) -> str:
    """A number as tables show it."""
    return f"{x:.4g}"
