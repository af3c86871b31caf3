"""The scalar and the vectorised form of visibility, cap and bias are one rule, and the rule is the documented one."""

from __future__ import annotations

import math
import sys
from decimal import localcontext
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flashverify.cases import semantics
from flashverify.cases.case import ALIBIS, SOFTCAP_RANGE, AttentionCase
from flashverify.cases.regimes import draw
from flashverify.cases.semantics import (
    alibi_bias,
    alibi_scalar,
    alibi_slope_tensor,
    alibi_slopes,
    by_entry,
    cap_slope,
    cap_slope_scalar,
    capped,
    capped_scalar,
    first_offset,
    key_head,
    limited,
    visible,
    visible_mask,
)
from flashverify.cases.strategies import cached_cases, cases

PLAIN = AttentionCase(dtype="fp64", seqlen_q=1, seqlen_k=1, head_dim=1)

FIRST = torch.tensor(0)
"""The first batch entry: all have the same lengths, where there are no others."""

UNIT = 2.0**-53

DIGITS = 50
"""Of mpmath: its own rounding is nothing beside float64's."""


@settings(deadline=None)
@given(st.one_of(cases(max_elements=2**10), cached_cases()))
def test_scalar_and_vectorised_visibility_agree(case: AttentionCase) -> None:
    entries = torch.arange(case.batch)
    mask = visible_mask(case, entries[:, None, None], torch.arange(case.seqlen_q), torch.arange(case.seqlen_k))
    assert mask.shape == (*([case.batch] if by_entry(case) else []), case.seqlen_q, case.seqlen_k)
    for b in entries:
        alone = visible_mask(case, b, torch.arange(case.seqlen_q), torch.arange(case.seqlen_k))
        assert torch.equal(alone, mask[b] if by_entry(case) else mask)
        assert alone.tolist() == [[visible(case, int(b), i, j) for j in range(case.seqlen_k)] for i in range(case.seqlen_q)]


@pytest.mark.parametrize(
    ("mask", "seqlen_q", "seqlen_k", "expected"),
    [
        ("full", 2, 3, [[1, 1, 1], [1, 1, 1]]),
        ("causal", 2, 3, [[1, 1, 0], [1, 1, 1]]),
        ("causal", 3, 2, [[0, 0], [1, 0], [1, 1]]),
        ("causal-topleft", 2, 3, [[1, 0, 0], [1, 1, 0]]),
        ("causal-topleft", 3, 2, [[1, 0], [1, 1], [1, 1]]),
    ],
)
def test_alignment(mask: str, seqlen_q: int, seqlen_k: int, expected: list[list[int]]) -> None:
    case = AttentionCase(dtype="fp32", seqlen_q=seqlen_q, seqlen_k=seqlen_k, head_dim=1, mask=mask)
    assert visible_mask(case, FIRST, torch.arange(seqlen_q), torch.arange(seqlen_k)).int().tolist() == expected


@pytest.mark.parametrize("mask", ["full", "causal", "causal-topleft"])
@pytest.mark.parametrize("side", [7, 2**31, 2**63, 10**30])
def test_a_side_that_reaches_every_key_is_no_limit(mask: str, side: int) -> None:
    plain = AttentionCase(dtype="fp32", seqlen_q=3, seqlen_k=4, head_dim=1, mask=mask)
    case = plain.replace(window_left=side, window_right=side if mask == "full" else None)
    rows, columns = torch.arange(3), torch.arange(4)
    assert torch.equal(visible_mask(case, FIRST, rows, columns), visible_mask(plain, FIRST, rows, columns))
    assert limited(case) is limited(plain) is (mask != "full")
    draw(case.replace(regime="copy"))


def test_a_side_that_reaches_fewer_keys_is_a_limit() -> None:
    case = AttentionCase(dtype="fp32", seqlen_q=3, seqlen_k=4, head_dim=1, window_left=6)
    assert limited(case)
    assert first_offset(case) == 1 - 6


def test_key_heads_of_a_ratio_that_is_not_square() -> None:
    case = AttentionCase(dtype="fp32", heads_q=6, heads_kv=2, seqlen_q=1, seqlen_k=1, head_dim=1)
    assert [key_head(case, h) for h in range(6)] == [0, 0, 0, 1, 1, 1]


def exactly(softcap: float, x: float) -> tuple[mpmath.mpf, mpmath.mpf]:
    """The capped logit and the slope by the scalar forms."""
    case = PLAIN.replace(softcap=softcap)
    with mpmath.workdps(DIGITS):
        number = mpmath.mpf(x)
        return capped_scalar(case, number, mpmath.tanh), cap_slope_scalar(case, number, mpmath.sech)


