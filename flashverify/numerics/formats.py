"""Binary floating-point formats: unit roundoff, ulp, range, and exact conversions."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Format:
    """A binary floating-point format (IEEE 754-2019, section 3.3).

    Attributes:
        name: short name.
        precision: significand bits p, the hidden bit included.
        emin: exponent of the smallest normal number, 2^emin.
        emax: exponent of the largest numbers, below 2^(emax + 1).
    """

    name: str
    precision: int
    emin: int
    emax: int

    @property
    def unit_roundoff(self) -> float:
        """Largest relative error of a rounding to nearest in the normal range, 2^-p."""
        return 2.0**-self.precision

    @property
    def smallest_normal(self) -> float:
        """2^emin."""
        return 2.0**self.emin

    @property
    def smallest_subnormal(self) -> float:
        """The spacing of the format's numbers below 2^emin."""
        return 2.0 ** (self.emin - self.precision + 1)

    @property
    def largest(self) -> float:
        """The largest finite number."""
        return (2.0 - 2.0 ** (1 - self.precision)) * 2.0**self.emax

    def ulp(self, x: torch.Tensor) -> torch.Tensor:
        """Spacing of the format's numbers at |x|: 2^(floor(log2 |x|) - p + 1), at least the subnormal spacing.

        Args:
            x: float64 tensor of finite values.

        Returns:
            float64 tensor of the same shape.
        """
        _, exponent = torch.frexp(x.abs())
        exponent = torch.where(x == 0, self.emin, exponent)  # frexp(0) says 0
        return torch.ldexp(torch.ones_like(x), exponent.clamp(min=self.emin + 1) - self.precision)


FP16 = Format("fp16", precision=11, emin=-14, emax=15)
BF16 = Format("bf16", precision=8, emin=-126, emax=127)
TF32 = Format("tf32", precision=11, emin=-126, emax=127)
FP32 = Format("fp32", precision=24, emin=-126, emax=127)
FP64 = Format("fp64", precision=53, emin=-1022, emax=1023)

FORMATS = {f.name: f for f in (FP16, BF16, FP32, FP64)}
"""The formats that a case can have, by the short name of its dtype."""

TORCH_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
"""torch's dtype of each format that tensors can have."""

EVALUATION_UNIT = 2.0**-52
"""An upper bound of the relative error of one float64 operation of a budget's own evaluation."""
