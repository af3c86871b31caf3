"""Rounding to a format happens once and to nearest even; streams are independent and repeatable."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flashverify.cases.case import AttentionCase
from flashverify.cases.sampling import Source, exponentials, ordered_sum, round_to

FORMATS = {"fp16": (11, -14, 15), "bf16": (8, -126, 127), "fp32": (24, -126, 127)}
"""Precision, smallest and largest exponent, as IEEE 754 has them."""


def nearest_even(x: float, precision: int, emin: int, emax: int) -> float:
    """Round in exact rational arithmetic (Python's round is to nearest even)."""
    if x == 0:
        return x
    spacing = Fraction(2) ** (max(math.frexp(x)[1] - 1, emin) - precision + 1)
    rounded = float(round(Fraction(x) / spacing) * spacing)
    return math.copysign(math.inf if abs(rounded) >= 2.0 ** (emax + 1) else abs(rounded), x)


def floats(limit: float) -> st.SearchStrategy[float]:
    anywhere = st.floats(min_value=-limit, max_value=limit)
    return st.one_of(anywhere, st.floats(-4, 4), st.builds(math.ldexp, st.floats(-2, 2), st.integers(-150, 10)))


@pytest.mark.parametrize("dtype", FORMATS)
@settings(deadline=None)
@given(x=floats(1e39))
@example(x=1 + 2.0**-8 + 2.0**-40)
@example(x=1 + 2.0**-11 + 2.0**-40)
@example(x=3 * 2.0**-9)
@example(x=65519.99)
@example(x=65520.0)
@example(x=2.0**-25)
@example(x=3 * 2.0**-26)
@example(x=-(2.0**-134) - 2.0**-160)
@example(x=2.0**-14 - 2.0**-30)
@example(x=-0.0)
def test_rounding_is_to_nearest_even(dtype: str, x: float) -> None:
    expected = nearest_even(x, *FORMATS[dtype])
    with np.errstate(over="ignore"):
        rounded = round_to(np.array([x]), dtype)[0]
    assert rounded == expected
    assert math.copysign(1, rounded) == math.copysign(1, expected)


def test_float64_is_kept() -> None:
    x = np.array([1 / 3, -0.0, 5e-324])
    assert round_to(x, "fp64").tobytes() == x.tobytes()


def test_exponentials_are_rounded_correctly() -> None:
    # The float64 nearest to e^-1 = 0.36787944117144232159552377...
    assert exponentials(np.array([[0.0, -1.0]])).tolist() == [[1.0, 0.36787944117144233]]


def test_ordered_sum_goes_from_first_to_last() -> None:
    x = np.array([[1.0, 2.0**53, -(2.0**53)], [2.0**53, -(2.0**53), 1.0]])
    assert ordered_sum(x, axis=1).tolist() == [0.0, 1.0]
    assert ordered_sum(np.zeros((2, 0)), axis=1).tolist() == [0.0, 0.0]


def test_streams_differ_by_seed_regime_and_name() -> None:
    case = AttentionCase(dtype="fp64", seqlen_q=1, seqlen_k=1, head_dim=1)
    cases = [case, case.replace(seed=1), case.replace(regime="large")]
    draws = [Source(c).stream(name).random() for c in cases for name in ("q", "k")]
    assert len(set(draws)) == len(draws)
    assert Source(case).stream("q").random() == draws[0]


@pytest.mark.parametrize(
    ("scale", "expected"),
    [(None, 0.125), (0.0, 0.125), (-0.5, -0.5), (1e-300, 2.0**-8), (-1e300, -16.0)],
)
def test_design_scale(scale: float | None, expected: float) -> None:
    assert Source(AttentionCase(dtype="fp16", seqlen_q=1, seqlen_k=1, head_dim=64, scale=scale)).scale == expected


def test_landmarks_visit_last_first_and_edges() -> None:
    case = AttentionCase(dtype="fp16", seqlen_q=1, seqlen_k=1, head_dim=1)
    seen = [int(Source(case.replace(seed=seed)).landmarks(70, 1)[0, 0]) for seed in range(8)]
    assert seen == [69, 0, 15, 16, 31, 32, 63, 64]
    assert Source(case.replace(batch=2)).landmarks(0, 3).tolist() == [[0, 0, 0], [0, 0, 0]]
