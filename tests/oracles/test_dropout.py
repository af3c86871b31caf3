"""Dropout in the oracles: closed forms, rates at which nothing or everything is dropped, gradients, and planted defects."""

from __future__ import annotations

import inspect
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from flashverify.cases.strategies import cases
from flashverify.cases.tensors import TENSORS
from flashverify.dropout.of_case import exact_rescale, kept, kept_scalar, rescale
from flashverify.oracles import ball, dense, mp, tiled
from tests.oracles.differences import disagreements
from tests.oracles.support import PROBLEMS, Problem, draw, end_to_end_bound, problem, worst_ratio

every = pytest.mark.parametrize("oracle", [mp, ball, dense, tiled], ids=["mp", "ball", "dense", "tiled"])

SMOOTH = problem(3, 5, 2, dropout=0.4, heads_q=2, lse_grad=True)


def values(oracle, case, inputs):
    found = oracle.attention(case, inputs)
    return found.mid if oracle is ball else found


def test_gradients_are_finite_differences_of_the_forward_pass():
    assert disagreements(SMOOTH) == set()


def test_finite_differences_see_dropout_that_the_backward_pass_lacks():
    def without(case, *tensors):
        return mp.exact_backward(case.replace(dropout=None), *tensors)

    assert disagreements(SMOOTH, without) == {"dq", "dk", "dv"}


@settings(deadline=None, max_examples=50)
@given(cases(max_elements=200, dropouts=(0.0, 0.1, 0.5, 1.0)))
def test_scalar_and_vectorised_masks_are_equal(case):
    entries, heads = torch.arange(case.batch)[:, None, None, None], torch.arange(case.heads_q)[:, None, None]
    found = kept(case, entries, heads, torch.arange(case.seqlen_q)[:, None], torch.arange(case.seqlen_k))
    assert found is not None
    shape = (case.batch, case.heads_q, case.seqlen_q, case.seqlen_k)
    assert found.shape == shape
    assert found.flatten().tolist() == [kept_scalar(case, *place) for place in np.ndindex(*shape)]
    assert rescale(case) == float(exact_rescale(case))


@every
def test_equal_weights_give_the_mean_of_what_is_kept(oracle):
    """With scale 0 and a power of two of keys: out = r / n times the sum of the kept values, integers."""
    case = problem(6, 16, 2, dtype="fp64", dropout=0.5, batch=2, heads_q=2, scale=0.0, seed=1).case
    inputs = draw(Problem(case))
    inputs.v = torch.arange(inputs.v.numel(), dtype=torch.float64).reshape(inputs.v.shape)
    found = values(oracle, case, inputs).out
    for b, h, i in np.ndindex(*found.shape[:3]):
        keys = [j for j in range(16) if kept_scalar(case, b, h, i, j)]
        assert found[b, h, i].tolist() == (inputs.v[b, 0, keys].sum(0) * 2 / 16).tolist()


@every
def test_a_rate_of_zero_drops_nothing(oracle):
    example = problem(5, 6, 3, "causal", dropout=0.0, heads_q=2, lse_grad=True)
    inputs = draw(example)
    with_rate, without = (values(oracle, case, inputs) for case in (example.case, example.case.replace(dropout=None)))
    for name in TENSORS:
        assert torch.equal(getattr(with_rate, name), getattr(without, name)), name


@every
def test_a_rate_of_one_leaves_lse_and_what_its_cotangent_gives(oracle):
    example = problem(5, 6, 3, "causal", dropout=1.0, heads_q=2, lse_grad=True)
    inputs = draw(example)
    found = values(oracle, example.case, inputs)
    inputs.dout = torch.zeros_like(inputs.dout)
    without = values(oracle, example.case.replace(dropout=None), inputs)
    assert not found.out.any()
    assert not found.dv.any()
    for name in ("lse", "dq", "dk"):
        assert torch.equal(getattr(found, name), getattr(without, name)), name


@pytest.mark.parametrize("seed", [0, 1])
def test_masks_do_not_depend_on_what_is_beyond_a_sequence(seed):
    """A batch of dense sequences and the same sequences with lengths have the same bits."""
    case = problem(5, 6, 3, dropout=0.3, batch=4, lengths="ragged", heads_q=2, seed=seed).case
    dense_case = case.replace(lengths=None)
    assert all(kept_scalar(case, *p) == kept_scalar(dense_case, *p) for p in np.ndindex(4, 2, 5, 6))


SCALAR = "kept_scalar(case, b, h, i, j)"

DEFECTS = [
    (ball, SCALAR, "kept_scalar(case, b, h, j, i)"),
    (ball, SCALAR, "kept_scalar(case, 0, h, i, j)"),
    (ball, SCALAR, "kept_scalar(case, b, key_head(case, h), i, j)"),
    (
        ball,
        "(_kept(arb_mat(s.nrows(), s.ncols(), weights), head) * head.v) * factor",
        "arb_mat(s.nrows(), s.ncols(), weights) * head.v",
    ),
    (ball, "_kept(head.dout * head.v.transpose(), head) * factor", "_kept(head.dout * head.v.transpose(), head)"),
    (ball, "(_kept(p, head).transpose() * head.dout) * factor", "(p.transpose() * head.dout) * factor"),
    (ball, "arb(exact.numerator) / arb(exact.denominator)", "1 / (1 - arb(case.dropout or 0))"),
    (mp, f"(factor if {SCALAR} else 0) for j in keys", "factor for j in keys"),
    (mp, "kept = factor if", "kept = 1 if"),
    (mp, "(p * kept)", "p"),
    (mp, "- delta + dlse[b, h, i])", "- kept * delta + dlse[b, h, i])"),
    (mp, "mpmath.mpf(exact.numerator) / exact.denominator", "1 / (1 - mpmath.mpf(case.dropout or 0))"),
]

WITH_DROPOUT = [e for e in PROBLEMS if e.case.dropout not in (None, 1.0) and e.case.batch and e.case.seqlen_k]


def worst(module, source: str, monkeypatch) -> float:
    """How far an oracle with that source is from the unaltered balls, in units of what float64 may be."""
    altered = types.ModuleType(f"{module.__name__}_altered")
    monkeypatch.setitem(sys.modules, altered.__name__, altered)  # where dataclasses look their module up
    exec(compile(source, altered.__name__, "exec"), altered.__dict__)
    found = 0.0
    for example in WITH_DROPOUT:
        case, inputs = example.case, draw(example)
        truth = ball.attention(case, inputs)
        bound = end_to_end_bound(case, inputs, truth.mid)
        got = values(altered, case, inputs) if module is mp else altered.attention(case, inputs).mid
        for name in TENSORS:
            mid, radius, allowed = (getattr(x, name) for x in (truth.mid, truth.radius, bound))
            found = max(found, worst_ratio(getattr(got, name), mid, radius, allowed))
    return found


@pytest.mark.parametrize(("module", "right", "wrong"), DEFECTS, ids=[f"{m.__name__[-4:]}:{w}" for m, _, w in DEFECTS])
def test_planted_defects_show(module, right, wrong, monkeypatch):
    source = inspect.getsource(module)
    assert source.count(right) >= 1, "the defect's place is gone: plant it anew"
    assert worst(module, source.replace(right, wrong), monkeypatch) > 1


@pytest.mark.parametrize("module", [ball, mp], ids=["ball", "mp"])
def test_unaltered_source_agrees(module, monkeypatch):
    assert worst(module, inspect.getsource(module), monkeypatch) <= 1
