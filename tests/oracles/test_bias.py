"""Biases as tensors, masks and sinks in the oracles: closed forms, gradients that are autograd's, planted defects."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashverify.cases import dense_bias
from flashverify.cases.case import BIASES, MASKS, AttentionCase
from flashverify.cases.semantics import visible_mask
from flashverify.cases.tensors import TENSORS, has_gradients
from flashverify.dropout.of_case import kept_scalar
from flashverify.numerics.formats import FP64
from flashverify.oracles import ball, dense, mp, tiled
from tests.oracles.support import (
    PROBLEMS,
    Problem,
    draw,
    end_to_end_bound,
    feature_bound,
    forward_bound,
    problem,
    worst_ratio,
    worst_ratios,
)
from tests.oracles.test_alibi import altered, differs

FEATURED = [e for e in PROBLEMS if (e.case.bias is not None or e.case.sink) and e.case.batch and e.case.seqlen_q]
SEEING = [e for e in FEATURED if e.case.seqlen_k]

MPMATH_ERROR = 10.0 ** (10 - mp.DIGITS)
"""Where terms cancel, mpmath rounds too: by its last digits, in units of terms that are far below 10^10."""

every = pytest.mark.parametrize("oracle", [mp, ball, dense, tiled], ids=["mp", "ball", "dense", "tiled"])
rounded = pytest.mark.parametrize("oracle", [mp, dense, tiled], ids=["mp", "dense", "tiled"])


def any_case(mask: str, alibi: str | None, **fields) -> AttentionCase:
    return AttentionCase(mask=mask, alibi=None if mask == "causal-topleft" else alibi, **fields)


CASES = st.builds(
    any_case,
    dtype=st.sampled_from(["fp16", "bf16", "fp32", "fp64"]),
    batch=st.integers(0, 2),
    heads_q=st.sampled_from([2, 4]),
    heads_kv=st.sampled_from([1, 2]),
    seqlen_q=st.integers(0, 4),
    seqlen_k=st.integers(0, 4),
    head_dim=st.integers(1, 3),
    mask=st.sampled_from(MASKS),
    window_left=st.sampled_from([None, None, 0, 2]),
    scale=st.sampled_from([None, 0.0, -3.0, 100.0]),
    softcap=st.sampled_from([None, None, 0.5, 30.0]),
    alibi=st.sampled_from([None, "heads", "batch"]),
    bias=st.sampled_from([*BIASES, None]),
    sink=st.booleans(),
    lse_grad=st.booleans(),
    seed=st.integers(0, 99),
)


@settings(derandomize=True, max_examples=60, deadline=None, database=None)
@given(CASES)
def test_the_oracles_agree_on_any_case(case):
    """mpmath's numbers, rounded, are in the balls; float64's are within their bound of them, gradients of features too."""
    inputs = draw(Problem(case))
    enclosure = ball.attention(case, inputs)
    values, bound = mp.attention(case, inputs), end_to_end_bound(case, inputs, enclosure.mid)
    for name in TENSORS:
        value, mid, radius = (getattr(x, name) for x in (values, enclosure.mid, enclosure.radius))
        assert value.shape == mid.shape
        same = (value == mid) | ((value - mid).abs() <= radius + FP64.unit_roundoff * value.abs() + MPMATH_ERROR)
        assert same.all(), name
    for oracle in (dense, tiled):
        ratios = worst_ratios(oracle.attention(case, inputs), enclosure, bound)
        assert max(ratios.values()) <= 1, (oracle.__name__, ratios)
    found = {name for name, _ in tiled.attention(case, inputs).items()}
    expected = {name for name, has in zip(("dbias", "dsink"), has_gradients(inputs), strict=True) if has}
    assert found == {*TENSORS, *expected} == {name for name, _ in enclosure.mid.items()}


@pytest.mark.parametrize("example", [e for e in SEEING if e.case.bias != "mask" or e.case.sink], ids=str)
def test_gradients_of_biases_and_sinks_are_those_of_autograd(example):
    """Differentiating the dense forward pass, which is another code than that of the balls and of the tiled oracle.

    It repeats the contract's steps twice at most, as in `test_agreement`. A row that sees no key has an lse of -inf, which
    autograd can't differentiate: its cotangents are zero.
    """
    case, inputs = example.case, draw(example).double()
    if not case.sink and dense.forward(case, inputs)[1].isinf().any():
        case = case.replace(lse_grad=False)
        inputs.dlse = None
    leaves = {"dbias": inputs.bias, "dsink": inputs.sink}
    leaves = {name: x.requires_grad_() for (name, x), has in zip(leaves.items(), has_gradients(inputs), strict=True) if has}
    out, lse = dense.forward(case, inputs)
    given = ([out], [inputs.dout]) if inputs.dlse is None else ([out, lse], [inputs.dout, inputs.dlse])
    gradients = torch.autograd.grad(given[0], list(leaves.values()), given[1])
    for leaf in leaves.values():
        leaf.requires_grad_(False)
    enclosure = ball.attention(case, inputs)
    bound = end_to_end_bound(case, inputs, enclosure.mid)
    found = tiled.attention(case, inputs)
    for name, gradient in zip(leaves, gradients, strict=True):
        mid, radius, allowed = (getattr(x, name) for x in (enclosure.mid, enclosure.radius, bound))
        if example.stretch > 1:  # one-hot rows have no gradient
            assert worst_ratio(gradient, mid, radius, 2 * allowed) <= 1, name
            continue
        assert (mid != 0).any(), name
        assert worst_ratio(gradient, mid, radius, 2 * allowed) <= 1, name
        assert worst_ratio(getattr(found, name), mid, radius, allowed) <= 1, name
        assert worst_ratio(2 * gradient, mid, radius, 2 * allowed) > 1, name
        assert worst_ratio(-gradient, mid, radius, 2 * allowed) > 1, name


@pytest.mark.parametrize("example", FEATURED, ids=str)
def test_gradients_of_features_are_functions_of_the_given_out_and_lse(example):
    """Modular mode, against the formulas in mpmath: out and lse as a kernel might return them, far from the exact ones."""
    case, inputs = example.case, draw(example)
    exact = ball.attention(case, inputs).mid
    out, lse = exact.out.bfloat16(), exact.lse.float() + 2.0**-6
    found = tiled.feature_gradients(case, inputs, out, lse)
    bounds = feature_bound(case, inputs, out.double(), lse.double())
    for value, true, bound in zip(found, formulas(case, inputs, out, lse), bounds, strict=True):
        assert (value is None) == (true is None) == (bound is None)
        if value is not None:
            assert worst_ratio(value, true, FP64.unit_roundoff * true.abs(), bound) <= 1


def formulas(case, inputs, out, lse):
    """Dbias and dsink pair by pair, in mpmath, rounded to float64."""
    rows = (case.batch, case.heads_q, case.seqlen_q)
    of_keys, of_sink = np.full((*rows, case.seqlen_k), mpmath.mpf(0)), np.full((1, case.heads_q, 1), mpmath.mpf(0))
    bias, group = dense_bias.expanded(case, inputs), case.heads_q // case.heads_kv
    seen = visible_mask(case, torch.tensor(0), torch.arange(case.seqlen_q), torch.arange(case.seqlen_k))
    slopes = None if case.alibi is None else mp.alibi_scalar
    with mpmath.workdps(mp.DIGITS):
        q, k, v, dout, outs = (mp._exact(x) for x in (inputs.q, inputs.k, inputs.v, inputs.dout, out))
        scale = mpmath.mpf(case.softmax_scale)
        for b, h, i in np.ndindex(*rows):
            if lse[b, h, i] == -math.inf:
                continue
            one = mpmath.mpf(lse[b, h, i].item())
            rest = -mpmath.fdot(dout[b, h, i], outs[b, h, i])
            rest += 0 if inputs.dlse is None else mpmath.mpf(inputs.dlse[b, h, i].item())
            if inputs.sink is not None:
                of_sink[0, h, 0] += mpmath.exp(mpmath.mpf(inputs.sink[0, h, 0].item()) - one) * rest
            for j in range(case.seqlen_k if has_gradients(inputs)[0] else 0):
                if not seen[i, j] or bias[b, h, i, j] == -math.inf:
                    continue
                x = scale * mpmath.fdot(q[b, h, i], k[b, h // group, j])
                x = x if case.softcap is None else case.softcap * mpmath.tanh(x / case.softcap)
                x += (0 if slopes is None else slopes(case, b, h, i, j)) + mpmath.mpf(bias[b, h, i, j].item())
                kept = mp._rescale(case) if kept_scalar(case, b, h, i, j) else 0
                of_keys[b, h, i, j] = mpmath.exp(x - one) * (kept * mpmath.fdot(dout[b, h, i], v[b, h // group, j]) + rest)
        dbias = None
        if has_gradients(inputs)[0]:
            over = tuple(axis for axis, size in enumerate(inputs.bias.shape) if size == 1)
            dbias = mp._rounded(of_keys.sum(axis=over, keepdims=True) if over else of_keys)
    return dbias, None if inputs.sink is None else mp._rounded(of_sink)


@every
@pytest.mark.parametrize("bias", [*BIASES, None])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_weights_without_scores_are_those_of_the_biases(oracle, bias, softcap):
    """With scale 0: lse_i = ln(sum_j exp(bias_ij) + exp(sink)), and the sink alone where no pair is shown."""
    example = problem(5, 4, 2, bias=bias, sink=True, batch=2, heads_q=4, heads_kv=2, scale=0.0, softcap=softcap)
    case, inputs = example.case, draw(example)
    true = torch.empty(2, 4, 5, dtype=torch.float64)
    stored = dense_bias.expanded(case, inputs)
    with mpmath.workdps(mp.DIGITS):
        for (b, h, i), _ in np.ndenumerate(true.numpy()):
            row = [0.0] * 4 if stored is None else stored[b, h, i].tolist()
            kept = [0.0 if value is True else value for value in row if value is not False]
            terms = [mpmath.exp(mpmath.mpf(value)) for value in [*kept, inputs.sink[0, h, 0].item()]]
            true[b, h, i] = float(mpmath.log(mpmath.fsum(terms)))
    lse = oracle.forward(case, inputs)[1]
    found = lse.mid if oracle is ball else lse
    truth = ball.attention(case, inputs)
    allowed = FP64.unit_roundoff * true.abs() + truth.radius.lse
    if oracle in (dense, tiled):
        allowed = allowed + forward_bound(case, inputs, truth.mid.out, truth.mid.lse)[1]
    assert ((found - true).abs() <= allowed).all()


@every
@pytest.mark.parametrize("bias", ["hidden", "mask"])
@pytest.mark.parametrize("sink", [False, True])
def test_rows_that_see_no_key(oracle, bias, sink):
    """Out is 0 and lse the sink, or -inf; such a row gives q, the bias and keys no gradient, and its sink dlse."""
    example = problem(3, 4, 2, bias=bias, sink=sink, heads_q=2, lse_grad=True)
    case, inputs = example.case, draw(example)
    shown = dense_bias.shown(dense_bias.expanded(case, inputs))
    hidden = ~shown.any(-1)
    assert hidden[:, :, 1].all()
    assert not hidden.all()
    found = oracle.attention(case, inputs)
    found = found.mid if oracle is ball else found
    assert found.out[hidden].eq(0).all()
    expected = inputs.sink.double().expand(hidden.shape) if sink else torch.full_like(found.lse, -torch.inf)
    assert torch.equal(found.lse[hidden], expected[hidden])
    assert found.dq[hidden].eq(0).all()
    assert found.dq[~hidden].ne(0).any()
    inputs.q[:, :, 1], inputs.dout[:, :, 1] = torch.nan, torch.nan
    if oracle is not ball and not sink:
        poisoned = oracle.attention(case, inputs)
        assert torch.equal(poisoned.dk, found.dk)
        assert torch.equal(poisoned.dv, found.dv)
    if oracle in (ball, tiled) and bias == "hidden":
        assert found.dbias[~torch.isfinite(inputs.bias)].eq(0).all()
        assert found.dbias[:, :, 0].ne(0).any()


@pytest.mark.parametrize("module", [ball, tiled], ids=["ball", "tiled"])
def test_a_row_that_sees_its_sink_alone_gives_it_its_cotangent_of_lse(module):
    example = problem(3, 4, 2, "causal-topleft", bias="mask", sink=True, heads_q=2, lse_grad=True)
    case, inputs = example.case, draw(example)
    inputs.bias[:] = False
    found = module.attention(case, inputs)
    dsink = found.mid.dsink if module is ball else found.dsink
    torch.testing.assert_close(dsink, inputs.dlse.double().sum((0, 2))[None, :, None], rtol=1e-15, atol=0)


@rounded
def test_a_bias_of_zero_a_mask_that_shows_all_and_a_sink_far_below_change_nothing(oracle):
    example = problem(4, 5, 3, bias="full", heads_q=2, softcap=2.0, lse_grad=True)
    inputs = draw(example)
    inputs.bias[:] = 0.0
    plain = example.case.replace(bias=None)
    without = draw(Problem(plain))
    expected = oracle.attention(plain, without)
    shown = draw(Problem(plain.replace(bias="mask")))
    shown.bias[:] = True
    low = draw(Problem(plain.replace(sink=True)))
    low.sink[:] = -1e30
    for case, tensors in ((example.case, inputs), (plain.replace(bias="mask"), shown), (plain.replace(sink=True), low)):
        found = oracle.attention(case, tensors)
        for name in TENSORS:
            assert torch.equal(getattr(found, name), getattr(expected, name)), (case.id, name)


@every
@pytest.mark.parametrize(
    "example", [e for e in SEEING if e.stretch == 1 and e.case.scale != 0 and e.case.dropout != 1], ids=str
)
def test_biases_and_sinks_change_every_output(example, oracle):
    """By more than float64's bound and the radii of the true values, with and without them."""
    inputs, plain = draw(example), example.case.replace(bias=None, sink=False)
    with_them, without = ball.attention(example.case, inputs), ball.attention(plain, draw(Problem(plain)))
    found = oracle.attention(example.case, inputs)
    found = found.mid if oracle is ball else found
    bound = end_to_end_bound(example.case, inputs, with_them.mid)
    for name in TENSORS:
        true, other = getattr(with_them.mid, name), getattr(without.mid, name)
        near = getattr(bound, name) + getattr(with_them.radius, name) + getattr(without.radius, name)
        apart = (true - other).abs() > 2 * near
        assert apart.any(), name
        value = getattr(found, name)[apart]
        nearer = (value == true[apart]) | ((value - true[apart]).abs() < (value - other[apart]).abs())
        assert nearer.all(), name


