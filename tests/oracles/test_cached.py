"""Oracles agree on left pads, shared pages and rotary embedding, which only cases without a backward pass have."""

from __future__ import annotations

import mpmath
import pytest
import torch
from hypothesis import given, settings

from flashverify.cases.case import AttentionCase
from flashverify.cases.regimes import draw
from flashverify.cases.strategies import cached_cases
from flashverify.numerics.contract import ORACLE_FLOAT64
from flashverify.numerics.hard import forward_budget
from flashverify.oracles import ball, dense, mp, tiled

CASE = AttentionCase(
    dtype="fp64",
    batch=3,
    heads_q=4,
    heads_kv=2,
    seqlen_q=3,
    seqlen_k=40,
    head_dim=24,
    mask="causal",
    cache="shared",
    left_pad=True,
    rotary="interleaved",
)

MPMATH_ERROR = 10.0 ** (-mp.DIGITS // 2)
"""Half of mpmath's digits are left to its roundings: far less than float64 resolves, so that a radius always covers it."""

FAR_OFF = 2.0**-20
"""Far beyond the error of any oracle, on numbers of the order of 1."""

FEW = settings(deadline=None, max_examples=25)


@FEW
@given(cached_cases(dtypes=("bf16", "fp64")))
def test_float64_is_within_its_budget_of_the_ball(case: AttentionCase) -> None:
    inputs = draw(case)
    enclosures = ball.forward(case, inputs)
    for oracle in (dense, tiled):
        out, lse = oracle.forward(case, inputs)
        budget = forward_budget(case, inputs, out, lse, ORACLE_FLOAT64)
        for found, exact, allowed in zip((out, lse), enclosures, (budget.out, budget.lse), strict=True):
            error = torch.where(found == exact.mid, 0.0, (found - exact.mid).abs())
            assert (error <= allowed + exact.radius).all()


@FEW
@given(cached_cases(dtypes=("fp16",)).filter(lambda case: case.batch * case.seqlen_k * case.head_dim <= 1000))
def test_balls_hold_the_mpmath_values(case: AttentionCase) -> None:
    inputs = draw(case)
    for values, exact in zip(mp.exact_forward(case, inputs), ball.forward(case, inputs), strict=True):
        sizes = exact.mid.flatten().tolist(), exact.radius.flatten().tolist()
        for value, mid, radius in zip(values.flat, *sizes, strict=True):
            with mpmath.workdps(mp.DIGITS):
                assert value == mid or abs(value - mpmath.mpf(mid)) <= radius + MPMATH_ERROR


def test_rotation_matters_to_every_oracle() -> None:
    inputs = draw(CASE)
    plain = tiled.forward(CASE.replace(rotary=None), inputs)[1]
    other = tiled.forward(CASE.replace(rotary="half"), inputs)[1]
    for oracle in (dense, tiled, mp):
        lse = oracle.forward(CASE, inputs)[1]
        seen = lse.isfinite()
        assert all(((lse - wrong)[seen].abs() > FAR_OFF).all() for wrong in (plain, other))


def test_turned_balls_are_exact() -> None:
    """Turning happens before any precision is chosen: rows of 2^1000 and 2^-1000 are held exactly."""
    case = CASE.replace(batch=1, left_pad=False, heads_q=1, heads_kv=1)
    inputs = draw(case)
    inputs.q[..., 0] *= 2.0**1000
    inputs.q[..., 1] *= 2.0**-1000
    head = ball._read(case, inputs, None, 0, 0)
    assert all(entry.rad() == 0 for entry in [*head.q.entries(), *head.k.entries()])


@pytest.mark.parametrize("oracle", [dense, tiled, mp, ball])
def test_there_are_no_gradients_through_a_rotation(oracle: object) -> None:
    inputs = draw(CASE)
    out, lse = tiled.forward(CASE, inputs)
    with pytest.raises(ValueError, match="rotary: got 'interleaved', accepted for gradients is None"):
        oracle.backward(CASE, inputs, out, lse)  # type: ignore[attr-defined]
