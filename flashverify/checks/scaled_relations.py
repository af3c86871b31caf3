"""Relations of problems that are multiplied by a power of two, which rounds nothing: exact, of kernels that promise it.

    f(2^n v, 2^n dlse) = 2^n f               of out, dq, dk, dbias, dsink; lse and dv stay
    f(2^n dout, 2^n dlse) = 2^n f            of all gradients; out and lse stay

As far as nothing leaves the range of normal numbers: what could overflow is not scaled, what might underflow not compared.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from flashverify.adapters.kernel import REPEATABLE, SCALING
from flashverify.cases.case import AttentionCase
from flashverify.cases.tensors import Inputs
from flashverify.checks.examination import Examination
from flashverify.checks.related import Claim, compared, on, whole
from flashverify.numerics.formats import FORMATS, FP32, FP64
from flashverify.records.relations import Relation

FACTORS = {"fp16": 2.0**3}
"""What values and cotangents are multiplied by, where the format has little room."""

FACTOR = 2.0**20

MARGIN = 4.0
"""How far products and sums stay below the largest number."""


def scaled_values(examination: Examination) -> Iterator[Relation]:
    """Values, and the cotangent of lse, times a power of two."""
    drawn, factor = examination.inputs, FACTORS.get(examination.case.dtype, FACTOR)
    linear: tuple[str, ...] = ("out", "dq", "dk", "dbias", "dsink")
    if examination.case.dtype == "fp16":  # dS is stored in it, and small ones are subnormal
        linear = ("out",)
    inputs = dataclasses.replace(drawn, v=drawn.v * factor, dlse=None if drawn.dlse is None else drawn.dlse * factor)
    yield from _scaled(VALUES_SCALED, examination, inputs, factor, linear, ("lse", "dv"))


def scaled_cotangents(examination: Examination) -> Iterator[Relation]:
    """Both cotangents times a power of two."""
    drawn, factor = examination.inputs, FACTORS.get(examination.case.dtype, FACTOR)
    linear = ("dv",) if examination.case.dtype == "fp16" else ("dq", "dk", "dv", "dbias", "dsink")
    dlse = None if drawn.dlse is None else drawn.dlse * factor
    inputs = dataclasses.replace(drawn, dout=drawn.dout * factor, dlse=dlse)
    yield from _scaled(COTANGENTS_SCALED, examination, inputs, factor, linear, ("out", "lse"))


def _scaled(
    name: str, examination: Examination, inputs: Inputs, factor: float, linear: tuple[str, ...], constant: tuple[str, ...]
) -> Iterator[Relation]:
    if not _has_room(examination.case, inputs):
        return
    other = on(examination, inputs)
    yield from compared(name, other, examination, dict.fromkeys(constant, whole), {REPEATABLE, SCALING})
    storage = FORMATS[examination.case.dtype]
    # Of smaller numbers, terms may have underflowed; far above, what underflows is far below the last digit.
    smallest = storage.smallest_normal if storage.name == "fp16" else math.sqrt(storage.smallest_normal)
    for tensor in linear:
        before = getattr(examination.outputs, tensor)
        if before is None:
            continue
        told = (before.abs() >= smallest) & (before.abs() <= storage.largest / factor)
        views = {tensor: lambda x: x * factor}
        yield from compared(name, other, examination, views, {REPEATABLE, SCALING}, told)


def _has_room(case: AttentionCase, inputs: Inputs) -> bool:
    """Whether no number on the way can overflow, by the sizes of the inputs; inputs that overflowed already have none."""
    q, k, v, dout = (float(x.abs().max()) if x.numel() else 0.0 for x in (inputs.q, inputs.k, inputs.v, inputs.dout))
    dlse = 0.0 if inputs.dlse is None or not inputs.dlse.numel() else float(inputs.dlse.abs().max())
    rescale = 1.0 if case.dropout is None or case.dropout == 1.0 else 1.0 / (1.0 - case.dropout)
    slope = 2.0 * rescale * (case.value_dim * v * dout + dlse)
    terms = max(case.seqlen_k, case.seqlen_q * case.group_size)
    gradients = terms * slope * max(1.0, q, k) * max(1.0, abs(case.softmax_scale))
    largest = max(v, dout, rescale * terms * max(v, dout), gradients)
    accumulator = FP64 if case.dtype == "fp64" else FP32
    return largest <= accumulator.largest / MARGIN and max(v, dout) <= FORMATS[case.dtype].largest


VALUES_SCALED = "values times a power of two"
COTANGENTS_SCALED = "cotangents times a power of two"

SCALED_CLAIMS = (
    Claim(VALUES_SCALED, "f(2^n v, 2^n dlse) = 2^n f", lambda case: not case.forward_only, scaled_values),
    Claim(COTANGENTS_SCALED, "f(2^n dout, 2^n dlse) = 2^n f", lambda case: not case.forward_only, scaled_cotangents),
)
"""docs/relations.md has them in full."""
