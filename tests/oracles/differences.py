"""Gradients against difference quotients of mpmath's forward pass."""

from __future__ import annotations

import dataclasses

import mpmath
import numpy as np

from flashverify.cases.tensors import Inputs
from flashverify.oracles import mp
from tests.oracles.support import Problem, draw

STEP = 2.0**-20
"""Of difference quotients: inputs of float32 about 1 hold it, and half of it, exactly in float64."""

MPMATH_ERROR = mpmath.mpf(10) ** (-mp.DIGITS // 2)
"""Half of the digits are left to mpmath's own rounding, which a quotient by `STEP` makes 10^6 times as large."""


def objective(example: Problem, inputs: Inputs) -> mpmath.mpf:
    """sum(dout·out) + sum(dlse·lse), whose gradients are dq, dk and dv."""
    out, lse = mp.exact_forward(example.case, inputs)
    with mpmath.workdps(mp.DIGITS):
        total = mpmath.fdot(inputs.dout.flatten().tolist(), out.flat)
        if inputs.dlse is not None:  # rows without keys have no gradient
            pairs = zip(inputs.dlse.flatten().tolist(), lse.flat, strict=True)
            total += mpmath.fsum(a * b for a, b in pairs if b != mpmath.ninf)
        return total


def quotient(example: Problem, inputs: Inputs, name: str, index: tuple[int, ...], step: float) -> mpmath.mpf:
    """The central difference quotient of the objective by one element of an input."""
    values = []
    for sign in (1, -1):
        moved = getattr(inputs, name).clone()
        moved[index] += sign * step
        assert moved[index] - getattr(inputs, name)[index] == sign * step
        values.append(objective(example, dataclasses.replace(inputs, **{name: moved})))
    with mpmath.workdps(mp.DIGITS):
        return (values[0] - values[1]) / (2 * step)


def disagreements(example: Problem, backward=mp.exact_backward) -> set[str]:
    """The gradients of which some element is not the derivative.

    A central quotient's error is C·step² to first order: halving the step shows three times the error that remains.
    """
    inputs = draw(example).double()
    out, lse = mp.exact_forward(example.case, inputs)
    gradients = backward(example.case, inputs, out, lse)
    found = set()
    for name, gradient in zip(("q", "k", "v"), gradients, strict=True):
        for index in np.ndindex(*gradient.shape):
            coarse, fine = (quotient(example, inputs, name, index, step) for step in (STEP, STEP / 2))
            with mpmath.workdps(mp.DIGITS):
                if abs(fine - gradient[index]) > abs(coarse - fine) + MPMATH_ERROR:
                    found.add(f"d{name}")
    return found