@settings(deadline=None)
@given(
    st.floats(*SOFTCAP_RANGE),
    st.one_of(st.floats(-1e3, 1e3), st.floats(allow_nan=False, allow_infinity=False)),
)
@example(2.0**-20, sys.float_info.max)
@example(2.0**40, -1.0)
@example(30.0, -0.0)
@example(2.0, 740.0)
def test_scalar_and_vectorised_caps_agree(softcap: float, x: float) -> None:
    """Within the roundings of the vectorised form: of y = x / cap (u, seen through the slope), tanh and exp (2 ulp: 4u).

    The slope's relative derivative by y is 2 tanh at most; 1 + e rounds once and counts twice, then a square and a quotient.
    """
    case, scores = PLAIN.replace(softcap=softcap), torch.tensor([x], dtype=torch.float64)
    logit, slope = exactly(softcap, x)
    moved = UNIT * abs(x) / softcap  # of y; twice as much, where it is not small, for the slope between y and its rounding
    lost = 4 * sys.float_info.min * softcap
    near = min(1.0, float(slope) * math.exp(min(2 * moved, 1.0)))
    with mpmath.workdps(DIGITS):
        assert abs(mpmath.mpf(capped(case, scores).item()) - logit) <= near * UNIT * abs(x) + 6 * UNIT * abs(logit) + lost
        error = abs(mpmath.mpf(cap_slope(case, scores).item()) - slope)
        assert error <= slope * (mpmath.expm1(2 * moved) + 9 * UNIT) + 4 * sys.float_info.min