@settings(derandomize=True, max_examples=60, deadline=None, database=None)
@given(CASES)
def test_scalar_and_vectorised_forms_are_equal(case):
    inputs = draw(Problem(case))
    block = dense_bias.expanded(case, inputs)
    assert (block is None) == (case.bias is None) == (dense_bias.shape(case) is None)
    if block is not None:
        assert tuple(inputs.bias.shape) == dense_bias.shape(case)
    for b, h, i, j in np.ndindex(case.batch, case.heads_q, case.seqlen_q, case.seqlen_k):
        place = (inputs, b, h, i, j)
        if block is None:
            assert dense_bias.shown_scalar(*place)
            assert dense_bias.added_scalar(*place) == 0.0
            continue
        shown = dense_bias.shown_scalar(*place)
        assert shown == bool(dense_bias.shown(block)[b, h, i, j])
        if shown:
            assert dense_bias.added_scalar(*place) == dense_bias.added(block)[b, h, i, j].item()


@settings(derandomize=True, max_examples=30, deadline=None, database=None)
@given(CASES.filter(lambda case: case.bias is not None))
def test_sums_over_what_a_bias_is_broadcast_over(case):
    pairs = (case.batch, case.heads_q, case.seqlen_q, case.seqlen_k)
    gradient = torch.arange(math.prod(pairs), dtype=torch.float64).reshape(pairs)
    summed = dense_bias.summed(case, gradient)
    assert tuple(summed.shape) == dense_bias.shape(case)
    true = torch.zeros(summed.shape, dtype=torch.float64)
    for place in np.ndindex(*pairs):
        true[tuple(0 if size == 1 else index for index, size in zip(place, true.shape, strict=True))] += gradient[place]
    assert torch.equal(summed, true)
    if summed.numel() and gradient.numel():
        assert dense_bias.summands(case) == gradient.numel() // summed.numel()


