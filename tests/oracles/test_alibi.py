"""Linear biases in the oracles: closed forms, gradients that are those of the forward pass, and planted defects of each."""

from __future__ import annotations

import inspect
import types

import mpmath
import numpy as np
import pytest
import torch

from flashverify.cases.semantics import alibi_slopes, key_head
from flashverify.cases.tensors import TENSORS
from flashverify.numerics.formats import FP64
from flashverify.oracles import ball, dense, mp, tiled
from tests.oracles.differences import disagreements
from tests.oracles.support import PROBLEMS, draw, end_to_end_bound, forward_bound, problem

BIASED = [e for e in PROBLEMS if e.case.alibi is not None and e.case.batch and e.case.seqlen_k]

SMOOTH = problem(3, 4, 2, softcap=1.5, alibi="heads", heads_q=2, lse_grad=True)

every = pytest.mark.parametrize("oracle", [mp, ball, dense, tiled], ids=["mp", "ball", "dense", "tiled"])


def test_gradients_are_finite_differences_of_the_forward_pass():
    assert disagreements(SMOOTH) == set()


def test_finite_differences_see_a_bias_that_the_backward_pass_lacks():
    def without(case, *tensors):
        return mp.exact_backward(case.replace(alibi=None), *tensors)

    assert disagreements(SMOOTH, without) == {"dq", "dk", "dv"}


@every
@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(5, 5), (3, 6), (6, 3)])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_weights_without_scores_are_those_of_the_distance(oracle, seqlen_q, seqlen_k, softcap):
    """With scale 0: lse_i = ln sum_j exp(-slope·|i + seqlen_k - seqlen_q - j|); the last query stands at the last key."""
    example = problem(
        seqlen_q, seqlen_k, 2, dtype="fp64", alibi="batch", batch=2, heads_q=4, heads_kv=2, scale=0.0, softcap=softcap
    )
    case, inputs = example.case, draw(example)
    true = torch.empty(2, 4, seqlen_q, dtype=torch.float64)
    with mpmath.workdps(mp.DIGITS):
        for (b, h, i), _ in np.ndenumerate(true.numpy()):
            slope = mpmath.mpf(alibi_slopes(case)[b][h])
            exact = (mpmath.exp(-slope * abs(seqlen_q - 1 - i - (seqlen_k - 1 - j))) for j in range(seqlen_k))
            true[b, h, i] = float(mpmath.log(mpmath.fsum(exact)))
    lse = oracle.forward(case, inputs)[1]
    found = lse.mid if oracle is ball else lse
    truth = ball.attention(case, inputs)
    allowed = FP64.unit_roundoff * true.abs() + truth.radius.lse
    if oracle in (dense, tiled):
        allowed = allowed + forward_bound(case, inputs, truth.mid.out, truth.mid.lse)[1]
    assert ((found - true).abs() <= allowed).all()


@pytest.mark.parametrize("example", BIASED, ids=str)
@every
def test_a_bias_changes_every_output(example, oracle):
    """By more than float64's bound and the radii of the true values, with and without it."""
    inputs, unbiased = draw(example), example.case.replace(alibi=None)
    with_bias, without = ball.attention(example.case, inputs), ball.attention(unbiased, inputs)
    found = oracle.attention(example.case, inputs)
    found = found.mid if oracle is ball else found
    bound, changed = end_to_end_bound(example.case, inputs, with_bias.mid), set()
    for name in TENSORS:
        true, other = getattr(with_bias.mid, name), getattr(without.mid, name)
        near = getattr(bound, name) + getattr(with_bias.radius, name) + getattr(without.radius, name)
        apart = (true - other).abs() > 2 * near
        value = getattr(found, name)[apart]
        assert ((value - true[apart]).abs() < (value - other[apart]).abs()).all(), name
        changed |= {name} if apart.any() else set()
    assert "lse" in changed
    assert len(changed) == len(TENSORS) or example.stretch > 1 or example.case.scale == 0  # one-hot rows; dq and dk are 0