@settings(deadline=None)
@given(st.floats(*SOFTCAP_RANGE), st.floats(-1e3, 1e3))
def test_the_slope_is_the_caps_derivative(softcap: float, x: float) -> None:
    case = PLAIN.replace(softcap=softcap)
    with mpmath.workdps(DIGITS):
        derivative = mpmath.diff(lambda number: capped_scalar(case, number, mpmath.tanh), mpmath.mpf(x))
        slope = cap_slope_scalar(case, mpmath.mpf(x), mpmath.sech)
        # Half of the digits are left to mpmath's difference quotient, whose error grows with the curvature, 1 / cap at most.
        assert abs(derivative - slope) <= mpmath.mpf(10) ** (-DIGITS // 2) * (1 + 1 / softcap)


@settings(deadline=None)
@given(st.floats(*SOFTCAP_RANGE), st.floats(-1e3, 1e3))
def test_a_cap_bends_towards_itself(softcap: float, x: float) -> None:
    """|logit| < cap, and by Taylor's theorem x is bent by |x|³ / (3 cap²) at most: a large cap is nearly none."""
    logit, slope = exactly(softcap, x)
    with mpmath.workdps(DIGITS):
        size = abs(mpmath.mpf(x))
        rounding = size * mpmath.mpf(10) ** (1 - DIGITS)  # of a quotient, tanh and a product
        assert abs(logit) <= min(softcap, size) + rounding
        assert abs(logit - x) <= size**3 / (3 * mpmath.mpf(softcap) ** 2) + rounding
        assert 0 < slope <= 1


def test_no_cap_changes_nothing() -> None:
    x = torch.tensor([-math.inf, -3.0, -0.0, 1e300, math.nan], dtype=torch.float64)
    assert capped(PLAIN, x) is x
    assert torch.equal(cap_slope(PLAIN, x), torch.ones_like(x))
    assert capped_scalar(PLAIN, mpmath.mpf(3), mpmath.tanh) == 3
    assert cap_slope_scalar(PLAIN, mpmath.mpf(3), mpmath.sech) == 1


def test_caps_of_values_that_are_not_finite() -> None:
    case = PLAIN.replace(softcap=30.0)
    x = torch.tensor([math.inf, -math.inf, math.nan], dtype=torch.float64)
    assert capped(case, x)[:2].tolist() == [30.0, -30.0]
    assert cap_slope(case, x)[:2].tolist() == [0.0, 0.0]
    assert capped(case, x)[2].isnan()
    assert cap_slope(case, x)[2].isnan()


def biased(alibi: str | None, batch: int, heads: int, **changes: object) -> AttentionCase:
    return PLAIN.replace(alibi=alibi, batch=batch, heads_q=heads, **changes)


@settings(deadline=None)
@given(
    st.sampled_from(ALIBIS),
    st.integers(0, 3),
    st.integers(1, 6),
    st.integers(0, 5),
    st.integers(0, 5),
    st.integers(0, 2**28),
)
def test_scalar_and_vectorised_biases_agree_and_are_exact(
    alibi: str, batch: int, heads: int, rows: int, columns: int, start: int
) -> None:
    """The rule in whole numbers: no rounding, up to lengths of 2^28."""
    case = biased(alibi, batch, heads, seqlen_q=rows, seqlen_k=columns + start)
    slopes, table = alibi_slope_tensor(case), alibi_slopes(case)
    assert slopes.shape == (batch, heads)
    assert slopes.dtype == torch.float64
    assert slopes.tolist() == slopes.float().tolist() == table
    entries = torch.arange(batch)[:, None, None, None]
    found = alibi_bias(case, entries, slopes[..., None, None], torch.arange(rows), torch.arange(columns))
    assert found.shape == (batch, heads, rows, columns)
    assert found.dtype == torch.float64
    for (b, h, i, j), value in np.ndenumerate(found.numpy()):
        assert value == alibi_scalar(case, b, h, i, j)
        assert Fraction(value) == -Fraction(table[b][h]) * abs(i + columns + start - rows - j)


def test_slopes_of_each_row() -> None:
    case = biased("heads", 1, 2, seqlen_q=3, seqlen_k=5)
    rows, columns, slopes = torch.arange(3), torch.arange(5), alibi_slope_tensor(case)[0]
    stacked = alibi_bias(case, FIRST, slopes.repeat_interleave(3)[:, None], rows.repeat(2), columns)
    assert torch.equal(stacked, alibi_bias(case, FIRST, slopes[:, None, None], rows, columns).flatten(0, 1))


def test_the_last_query_has_no_bias_at_the_last_key() -> None:
    case = biased("heads", 1, 1, seqlen_q=2, seqlen_k=4)
    bias = alibi_bias(case, FIRST, torch.ones(1, 1).double(), torch.arange(2), torch.arange(4))
    assert bias.tolist() == [[-2, -1, 0, -1], [-3, -2, -1, 0]]


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 8, 12, 40, 64])
def test_slopes_are_the_papers_rounded_once(heads: int) -> None:
    """To float32, to nearest: within half of the distance to the next number; and exact where they are powers of two."""
    shared, own = alibi_slopes(biased("heads", 3, heads)), alibi_slopes(biased("batch", 3, heads))
    for b in range(3):
        for h in range(heads):
            with mpmath.workdps(DIGITS):
                true = mpmath.mpf(2) ** (mpmath.mpf(-8 * (h + 1)) / heads)
                for found, exact in ((shared[b][h], true), (own[b][h], true * (1 + b) / 2)):
                    assert found == np.float32(found)
                    assert found == 0 or abs(mpmath.mpf(found) - exact) <= mpmath.mpf(float(np.spacing(np.float32(found)))) / 2
    assert [(b, h) for b in range(3) for h in range(heads) if own[b][h] == 0] == [(2, heads // 2)]
    assert [(b, h) for b in range(3) for h in range(heads) if shared[b][h] == 0] == (
        [(b, heads // 2) for b in range(3)] if heads >= 3 else []
    )


def test_eight_heads_have_the_papers_slopes() -> None:
    slopes = alibi_slopes(biased("heads", 1, 8))[0]
    assert slopes == [0.0 if h == 4 else 2.0 ** -(h + 1) for h in range(8)]


def test_slopes_of_few_heads_and_entries() -> None:
    assert alibi_slopes(biased("heads", 2, 1)) == [[2.0**-8], [2.0**-8]]
    assert alibi_slopes(biased("batch", 1, 2)) == [[2.0**-5, 2.0**-9]]
    assert alibi_slopes(biased("batch", 2, 1)) == [[2.0**-9], [0.0]]
    assert alibi_slopes(biased("batch", 0, 3)) == []
    assert alibi_slope_tensor(biased("batch", 0, 3)).shape == (0, 3)


def test_slopes_do_not_depend_on_the_ambient_decimal_context() -> None:
    semantics._alibi_slopes.cache_clear()
    with localcontext() as context:
        context.prec = 3
        found = alibi_slopes(biased("batch", 2, 7))
    semantics._alibi_slopes.cache_clear()
    assert found == alibi_slopes(biased("batch", 2, 7))


def test_slopes_that_a_caller_changes_are_the_callers_own() -> None:
    case = biased("heads", 1, 2)
    alibi_slopes(case)[0][0] = 9.0
    assert alibi_slopes(case) == [[2.0**-4, 2.0**-8]]


def test_no_alibi_is_no_bias() -> None:
    case = biased(None, 2, 3, mask="causal-topleft")
    assert alibi_slopes(case) == [[0.0] * 3] * 2
    assert alibi_scalar(case, 1, 2, 0, 0) == 0
