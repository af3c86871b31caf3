"""How far the model's predicted deviations are from those of faultless kernels: measured, not derived.

The model is no theorem: it takes roundings for independent, sums for random walks, and orders of summation for the usual
ones. What it predicts was compared with what kernels do (docs/numerics.md, section 15), and the range that an rms score may
lie in is taken from there. Sampling noise comes on top, from each tensor's own rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from flashverify.numerics.contract import Contract


@dataclass(frozen=True, slots=True)
class ModelAccuracy:
    """The range of rms(z) of faultless kernels, sampling noise apart."""

    smallest: float
    largest: float


ROUNDED = ModelAccuracy(smallest=0.94, largest=1.06)
"""Where P and dS are rounded to a 16-bit format: those roundings dominate, and the model knows them."""

UNROUNDED = ModelAccuracy(smallest=0.0, largest=1.10)
"""Where nothing is rounded below the accumulator: errors depend on the order of sums, which may be better than modelled."""


def accuracy_of_model(tensor: str, contract: Contract) -> ModelAccuracy:
    """The range that holds for one tensor of a kernel."""
    if tensor == "lse" or contract.probability is None or contract.score_gradient is None:
        return UNROUNDED
    return ROUNDED