@pytest.mark.parametrize("oracle", [mp, dense, tiled], ids=["mp", "dense", "tiled"])
def test_a_head_whose_slope_is_zero_is_as_without_a_bias(oracle):
    example = problem(4, 5, 3, alibi="heads", heads_q=3, heads_kv=3, softcap=2.0, lse_grad=True)
    case, inputs = example.case, draw(example)
    assert [slope == 0 for slope in alibi_slopes(case)[0]] == [False, True, False]
    biased, plain = oracle.attention(case, inputs), oracle.attention(case.replace(alibi=None), inputs)
    for name in TENSORS:
        assert torch.equal(getattr(biased, name)[:, 1], getattr(plain, name)[:, 1]), name
        assert not torch.equal(getattr(biased, name)[:, 2], getattr(plain, name)[:, 2]), name


CALL = "alibi_scalar(case, b, h, i, j)"

OFFSET = "case.seqlen_k - case.seqlen_q"

WRONG = {
    "sign": {CALL: f"-{CALL}"},
    "signed distance": {CALL: f"{CALL} * (1 if j <= i + {OFFSET} else -1)"},
    "top-left": {CALL: f"alibi_scalar(case, b, h, i, j + {OFFSET})"},
    "slope of the key head": {CALL: "alibi_scalar(case, b, key_head(case, h), i, j)"},
    "slopes of the first entry": {CALL: "alibi_scalar(case, 0, h, i, j)"},
    "left out": {CALL: "0"},
}

BEFORE_THE_CAP = {
    mp: {
        f"s[j] + {CALL}": "s[j]",
        "capped_scalar(case, scale * mpmath.fdot(q[b, h, i], k[b, g, j]), mpmath.tanh)": (
            f"capped_scalar(case, scale * mpmath.fdot(q[b, h, i], k[b, g, j]) + {CALL}, mpmath.tanh)"
        ),
        f"s += {CALL}": "s += 0",
        "capped_scalar(case, x, mpmath.tanh)": f"capped_scalar(case, x + {CALL}, mpmath.tanh)",
    },
    ball: {"_entrywise(x, lambda entry: capped": "_entrywise(x + head.bias, lambda entry: capped", "s + head.bias": "s"},
}


def altered(module: types.ModuleType, changes: dict[str, str]) -> types.ModuleType:
    """The module with parts of its source replaced."""
    source = inspect.getsource(module)
    for right, wrong in changes.items():
        assert right in source, "the defect's place is gone: plant it anew"
        source = source.replace(right, wrong)
    found = types.ModuleType(module.__name__)  # the name of a module that exists, which dataclasses look up
    exec(compile(source, module.__name__, "exec"), found.__dict__)
    return found


def differs(example, changes: dict[str, str], module: types.ModuleType) -> set[str]:
    """The outputs of which mpmath's value, rounded, is outside its ball, when one of the two has a defect."""
    inputs, wrong = draw(example), altered(module, changes)
    values = (wrong if module is mp else mp).attention(example.case, inputs)
    enclosure = (wrong if module is ball else ball).attention(example.case, inputs)
    found = set()
    for name in TENSORS:
        value, mid = getattr(values, name), getattr(enclosure.mid, name)
        slack = getattr(enclosure.radius, name) + FP64.unit_roundoff * value.abs() + FP64.smallest_normal
        if ((value - mid).abs() > slack).any():
            found.add(name)
    return found


PLANTED = problem(3, 5, 2, alibi="batch", batch=2, heads_q=4, heads_kv=2, softcap=1.5, lse_grad=True)


@pytest.mark.parametrize("module", [mp, ball], ids=["mp", "ball"])
@pytest.mark.parametrize("defect", [*WRONG, "before the cap"])
def test_planted_defects_show(module, defect):
    assert key_head(PLANTED.case, 1) != 1
    changes = BEFORE_THE_CAP[module] if defect == "before the cap" else WRONG[defect]
    assert differs(PLANTED, changes, module) == set(TENSORS)


@pytest.mark.parametrize("module", [mp, ball], ids=["mp", "ball"])
def test_unaltered_source_agrees(module):
    assert differs(PLANTED, {}, module) == set()