ADDED, SHOWN = "dense_bias.added_scalar(inputs, b, h, i, j)", "dense_bias.shown_scalar(inputs, b, h, i, j)"

WRONG = {
    "scaled": {ADDED: f"0.5 * {ADDED}"},
    "left out": {ADDED: "0"},
    "of the first head": {ADDED: "dense_bias.added_scalar(inputs, b, 0, i, j)"},
    "of the first entry": {ADDED: "dense_bias.added_scalar(inputs, 0, h, i, j)"},
}

INVERTED = {SHOWN: f"not {SHOWN}"}

BEFORE_THE_CAP = {
    mp: {
        f"s[j] + {ADDED}": "s[j]",
        "capped_scalar(case, scale * mpmath.fdot(q[b, h, i], k[b, g, j]), mpmath.tanh)": (
            f"capped_scalar(case, scale * mpmath.fdot(q[b, h, i], k[b, g, j]) + {ADDED}, mpmath.tanh)"
        ),
        f"s += {ADDED}": "s += 0",
        "capped_scalar(case, x, mpmath.tanh)": f"capped_scalar(case, x + {ADDED}, mpmath.tanh)",
    },
    ball: {"_entrywise(x, lambda entry: capped": "_entrywise(x + head.bias, lambda entry: capped", "s + head.bias": "s"},
}

