"""Capped logits in the oracles: what a cap changes and bounds, and gradients that are those of the forward pass."""

from __future__ import annotations

import math

import pytest

from flashverify.cases.tensors import TENSORS
from flashverify.numerics.formats import FP64
from flashverify.oracles import ball, dense, mp, tiled
from tests.oracles.differences import disagreements
from tests.oracles.support import PROBLEMS, draw, problem

CAPPED = [
    e for e in PROBLEMS if e.case.softcap is not None and not {"alibi", "bias", "sink"} & {*e.case.features} and e.case.seqlen_k
]

SMOOTH = [
    problem(3, 4, 2, softcap=1.5, lse_grad=True),
    problem(4, 4, 2, "causal", softcap=0.5, scale=-1.0, lse_grad=True),
    problem(4, 3, 2, softcap=30.0, window_left=1, window_right=1, heads_q=2),
]

by_name = pytest.mark.parametrize("example", SMOOTH, ids=str)


@by_name
def test_gradients_are_finite_differences_of_the_forward_pass(example):
    assert disagreements(example) == set()


@by_name
@pytest.mark.parametrize(
    "slope",
    [
        pytest.param(lambda case, x, sech: 1, id="left out"),
        pytest.param(lambda case, x, sech: sech(x / case.softcap), id="not squared"),
        pytest.param(lambda case, x, sech: sech(x) ** 2, id="of the uncapped score"),
    ],
)
def test_finite_differences_see_a_wrong_slope(example, slope, monkeypatch):
    monkeypatch.setattr(mp, "cap_slope_scalar", slope)
    assert disagreements(example) == {"dq", "dk"}


@pytest.mark.parametrize("example", [problem(4, 5, 3, softcap=2.0, lse_grad=True), CAPPED[1], CAPPED[2]], ids=str)
@pytest.mark.parametrize("oracle", [mp, ball, dense, tiled], ids=["mp", "ball", "dense", "tiled"])
def test_a_cap_changes_every_output(example, oracle):
    """By more than the radii of the true values, with and without it."""
    inputs, uncapped = draw(example), example.case.replace(softcap=None)
    with_cap, without = ball.attention(example.case, inputs), ball.attention(uncapped, inputs)
    found = oracle.attention(example.case, inputs)
    found = found.mid if oracle is ball else found
    for name in TENSORS:
        true, other = getattr(with_cap.mid, name), getattr(without.mid, name)
        apart = (true - other).abs() > getattr(with_cap.radius, name) + getattr(without.radius, name)
        assert apart.any(), name
        value = getattr(found, name)[apart]
        assert ((value - true[apart]).abs() < (value - other[apart]).abs()).all(), name


@pytest.mark.parametrize("example", CAPPED, ids=str)
def test_no_logit_exceeds_the_cap(example):
    """So that lse is between -cap and cap + ln(keys), whatever q and k are."""
    for oracle in (mp, dense, tiled):
        lse = oracle.forward(example.case, draw(example))[1]
        lse = lse[lse != -math.inf]
        assert lse.numel()
        assert (lse <= example.case.softcap + math.log(example.case.seqlen_k)).all()
        assert (lse >= -example.case.softcap).all()


def saturated(score: float, softcap: float):
    """A case and inputs of one column, where all scores are the same number."""
    example = problem(3, 4, 1, dtype="fp64", softcap=softcap, scale=1.0, lse_grad=True)
    inputs = draw(example)
    inputs.q[:], inputs.k[:] = 1.0, score
    return example.case, inputs


def test_saturated_logits_cost_the_balls_no_precision():
    """Scores around 2^1000 have balls of radius 2^870, of which tanh and sech leave nothing."""
    case, inputs = saturated(2.0**1000 / 3, 30.0)
    enclosure = ball.attention(case, inputs, limit=ball.PRECISION)
    terms = case.softcap + math.log(case.seqlen_k)
    assert (enclosure.radius.lse <= FP64.unit_roundoff * terms).all()
    assert ((enclosure.mid.lse - terms).abs() <= 2 * FP64.unit_roundoff * terms).all()
    for name in ("dq", "dk"):  # slopes far below float64's range
        assert (getattr(enclosure.radius, name) <= FP64.smallest_normal).all()
        for oracle in (dense, tiled):
            assert not getattr(oracle.attention(case, inputs), name).any()


@pytest.mark.parametrize("oracle", [mp, dense, tiled], ids=["mp", "dense", "tiled"])
def test_slopes_do_not_cancel_near_saturation(oracle):
    """tanh(20) rounds to 1, so that 1 - tanh² would be 0; at 300 it would be so in mpmath's digits. dlse makes dq visible."""
    for score in (20.0, 300.0):
        case, inputs = saturated(score, 1.0)
        found, truth = oracle.attention(case, inputs), ball.attention(case, inputs)
        assert math.tanh(score) == 1
        for name in ("dq", "dk"):
            true, radius = getattr(truth.mid, name), getattr(truth.radius, name)
            assert (radius < true.abs()).all()
            assert (getattr(found, name) != 0).all()
            assert ((getattr(found, name) - true).abs() < true.abs() / 2).all(), name
