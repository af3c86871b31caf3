"""How dot products are summed: the models that a contract may state."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import torch

from flashverify.numerics.formats import FP32, Format

Number = TypeVar("Number", float, torch.Tensor)


@dataclass(frozen=True, slots=True)
class TensorCore:
    """A dot product in blocks of `block` products, aligned to the largest exponent, truncated, chained along K.

    Each step truncates its products and the accumulator to `extra_bits` bits below the accumulator's last one and truncates
    the sum: |error| <= ((products + 1) / 2^(extra_bits - 1) + 2) u a step, relative to the sum of magnitudes, where products
    that are 0 don't count (docs/numerics.md, lemma 2).
    Hopper: block 16 for fp16 and bf16 and 8 for tf32, 2 extra bits (Khattak and Mikaitis, arXiv 2512.07004).
    """

    block: int
    extra_bits: int

    @property
    def truncation(self) -> float:
        """Largest error of truncating one term of a step, in units of the accumulator's roundoff."""
        return 2.0 ** (1 - self.extra_bits)

    def kappa(self, length: int) -> float:
        """Error constant of a dot product of that length, in units of the accumulator's roundoff."""
        steps = -(-length // self.block)
        return length * self.truncation + steps * (self.truncation + 2.0)


@dataclass(frozen=True, slots=True)
class AnyOrder:
    """A dot product rounded to nearest at every multiplication or addition, in any order: kappa(K) = K (Higham, gamma_K)."""

    def kappa(self, length: int) -> float:
        """Error constant of a dot product of that length, in units of the accumulator's roundoff."""
        return float(length)


@dataclass(frozen=True, slots=True)
class SplitProducts:
    """float32 products made of products of shorter pieces on a tensor core, as Triton's "bf16x6" and "tf32x3" do.

    x = x_1 + x_2 + ..., each piece the rounding to `pieces` of what the ones before leave. Summed are the products x_i·y_j with
    i + j <= parts + 1: the smaller ones first, x_1·y_1 onto them; the accumulator is added to that. docs/numerics.md, lemma 2b.

    Attributes:
        core: the tensor core.
        pieces: format of the pieces.
        parts: pieces of an operand.
    """

    core: TensorCore
    pieces: Format
    parts: int

    def kappa(self, length: int) -> float:
        """Error constant of summing one product of pieces over that length, in units of the accumulator's roundoff."""
        return self.core.kappa(length)

    @property
    def _sizes(self) -> list[float]:
        """Largest sizes of the pieces before their rounding, relative to the operand: nearest leaves half a spacing."""
        precision = self.pieces.precision
        return [1.0, *(2.0 ** (1 - part * (precision + 1)) for part in range(1, self.parts))]

    @property
    def lost(self) -> float:
        """Largest part of a float32 operand that its pieces leave out; the last one may be truncated."""
        kept = self.parts * self.pieces.precision + max(self.parts - 2, 0)
        dropped = max(FP32.precision - 1 - kept, 0)
        return (2.0**dropped - 1.0) * 2.0 ** (1 - FP32.precision)

    @property
    def omission(self) -> float:
        """What the operands lose, and the products that are left out, relative to the sum of magnitudes."""
        return (1.0 + self.lost) ** 2 - 1.0 + sum(self._magnitudes(kept=False))

    def error(self, growth_small: Number, growth_large: Number) -> Number:
        """Error of one dot product relative to its sum of magnitudes.

        Args:
            growth_small: relative error of summing the smaller products.
            growth_large: relative error of summing the largest ones onto them.
        """
        largest, *smaller = self._magnitudes(kept=True)
        small = sum(smaller)
        return self.omission + growth_small * small + growth_large * (largest + small * (1.0 + growth_small))

    @property
    def sums(self) -> int:
        """How many sums of smaller products there are."""
        return len(self._magnitudes(kept=True)) - 1

    @property
    def smallest_operand(self) -> float:
        """From here on all pieces of a float32 number are normal numbers of their format, or 0."""
        return self.pieces.smallest_normal * 2.0**FP32.precision

    def _magnitudes(self, kept: bool) -> list[float]:
        """Sizes of the products of pieces that are summed, or left out, the largest first."""
        rounding = (1.0 + self.pieces.unit_roundoff) ** 2
        pairs = product(range(self.parts), repeat=2)
        return [rounding * self._sizes[i] * self._sizes[j] for i, j in pairs if (i + j < self.parts) == kept]


Dot = TensorCore | SplitProducts | AnyOrder
