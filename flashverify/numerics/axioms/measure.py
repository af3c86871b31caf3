"""Measure a device's arithmetic: every step in turn, whatever goes wrong in one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from flashverify.numerics.axioms import casts, functions, products, sums, wide_products
from flashverify.numerics.axioms.arithmetic import Arithmetic, Observation
from flashverify.numerics.axioms.finding import Step, is_complete
from flashverify.numerics.axioms.primitives import Primitives

STEPS: tuple[Step, ...] = (
    products.tensor_cores,
    wide_products.tf32_operands,
    wide_products.single,
    wide_products.default_precision,
    wide_products.split_products,
    wide_products.double,
    functions.exp2,
    functions.log2,
    functions.division,
    casts.casts,
    casts.special_values,
    sums.contraction,
    sums.row_sum,
)

EXHAUSTIVE = ("exp2", "log2")
"""Primitives whose every input is tried on a GPU."""

_measured: dict[str, Arithmetic] = {}


def measure(device: torch.device) -> Arithmetic:
    """What Triton's operations do on that device; measured once in a process.

    Args:
        device: a CUDA device, or cpu in the interpreter lane.
    """
    key = str(device)
    if key not in _measured:
        from flashverify.numerics.axioms.probes import TritonPrimitives

        _measured[key] = examine(TritonPrimitives(device))
    return _measured[key]


def examine(primitives: Primitives, steps: Sequence[Step] = STEPS) -> Arithmetic:
    """What these operations do. A step that crashes becomes an observation that fits nothing."""
    fields: dict[str, object] = {}
    observations: list[Observation] = []
    with np.errstate(all="ignore"):  # the interpreter overflows and divides as asked
        for step in steps:
            try:
                found = step(primitives)
            except Exception as error:  # whatever a compiler or a device raises is a finding about that primitive
                words = str(error).strip().partition("\n")[0]
                observations.append(Observation(_name(step), "crashed", f"{type(error).__name__}: {words}", fits=False))
                continue
            fields |= found.fields
            observations += found.observations
    if primitives.device.type == "cuda":
        torch.cuda.empty_cache()
    arithmetic = Arithmetic(
        device=primitives.name,
        lane=primitives.lane,
        exhaustive=EXHAUSTIVE if is_complete(primitives) else (),
        observations=tuple(observations),
    )
    return dataclasses.replace(arithmetic, **fields)  # type: ignore[arg-type]


def _name(step: Step) -> str:
    return step.__name__.replace("_", " ")
