"""The four oracles against each other: mpmath inside the balls, float64 within its a-priori bound of them."""

from __future__ import annotations

import functools

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashverify.cases import dense_bias
from flashverify.cases.case import BIASES, MASKS, AttentionCase
from flashverify.cases.semantics import alibi_slopes
from flashverify.cases.tensors import TENSORS
from flashverify.dropout.of_case import rescale
from flashverify.numerics.formats import FP64
from flashverify.oracles import ball, dense, mp, tiled
from flashverify.oracles.enclosure import GUARD_BITS
from tests.oracles.support import (
    PROBLEMS,
    Problem,
    backward_bound,
    draw,
    end_to_end_bound,
    worst_ratio,
    worst_ratios,
)

DIGITS = 80

# mpmath rounds too: half of its digits are left to it, the other half are far more than float64 midpoints resolve.
MPMATH_ERROR = mpmath.mpf(10) ** (-DIGITS // 2)

ROUNDINGS = {"dbias": 1, "dsink": 1}
"""What sums over rows of float64 midpoints add to a radius, in roundoffs of each term."""

by_name = functools.partial(pytest.mark.parametrize, "example", PROBLEMS, ids=str)


@functools.cache
def exact(example: Problem):
    return ball.attention(example.case, draw(example))


def exact_arrays(case: AttentionCase, inputs):
    out, lse = mp.exact_forward(case, inputs, DIGITS)
    return dict(zip(TENSORS, (out, lse, *mp.exact_backward(case, inputs, out, lse, DIGITS)), strict=True))


def largest_term(case: AttentionCase, inputs) -> mpmath.mpf:
    """No term that an output is a sum of is larger, but for a factor of the problem's size."""
    factors = [1 + x.double().abs().max().item() for x in (inputs.q, inputs.k, inputs.v, inputs.dout) if x.numel()]
    bias = max((slope for slopes in alibi_slopes(case) for slope in slopes), default=0.0) * (case.seqlen_q + case.seqlen_k)
    if inputs.bias is not None and inputs.bias.numel():
        bias += dense_bias.added(inputs.bias).abs().max().item()
    if inputs.sink is not None:
        bias += inputs.sink.abs().max().item()
    return mpmath.fprod([1 + abs(case.softmax_scale), 1 + bias, 1 + rescale(case), *factors])


def outside(values: np.ndarray, mid: torch.Tensor, radius: torch.Tensor, terms: mpmath.mpf) -> list[str]:
    """Elements that are not in their ball."""
    assert values.shape == tuple(mid.shape) == tuple(radius.shape)
    found = []
    with mpmath.workdps(DIGITS):
        for x, m, r in zip(values.flat, mid.flatten().tolist(), radius.flatten().tolist(), strict=True):
            if x == m:
                continue
            if not abs(x - mpmath.mpf(m)) <= mpmath.mpf(r) + MPMATH_ERROR * terms:
                found.append(f"{mpmath.nstr(x, 20)} is not in {m} +- {r}")
    return found


def assert_inside(case: AttentionCase, inputs, enclosure) -> None:
    arrays, terms = exact_arrays(case, inputs), largest_term(case, inputs)
    for name in TENSORS:
        assert outside(arrays[name], getattr(enclosure.mid, name), getattr(enclosure.radius, name), terms) == [], name


@by_name()
def test_balls_hold_the_mpmath_values(example):
    assert_inside(example.case, draw(example), exact(example))


@by_name()
def test_balls_are_sharp(example):
    """Radii come from rounding midpoints to float64: half an ulp, or little beside terms that cancelled."""
    enclosure = exact(example)
    for name, mid in enclosure.mid.items():
        radius = getattr(enclosure.radius, name)
        if mid.numel():
            value = torch.where(mid.isinf(), 0.0, mid).abs()
            terms = float(largest_term(example.case, draw(example)))
            roundings = ROUNDINGS.get(name, 0) * example.case.batch * example.case.heads_q * example.case.seqlen_q
            allowed = value + 2.0**-GUARD_BITS * (value + terms) + roundings * (value + terms)
            assert (radius <= FP64.unit_roundoff * allowed).all(), name


@by_name()
def test_mpmath_rounds_its_exact_values(example):
    inputs = draw(example)
    arrays = exact_arrays(example.case, inputs)
    for name, tensor in mp.attention(example.case, inputs, DIGITS).items():
        assert tensor.dtype == torch.float64
        assert tensor.shape == arrays[name].shape
        assert tensor.flatten().tolist() == [float(x) for x in arrays[name].flat]


@by_name()
@pytest.mark.parametrize("oracle", [dense, tiled], ids=["dense", "tiled"])
def test_float64_is_within_its_bound_of_the_ball(example, oracle):
    inputs = draw(example)
    bound = end_to_end_bound(example.case, inputs, exact(example).mid)
    ratios = worst_ratios(oracle.attention(example.case, inputs), exact(example), bound)
    assert max(ratios.values()) <= 1, ratios


@by_name()
@pytest.mark.parametrize("oracle", [dense, tiled], ids=["dense", "tiled"])
def test_float64_backward_is_a_function_of_the_given_out_and_lse(example, oracle):
    """Modular mode: out and lse as a bfloat16 kernel might return them, far from the exact ones."""
    inputs, case = draw(example), example.case
    out, lse = exact(example).mid.out.bfloat16(), exact(example).mid.lse.float() + 2.0**-6
    enclosures = ball.backward(case, inputs, out, lse)
    bounds = backward_bound(case, inputs, out.double(), lse.double())
    for found, enclosed, bound in zip(oracle.backward(case, inputs, out, lse), enclosures, bounds, strict=True):
        assert worst_ratio(found, enclosed.mid, enclosed.radius, bound) <= 1


@by_name()
def test_balls_hold_the_mpmath_backward_of_given_tensors(example):
    inputs, case = draw(example), example.case
    out, lse = exact(example).mid.out.half(), exact(example).mid.lse.float() - 2.0**-6
    for array, enclosed in zip(mp.backward(case, inputs, out, lse), ball.backward(case, inputs, out, lse), strict=True):
        slack = enclosed.radius + array.abs() * 2.0**-53  # mpmath's result is rounded to float64 here
        assert ((array - enclosed.mid).abs() <= slack).all()


@by_name()
@pytest.mark.parametrize("tile_elements", [1, 12, 35])
def test_tiles_do_not_matter(example, tile_elements):
    inputs = draw(example)
    bound = end_to_end_bound(example.case, inputs, exact(example).mid)
    whole = dense.attention(example.case, inputs)
    found = tiled.attention(example.case, inputs, tile_elements)
    for name, tensor in whole.items():
        allowed = 2 * getattr(bound, name)
        assert worst_ratio(getattr(found, name), tensor, torch.zeros_like(allowed), allowed) <= 1, name


def any_case(mask: str, alibi: str | None, **fields) -> AttentionCase:
    return AttentionCase(mask=mask, alibi=None if mask == "causal-topleft" else alibi, **fields)


@settings(derandomize=True, max_examples=40, deadline=None, database=None)
@given(
    st.builds(
        any_case,
        dtype=st.sampled_from(["fp16", "fp64"]),
        batch=st.integers(0, 2),
        heads_q=st.sampled_from([2, 4]),
        heads_kv=st.sampled_from([1, 2]),
        seqlen_q=st.integers(0, 4),
        seqlen_k=st.integers(0, 4),
        head_dim=st.integers(1, 3),
        mask=st.sampled_from(MASKS),
        window_left=st.sampled_from([None, None, 0, 2]),
        scale=st.sampled_from([None, 0.0, -3.0, 1e6]),
        softcap=st.sampled_from([None, None, 0.5, 30.0, 2.0**-20]),
        alibi=st.sampled_from([None, "heads", "batch"]),
        bias=st.sampled_from([None, None, *BIASES]),
        sink=st.booleans(),
        dropout=st.sampled_from([None, None, 0.5, 0.1, 1.0]),
        lse_grad=st.booleans(),
        seed=st.integers(0, 99),
    ),
)
def test_balls_hold_the_mpmath_values_of_any_case(case):
    example = Problem(case)
    inputs = draw(example)
    assert_inside(case, inputs, ball.attention(case, inputs))


def test_a_value_outside_its_ball_is_noticed():
    example = PROBLEMS[0]
    arrays, enclosure = exact_arrays(example.case, draw(example)), exact(example)
    shifted = arrays["dq"].copy()
    shifted[0, 0, 1, 2] *= 1 + mpmath.mpf(2) ** -50
    assert len(outside(shifted, enclosure.mid.dq, enclosure.radius.dq, mpmath.mpf(1))) == 1


def test_gradients_are_those_of_autograd():
    """Differentiating the dense forward pass repeats each of the contract's steps, and its products, twice at most.

    Autograd has 1 - tanh² for a cap's slope: with tanh within 4u, the square and the difference rounded, it is absolutely
    within 2·4 + 1 + 1 units.
    """
    steps, slope_error = 2, 10 * FP64.unit_roundoff
    for example in PROBLEMS:
        case, inputs = example.case, draw(example).double()
        leaves = [x.requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
        out, lse = dense.forward(case, inputs)
        if lse.isinf().any():
            continue
        cotangents = [inputs.dout, torch.zeros_like(lse) if inputs.dlse is None else inputs.dlse]
        gradients = torch.autograd.grad([out, lse], leaves, cotangents)
        plain = draw(example)
        bound = end_to_end_bound(case, plain, exact(example).mid, slope_error)
        for name, gradient in zip(("dq", "dk", "dv"), gradients, strict=True):
            mid, radius, allowed = (getattr(x, name) for x in (exact(example).mid, exact(example).radius, bound))
            assert worst_ratio(gradient, mid, radius, steps * allowed) <= 1, (str(example), name)