WITHOUT_SINK = {
    mp: {"for x in (*s.values(), *sink)": "for x in s.values()"},
    ball: {"sum([*terms, *((one - point).exp() for one in sink)], arb(0))": "sum(terms, arb(0))"},
}

PLANTED = problem(3, 5, 2, bias="full", sink=True, batch=2, heads_q=4, heads_kv=2, softcap=1.5, lse_grad=True)
MASKED = problem(3, 5, 2, bias="mask", batch=2, heads_q=4, heads_kv=2, lse_grad=True)

exact = pytest.mark.parametrize("module", [mp, ball], ids=["mp", "ball"])


@exact
@pytest.mark.parametrize("defect", [*WRONG, "before the cap", "sink left out"])
def test_planted_defects_show(module, defect):
    others = {"before the cap": BEFORE_THE_CAP, "sink left out": WITHOUT_SINK}
    changes = others[defect][module] if defect in others else WRONG[defect]
    assert differs(PLANTED, changes, module) == set(TENSORS)


@exact
def test_an_inverted_mask_shows(module):
    """What False adds is -inf, so that other outputs become infinite, or nothing that compares."""
    assert differs(MASKED, INVERTED, module) >= {"out", "dq"}


@exact
@pytest.mark.parametrize("example", [PLANTED, MASKED], ids=str)
def test_unaltered_source_agrees(module, example):
    assert differs(example, {}, module) == set()


