"""Radii are proofs: outward rounding, precision that rises where it must, empty and non-finite rows."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from flint import arb, ctx

from flashverify.oracles import ball, mp
from flashverify.oracles.enclosure import enclose, is_sharp
from tests.oracles.support import draw, problem

DYADIC = [Fraction(m) * Fraction(2) ** e for m in (1, -3, 2**53 + 1, -(2**60) + 1) for e in (-1200, -1080, -1074, -60, 0)]


def as_arb(value: Fraction):
    """A dyadic number as an exact ball."""
    exponent = value.denominator.bit_length() - 1
    return arb(value.numerator) * arb(2) ** -exponent


@pytest.mark.parametrize("value", DYADIC, ids=str)
@pytest.mark.parametrize("spread", [Fraction(0), Fraction(1, 3), Fraction(1, 2**70)], ids=str)
def test_the_whole_ball_is_enclosed(value, spread):
    with ctx.workprec(200):
        point = as_arb(value)
        given = arb(point.mid(), abs(point) * (arb(spread.numerator) / arb(spread.denominator)))
        mid, radius = enclose(given)
    # Arb rounds radii up, to 30 bits: the ball is at least as wide as asked for.
    assert abs(value - Fraction(mid)) + abs(value) * spread <= Fraction(radius)


def test_an_exact_float64_has_radius_zero():
    assert enclose(arb(0.1)) == (0.1, 0.0)
    assert enclose(arb(0)) == (0.0, 0.0)
    assert enclose(arb(5e-324)) == (5e-324, 0.0)


def test_minus_infinity_is_exact_and_nan_is_unknown():
    assert enclose(arb.neg_inf()) == (-math.inf, 0.0)
    mid, radius = enclose(arb.nan())
    assert math.isnan(mid)
    assert radius == math.inf


def test_beyond_the_range_of_float64_nothing_is_claimed():
    mid, radius = enclose(-(arb(2) ** 5000))
    assert math.isfinite(mid)
    assert radius == math.inf


def test_a_radius_rounded_to_nearest_would_be_too_small():
    """The defect that the outward step is for: the nearest float64 of a radius can be below it."""
    with ctx.workprec(200):
        value = 1 + arb(2) ** -54 + arb(2) ** -120
        mid, radius = enclose(value)
        assert arb(float((value - arb(mid)).abs_upper())) < value - arb(mid) <= arb(radius)


def test_sharpness_is_relative_to_the_value_unless_it_cancelled():
    with ctx.workprec(128):
        terms = arb(1)
        assert is_sharp(arb(1) / 3, terms)
        assert not is_sharp(arb(1.0, 2.0**-70), terms)
        assert is_sharp(arb(0, 2.0**-100), terms)
        assert not is_sharp(arb(0, 2.0**-60), terms)
        assert not is_sharp(arb(2.0**-80, 2.0**-110), terms)
        assert not is_sharp(arb(0) / arb(0), terms)


def large_and_close(name: str, exponent: int):
    """Inputs where a common part of 2^exponent cancels, in the logits (name "k") or in dP - D (name "v")."""
    example = problem(3, 4, 2, dtype="fp64", lse_grad=True)
    inputs = draw(example)
    (inputs.q if name == "k" else inputs.dout)[..., 0] = 1.0
    getattr(inputs, name)[..., 0] = 2.0**exponent
    return example.case, inputs


def relative_radius(tensor: torch.Tensor, radius: torch.Tensor) -> float:
    return (radius / tensor.abs()).max().item()


@pytest.mark.parametrize(
    ("source", "exponent", "affected"),
    [("k", 100, ("out", "dv")), ("k", 200, ("out", "dv")), ("k", 1000, ("out", "dv")), ("v", 90, ("dk",))],
)
def test_precision_rises_for_large_logits_and_cancellation(source, exponent, affected):
    case, inputs = large_and_close(source, exponent)
    sharp, wide = ball.attention(case, inputs), ball.attention(case, inputs, limit=128)
    for name in affected:
        assert relative_radius(getattr(sharp.mid, name), getattr(sharp.radius, name)) <= 2.0**-53, name
        assert not relative_radius(getattr(wide.mid, name), getattr(wide.radius, name)) <= 2.0**-45, name
    for name, tensor in mp.attention(case, inputs, dps=700).items():
        mid, radius = getattr(sharp.mid, name), getattr(sharp.radius, name)
        assert ((tensor - mid).abs() <= radius + tensor.abs() * 2.0**-53).all(), name


def test_complete_cancellation_is_measured_against_its_terms():
    """A ball about zero is not pursued below a millionth of its terms' roundoff: an exact zero would never resolve."""
    case, inputs = large_and_close("v", 200)
    enclosure = ball.attention(case, inputs)
    size = case.seqlen_q * 2 * case.head_dim * inputs.q.abs().max() * case.softmax_scale
    assert (enclosure.radius.dk <= 2.0**-73 * 2 * size * inputs.dout.abs().max() * 2.0**200).all()
    assert (enclosure.mid.dk.abs() <= enclosure.radius.dk).all()


