"""An emulator of tensor cores, and the search for the model that a device's results fit, bit for bit.

One step takes n products and, if chained, the running sum c. Products are exact. Every term is aligned to the largest
exponent E among them (of a product: the sum of its operands' exponents, whatever the product's own size), and truncated to a
multiple of 2^(E - 23 - extra). The terms are summed exactly, and the sum becomes a float32, truncated or rounded to nearest.
Steps follow each other along K. After Fasi, Higham, Mikaitis and Pranesh (PeerJ Computer Science 7, e330, 2021) and Khattak
and Mikaitis (arXiv 2512.07004).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from flashverify.numerics.axioms.arithmetic import BlockModel, Chaining, Rounding
from flashverify.numerics.axioms.rounding import exponent_of, power_of_two, truncate_to_fp32
from flashverify.numerics.formats import FP32, Format

MODELS = tuple(
    BlockModel(block, extra_bits, rounding, chaining)
    for chaining in get_args(Chaining)
    for rounding in get_args(Rounding)
    for block in (4, 8, 16, 32)
    for extra_bits in (0, 1, 2, 3)
)
"""Every model that is tried."""

Subnormals = Literal["as they are", "normalised", "flushed"]

_NO_TERM = -1000
"""Below every exponent that a term can have: bfloat16's smallest products have -266."""


@dataclass(frozen=True, slots=True)
class Treatment:
    """What a step does with operands that are 0 or subnormal.

    Attributes:
        zeros_align: whether a product that is 0 counts when the largest exponent is sought.
        subnormals: the exponent of a subnormal operand: "as they are" that of its field (the format's smallest),
            "normalised" that of its value, "flushed" none, since it is taken as 0.
    """

    zeros_align: bool = False
    subnormals: Subnormals = "as they are"


@dataclass(frozen=True, slots=True)
class Probe:
    """Matrices that a device multiplied, with its results.

    Attributes:
        left: operands (G, M, K), in float64.
        right: operands (G, K, N), in float64.
        accumulator: float32 (G, M, N), or None where none was passed in.
        result: float32 (G, M, N).
    """

    left: torch.Tensor
    right: torch.Tensor
    accumulator: torch.Tensor | None
    result: torch.Tensor

    def wrong(self, model: BlockModel, operand: Format, treatment: Treatment | None = None) -> int:
        """How many results differ from the emulator's."""
        emulated = emulate(self.left, self.right, self.accumulator, model, operand, treatment or Treatment())
        return int((emulated != self.result).sum())


@dataclass(frozen=True, slots=True)
class Search:
    """What a search over models found.

    Attributes:
        fitting: models that give every result, bit for bit.
        nearest: of the others, the one with the fewest wrong results, or None if every model fits.
        nearest_wrong: how many of its results are wrong, of `sample`.
        sample: results of the first probe, on which every model was tried.
        results: results of all probes, on which the fitting models were tried.
    """

    fitting: tuple[BlockModel, ...]
    nearest: BlockModel | None
    nearest_wrong: int
    sample: int
    results: int


def emulate(
    left: torch.Tensor,
    right: torch.Tensor,
    accumulator: torch.Tensor | None,
    model: BlockModel,
    operand: Format,
    treatment: Treatment | None = None,
) -> torch.Tensor:
    """The product of matrices as a tensor core of that model computes it.

    Args:
        left: float64 (G, M, K), values of the format `operand`.
        right: float64 (G, K, N), values of the format `operand`.
        accumulator: float32 (G, M, N), or None for zeros.
        model: the model.
        operand: format of the operands.
        treatment: what it does with zeros and subnormal operands.

    Returns:
        float32 (G, M, N).
    """
    treatment = treatment or Treatment()
    smallest = operand.emin if treatment.subnormals == "as they are" else operand.emin - operand.precision
    if treatment.subnormals == "flushed":
        left, right = (torch.where(x.abs() < operand.smallest_normal, 0.0, x) for x in (left, right))
    columns = right.mT
    exponents_left, exponents_right = exponent_of(left, smallest), exponent_of(columns, smallest)
    shape = (*left.shape[:2], right.shape[2])
    total = torch.zeros(shape, dtype=torch.float32, device=left.device) if accumulator is None else accumulator
    for start in range(0, left.shape[2], model.block):
        part = slice(start, start + model.block)
        terms = left[:, :, None, part] * columns[:, None, :, part]
        exponents = exponents_left[:, :, None, part] + exponents_right[:, None, :, part]
        if not treatment.zeros_align:
            exponents = torch.where(terms == 0, _NO_TERM, exponents)
        if model.chaining == "accumulator":
            running = total.double()[..., None]
            aligned = torch.where(running == 0, _NO_TERM, exponent_of(running, FP32.emin))
            terms, exponents = torch.cat([terms, running], -1), torch.cat([exponents, aligned], -1)
        stepped = _step(terms, exponents, model)
        total = stepped if model.chaining == "accumulator" else total + stepped
    return total


def _step(terms: torch.Tensor, exponents: torch.Tensor, model: BlockModel) -> torch.Tensor:
    """Sum the last axis of float64 terms with these exponents to float32."""
    largest = exponents.amax(-1).clamp(min=2 * FP32.emin - FP32.precision)
    quantum = power_of_two(largest - (FP32.precision - 1) - model.extra_bits)
    total = torch.trunc(terms / quantum[..., None]).sum(-1) * quantum
    return truncate_to_fp32(total) if model.rounding == "truncate" else total.float()


def search(probes: Sequence[Probe], operand: Format, models: Iterable[BlockModel] = MODELS) -> Search:
    """Which models give every result of the probes; all are tried on the first, and those that fit it on the others.

    Args:
        probes: matrices with results; the first one should tell models apart: several blocks, spread exponents, an accumulator.
        operand: format of the operands.
        models: the models to try.
    """
    first, *others = probes
    wrong = {model: first.wrong(model, operand) for model in models}
    fitting = []
    for model in (model for model, count in wrong.items() if count == 0):
        beyond = sum(probe.wrong(model, operand) for probe in others)
        if beyond:
            wrong[model] = beyond
        else:
            fitting.append(model)
    nearest = min((model for model in wrong if wrong[model]), key=wrong.__getitem__, default=None)
    return Search(
        fitting=tuple(fitting),
        nearest=nearest,
        nearest_wrong=0 if nearest is None else wrong[nearest],
        sample=first.result.numel(),
        results=sum(probe.result.numel() for probe in probes),
    )