FEATURE_DEFECTS = {
    "dbias behind the cap": ("of_logits.append(ds[-1])", "of_logits.append(ds[-1] * slope[i, j] if seen else ds[-1])", "dbias"),
    "dsink of the wrong sign": ("(head.dlse[i] - delta)", "(delta - head.dlse[i])", "dsink"),
    "dsink without dlse": ("(head.dlse[i] - delta)", "(-delta)", "dsink"),
    "dsink without delta": ("(head.dlse[i] - delta)", "head.dlse[i]", "dsink"),
    "a sum that is no ulp wide": (
        "math.fsum(line) for line in lines([part.mid",
        "sum(line[:1]) for line in lines([part.mid",
        "",
    ),
}


@pytest.mark.parametrize("defect", FEATURE_DEFECTS)
def test_planted_defects_of_the_balls_gradients_show(defect):
    """Against the tiled oracle, within its bound."""
    right, wrong, name = FEATURE_DEFECTS[defect]
    inputs = draw(PLANTED)
    found = altered(ball, {right: wrong}).attention(PLANTED.case, inputs)
    bound = end_to_end_bound(PLANTED.case, inputs, ball.attention(PLANTED.case, inputs).mid)
    ratios = worst_ratios(tiled.attention(PLANTED.case, inputs), found, bound)
    assert {key for key, ratio in ratios.items() if ratio > 1} == ({name} if name else {"dsink"})