def test_an_exact_zero_costs_no_precision(monkeypatch):
    used = []
    compute = ball._group
    monkeypatch.setattr(ball, "_group", lambda *args, **names: (used.append(ctx.prec), compute(*args, **names))[1])
    alone = problem(3, 1, 3)
    enclosure = ball.attention(alone.case, draw(alone))
    assert used == [128]
    assert (enclosure.mid.dq.abs() + enclosure.radius.dq <= 2.0**-100).all()


def test_precision_rises_only_where_it_must(monkeypatch):
    used = []
    compute = ball._group
    monkeypatch.setattr(ball, "_group", lambda *args, **names: (used.append(ctx.prec), compute(*args, **names))[1])
    easy = problem(4, 4, 3, "causal", lse_grad=True)
    ball.attention(easy.case, draw(easy))
    assert used == [128]
    ball.attention(*large_and_close("k", 1000), limit=512)
    assert used[1:] == [128, 256, 512]


def test_huge_scales_overflow_nothing():
    for scale in (1e30, -1e30, 1e250):
        example = problem(3, 4, 3, scale=scale, lse_grad=True)
        enclosure = ball.attention(example.case, draw(example))
        assert all(tensor.isfinite().all() for _, tensor in enclosure.radius.items())
        weights = ball.backward(example.case, draw(example), enclosure.mid.out, enclosure.mid.lse)
        assert not weights[2].mid.isnan().any()


def test_the_callers_precision_is_left_alone():
    before = ctx.prec
    example = problem(2, 2, 2)
    ball.attention(example.case, draw(example), precision=300)
    assert ctx.prec == before


def test_rows_without_keys():
    example = problem(5, 2, 3, "causal", lse_grad=True)
    enclosure = ball.attention(example.case, draw(example))
    assert (enclosure.mid.lse[..., :3] == -math.inf).all()
    for tensors in (enclosure.mid, enclosure.radius):
        assert all(not tensor.isnan().any() for _, tensor in tensors.items())
        assert not tensors.out[:, :, :3].any()
        assert not tensors.dq[:, :, :3].any()
    assert not enclosure.radius.lse[..., :3].any()


def test_unseen_keys_do_not_matter():
    example = problem(2, 4, 3, "causal-topleft")
    inputs, poisoned = draw(example), draw(example)
    poisoned.k[:, :, 2:], poisoned.v[:, :, 2:] = torch.nan, torch.inf
    for name, tensor in ball.attention(example.case, poisoned).mid.items():
        assert torch.equal(tensor, getattr(ball.attention(example.case, inputs).mid, name)), name


def test_a_seen_nan_claims_nothing():
    example = problem(3, 4, 3)
    inputs = draw(example)
    inputs.v[0, 0, 1, 2] = torch.nan
    out, lse = ball.forward(example.case, inputs)
    assert out.mid[..., 2].isnan().all()
    assert (out.radius[..., 2] == math.inf).all()
    assert lse.mid.isfinite().all()


@pytest.mark.parametrize("precision", [1, 0, -5])
def test_precision_is_validated(precision):
    example = problem(2, 2, 2)
    with pytest.raises(ValueError, match=rf"precision: got {precision}, accepted"):
        ball.forward(example.case, draw(example), precision=precision)
