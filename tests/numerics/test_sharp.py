"""The sharp model against simulated kernels without a defect, and where it does not apply."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from flashverify.cases.case import AttentionCase
from flashverify.cases.regimes import draw
from flashverify.cases.tensors import Inputs
from flashverify.checks.examination import Examination
from flashverify.checks.views import View, views
from flashverify.dropout.of_case import rescale
from flashverify.numerics import sharp
from flashverify.numerics.dots import SplitProducts, TensorCore
from flashverify.numerics.formats import BF16, TF32
from flashverify.numerics.moments import INVERSE_SIGNIFICAND
from flashverify.numerics.sharp import factor, inapplicable, inapplicable_to
from flashverify.oracles import dense
from tests.numerics.simulated import HONEST, SimulatedKernel, sharp_contract_of
from tests.numerics.simulator import Options

ROUNDOFF = 2.0**-40
"""For quantities that are equal but for float64 operations: thousands of them."""

RATE = 1e-6
"""Of false alarms by one tensor of a test."""

CASE = AttentionCase(dtype="bf16", seqlen_q=80, seqlen_k=144, head_dim=32)
SINGLE = CASE.replace(dtype="fp32")
HALF = CASE.replace(dtype="fp16")

FAULTLESS = {
    "fp16": (HALF, {}),
    "bf16": (CASE, {}),
    "fp32": (SINGLE, {}),
    "fp32 in one block": (SINGLE, {"block_k": None}),
    "bf16 in any order": (CASE, {"dot": "any-order"}),
    "fused": (CASE, {"exponent": "fused"}),
    "scaled": (HALF, {"exponent": "scaled"}),
    "fp32, scaled": (SINGLE, {"exponent": "scaled"}),
    "from the right": (CASE.replace(regime="large"), {"direction": "right"}),
    "blocks of 16": (CASE.replace(regime="large"), {"block_k": 16}),
    "blocks of 64": (HALF.replace(regime="large"), {"block_k": 64}),
    "blocks of 48 in two runs": (CASE.replace(regime="large"), {"block_k": 48, "splits": 2}),
    "fp32, three runs from the right": (SINGLE.replace(regime="large"), {"direction": "right", "splits": 3}),
    "causal": (CASE.replace(mask="causal", seqlen_q=144), {}),
    "fp32, causal": (SINGLE.replace(mask="causal", seqlen_q=144), {}),
    "grouped heads": (HALF.replace(heads_q=4, heads_kv=2, seqlen_q=40), {}),
    "fp32, one cotangent more": (SINGLE.replace(lse_grad=True), {}),
    "values with an offset": (HALF.replace(regime="offset-values"), {}),
    "fp32, values with an offset": (SINGLE.replace(regime="offset-values"), {}),
    "soft cap": (CASE.replace(softcap=2.0), {"cap_slope": "sech"}),
    "soft cap, slope of the rounded tanh": (HALF.replace(softcap=1.0), {"cap_slope": "tanh"}),
    "fp32, soft cap": (SINGLE.replace(softcap=2.0), {"cap_slope": "sech"}),
    "fp32, low soft cap, causal": (SINGLE.replace(softcap=0.5, mask="causal", seqlen_q=144), {"cap_slope": "tanh"}),
    "fp32, soft cap, large": (SINGLE.replace(softcap=15.0, regime="large"), {"cap_slope": "sech"}),
    "dropout": (CASE.replace(dropout=0.1), {}),
    "dropout in fp16, half of the pairs": (HALF.replace(dropout=0.5), {"rescaled_out": "product"}),
    "dropout, nine in ten, causal": (CASE.replace(dropout=0.9, mask="causal", seqlen_q=144), {"fused_difference": True}),
    "fp32, dropout": (SINGLE.replace(dropout=0.17), {"rescaled_out": "factor", "fused_difference": True}),
    "fp32, dropout, soft cap, one cotangent more": (
        SINGLE.replace(dropout=0.2, softcap=2.0, lse_grad=True),
        {"cap_slope": "sech"},
    ),
    "dropout, large": (HALF.replace(regime="large", dropout=0.17, heads_q=2), {"direction": "right"}),
    "fp32, dropout, values with an offset": (SINGLE.replace(regime="offset-values", dropout=0.5), {}),
    "dropout at a rate of 0": (CASE.replace(dropout=0.0), {}),
    "gradients that vanish": (HALF.replace(regime="tiny"), {}),
}


def looked_at(case: AttentionCase, options: Options, **stated: object) -> dict[str, View]:
    """Every tensor of a simulated kernel, modular."""
    return {view.tensor: view for view in views(Examination(SimulatedKernel(options, **stated), case))}


def headroom(view: View) -> float:
    allowed = view.spread.allowed(view.truth, view.stored, factor(view.truth.numel(), RATE))
    return float((view.error().abs() / allowed).max())


def scores(view: View) -> np.ndarray:
    return (view.error() / view.spread.size(view.truth, view.stored)).numpy()


@pytest.mark.parametrize("name", FAULTLESS)
def test_errors_of_a_faultless_kernel_are_as_predicted(name: str) -> None:
    case, options = FAULTLESS[name]
    for tensor, view in looked_at(case, dataclasses.replace(HONEST[case.dtype], **options)).items():
        assert headroom(view) <= 1.0, tensor
        z = scores(view)
        rms = math.sqrt(np.mean(z**2))
        rounded = case.dtype != "fp32" and tensor != "lse"
        explained = float((view.spread.bias / view.spread.size(view.truth, view.stored)).square().mean().sqrt())
        assert rms <= 1.15 + explained, tensor
        if rounded and case.regime == "normal":
            assert rms >= 0.9, tensor


def test_the_rounded_factor_of_dropout_is_a_bias() -> None:
    """1 / 0.9 is off by 0.29 u in float32, in out, dv and dP alike: a direction that all elements have in common."""
    case = SINGLE.replace(dropout=0.1)
    exact = dataclasses.replace(HONEST["fp32"], dot="any-order")
    factor = rescale(case)
    error = abs(float(np.float32(factor)) / factor - 1.0)
    assert 0.1 * 2.0**-24 < error < 2.0**-24
    found, without = (looked_at(c, exact) for c in (case, case.replace(dropout=0.0)))
    for tensor in ("out", "dv"):
        bias = found[tensor].spread.bias
        assert (bias >= error * found[tensor].truth.abs()).all(), tensor
    assert (without["dv"].spread.bias < found["dv"].spread.bias).double().mean() > 0.5


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_dropped_weights_have_no_cast_error_and_all_else_scales_with_the_factor(dropout: float) -> None:
    """For values of 1 alone: out's deviation is that of the kept weights' casts, times the factor, and of the row sum."""
    case = CASE.replace(dropout=dropout)
    inputs = draw(case)
    inputs.v = torch.ones_like(inputs.v)
    plain = case.replace(dropout=None)
    out, lse = dense.forward(case, inputs)
    contract = HONEST_CONTRACT
    casts = sharp.forward_spread(case, inputs, out, lse, contract).out.casts[..., 0]
    all_casts = sharp.forward_spread(plain, inputs, torch.ones_like(out), lse, contract).out.casts[..., 0]
    share = (casts / rescale(case)).square() / all_casts.square()
    assert abs(float(share.mean()) - (1 - dropout)) < 0.05
    assert float(share.max()) <= 1.0 + ROUNDOFF


@pytest.mark.parametrize("stated", [{"block_k": 16}, {"direction": "right"}, {"splits": 2}])
def test_a_wrong_walk_is_seen(stated: dict[str, object]) -> None:
    """With large logits which weights are exactly 1 follows from the walk: another walk's errors are impossible.

    Coarser blocks than the kernel's leave fewer weights exact than there are, and are not seen: the finest that fit are right.
    """
    case = CASE.replace(regime="large", seqlen_k=512, head_dim=64)
    assert headroom(looked_at(case, HONEST["bf16"])["out"]) <= 1.0
    assert headroom(looked_at(case, HONEST["bf16"], **stated)["out"]) > 1.0


def shrinkage(view: View) -> tuple[float, float]:
    """Student's t of the rows' mean score in the direction of the truth, and what the bias explains of it."""
    size = view.spread.size(view.truth, view.stored)
    signed = (view.error() / size * view.truth.sign()).flatten(0, 2).mean(1)
    error = float(signed.std()) / math.sqrt(len(signed))
    return float(signed.mean()) / error, float((view.spread.bias / size).mean()) / error


@pytest.mark.parametrize("exponent", ["shifted", "scaled"])
def test_the_rounded_constant_log2e_is_a_bias_of_the_backward_pass(exponent: str) -> None:
    """It was not counted: a faultless float32 kernel with nearly equal logits had a t of 14 in dv, against 8 accepted.

    Every weight of a row is off by (x - lse)·2.8 10^-8 then, in one direction.
    """
    options = Options(dot="any-order", exponent=exponent, exp2_ulps=0, block_k=64)
    found = looked_at(SINGLE.replace(seqlen_q=256, seqlen_k=256, regime="normal-small"), options)
    for tensor in ("dq", "dk", "dv"):
        t, explained = shrinkage(found[tensor])
        assert abs(t) <= 5.0 + explained, tensor
    if exponent == "shifted":
        assert shrinkage(found["dv"])[0] > 8.0  # the test would see it missing


def test_the_mean_error_of_the_exponential_does_not_add_up_in_magnitude() -> None:
    """Weights have it in common: it cancels in out, and scales gradients. It was counted by sums of magnitudes.

    Those above half of the maximum need not have it: an H200's exp2 errs by -0.63 ulp in the mean, but by -0.44 to 0.08 near 0.
    """
    case = SINGLE.replace(seqlen_k=256)
    options = HONEST["fp32"]
    without, with_mean = (looked_at(case, options, exp2_mean_ulps=mean) for mean in (0.0, -0.5))
    for tensor in ("dq", "dk", "dv"):
        added = with_mean[tensor].spread.bias - without[tensor].spread.bias
        assert torch.allclose(
            added, 0.5 * 2.0**-23 * INVERSE_SIGNIFICAND * with_mean[tensor].truth.abs(), rtol=2.0**-20, atol=0.0
        )
    added = with_mean["out"].spread.bias - without["out"].spread.bias
    assert float(added.mean()) < 0.2 * 0.5 * 2.0**-23 * INVERSE_SIGNIFICAND


def test_dk_has_errors_that_all_keys_share() -> None:
    """A query row's delta is wrong for all keys alike: with an offset of v that is most of dk's error in float32.

    Rows of dk then are not independent: t reached 11.9 in 24 draws, against 9.1 accepted.
    """
    found = looked_at(SINGLE.replace(regime="offset-values"), HONEST["fp32"])
    share = (found["dk"].spread.shared / found["dk"].spread.deviation).square()
    assert 0.02 < float(share.mean()) < 1.0
    assert (found["dv"].spread.shared == 0.0).all()
    assert found["dq"].spread.shared is None


def test_rescaling_factors_of_two_runs_are_independent() -> None:
    """Halves that mirror each other: errors of their factors cancelled in the prediction, as if they were the same ones."""
    half = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    keys = torch.cat([half, half])[None, None]
    values = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)[None, None, :, None]
    case = AttentionCase(dtype="fp32", seqlen_q=1, seqlen_k=4, head_dim=1, scale=1.0)
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    inputs = Inputs(q=one, k=keys, v=values, dout=one, dlse=None)
    contract = dataclasses.replace(sharp_contract_of("fp32", HONEST["fp32"]), block_k=1, splits=2, exp2_rms_ulps=1e4)
    lse = torch.logsumexp(keys[..., 0], -1, keepdim=True)
    with_factors = sharp.forward_spread(case, inputs, 0.0 * one, lse, contract).out.deviation
    without = sharp.forward_spread(
        case, inputs, 0.0 * one, lse, dataclasses.replace(contract, block_k=None, splits=1)
    ).out.deviation
    assert float(with_factors) > 1.2 * float(without)


HONEST_CONTRACT = sharp_contract_of("bf16", HONEST["bf16"])

UNTOLD = {
    "operands are rounded to tf32": (CASE, {"operand": TF32}),
    "products are made of pieces in bf16": (CASE, {"dot": SplitProducts(TensorCore(16, 2), BF16, 3)}),
    "q or k is scaled and rounded": (CASE, {"prescaled": True}),
    "the walk over key blocks is not known": (CASE, {"block_k_exact": False}),
    "dropout's factor is folded into P": (CASE.replace(dropout=0.1), {"rescale": "folded"}),
    "no pair of a query and a key": (CASE.replace(seqlen_k=0), {}),
    "no pair": (CASE.replace(seqlen_q=0), {}),
    "all logits are 0": (CASE.replace(scale=0.0), {}),
    "logits repeat within a row": (CASE.replace(regime="repeated-maximum"), {}),
    "logits repeat": (CASE.replace(regime="equal-logits"), {}),
    "biases alone": (CASE.replace(heads_q=2, mask="causal", seqlen_q=128, alibi="heads", scale=1e-5), {}),
    "biases alone tell": (CASE.replace(heads_q=2, mask="causal", seqlen_q=128, alibi="heads", scale=0.0), {}),
    "weights of a row differ by less than a spacing": (CASE.replace(scale=1e-6), {}),
    "weights of a row differ by less than a spacing: they are": (SINGLE.replace(scale=1e-9), {}),
}


@pytest.mark.parametrize("reason", UNTOLD)
def test_the_model_says_where_it_says_nothing(reason: str) -> None:
    case, fields = UNTOLD[reason]
    found = inapplicable(case, draw(case), dataclasses.replace(HONEST_CONTRACT, **fields))
    assert found is not None
    assert found.startswith(reason)


def test_repeated_queries_repeat_logits_within_a_column() -> None:
    inputs = draw(CASE)
    inputs.q = inputs.q[:, :, :1].expand_as(inputs.q)
    found = inapplicable(CASE, inputs, HONEST_CONTRACT)
    assert found is not None
    assert found.startswith("logits repeat within a column")


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_repeated_keys_are_found_wherever_they_stand(dtype: str) -> None:
    """Their scores are summed in another order at the edge of a matrix: equal inputs may give scores that are not."""
    case = CASE.replace(dtype=dtype, seqlen_k=131, head_dim=96)
    inputs = draw(case)
    inputs.k[:, :, 120:] = inputs.k[:, :, :11]
    assert inapplicable(case, inputs, sharp_contract_of(dtype, HONEST[dtype])) is not None


def test_logits_that_coincide_by_chance_do_not_count() -> None:
    """bfloat16 has few numbers: 2,048 keys of 16 features hold equal logits in every draw, and were refused for it."""
    case = CASE.replace(seqlen_q=16, seqlen_k=2048, head_dim=16)
    inputs = draw(case)
    ordered = (inputs.q.double() @ inputs.k.double().mT).sort(-1).values
    assert (ordered[..., 1:] == ordered[..., :-1]).any()
    assert inapplicable(case, inputs, HONEST_CONTRACT) is None


def test_an_ordinary_case_has_no_reason() -> None:
    assert inapplicable(CASE, draw(CASE), HONEST_CONTRACT) is None
    assert inapplicable(CASE.replace(mask="causal"), draw(CASE), HONEST_CONTRACT) is None
    assert inapplicable(CASE.replace(dropout=0.1), draw(CASE), HONEST_CONTRACT) is None
    assert inapplicable(CASE, draw(CASE), dataclasses.replace(HONEST_CONTRACT, rescale="folded")) is None


def test_partials_of_a_group_concern_its_keys_alone() -> None:
    grouped = CASE.replace(heads_q=4, heads_kv=2)
    partial = dataclasses.replace(HONEST_CONTRACT, group_partials=True)
    reasons = {tensor: inapplicable_to(tensor, grouped, partial) for tensor in ("out", "lse", "dq", "dk", "dv")}
    assert [tensor for tensor, reason in reasons.items() if reason] == ["dk", "dv"]
    assert inapplicable_to("dk", CASE, partial) is None
    assert inapplicable_to("dk", grouped, HONEST_CONTRACT) is None


@pytest.mark.parametrize("dropout", [None, 0.3])
def test_tiles_change_nothing(dropout: float | None) -> None:
    case = CASE.replace(heads_q=4, heads_kv=2, seqlen_q=20, mask="causal", dropout=dropout)
    inputs = draw(case)
    examination = Examination(SimulatedKernel(), case)
    truth = next(views(examination)).truth
    lse = {view.tensor: view.truth for view in views(examination)}["lse"]
    whole, tiled = (sharp.forward_spread(case, inputs, truth, lse, HONEST_CONTRACT, size) for size in (2**24, 500))
    assert torch.allclose(whole.out.deviation, tiled.out.deviation, rtol=ROUNDOFF, atol=0.0)
    assert torch.allclose(whole.lse.bias, tiled.lse.bias, rtol=ROUNDOFF, atol=0.0)
    gradients = [sharp.backward_spread(case, inputs, truth, lse, HONEST_CONTRACT, whole, size) for size in (2**24, 500)]
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one.deviation, other.deviation, rtol=2.0**-20, atol=0.0)
        assert torch.allclose(one.bias, other.bias, rtol=2.0**-20, atol=0.0)
