"""The distribution check: its statistics, what it leaves out, and that nothing without a number passes."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from flashverify.adapters.triton import TritonKernel
from flashverify.cases.case import AttentionCase
from flashverify.checks.distribution import distribution, not_generic, statistics
from flashverify.checks.examination import Examination
from flashverify.checks.rates import SHARE
from flashverify.checks.views import View, views
from flashverify.numerics.calibration import ROUNDED, UNROUNDED, accuracy_of_model
from flashverify.numerics.scores import quantile
from flashverify.records.measurement import Verdict
from tests.numerics.simulated import HONEST, SimulatedKernel, sharp_contract_of
from tests.numerics.simulator import Options

CASE = AttentionCase(dtype="bf16", seqlen_q=96, seqlen_k=128, head_dim=64)
CONTRACT = sharp_contract_of("bf16", HONEST["bf16"])


def view_of(case: AttentionCase, tensor: str) -> View:
    return {view.tensor: view for view in views(Examination(SimulatedKernel(), case))}[tensor]


@pytest.fixture(scope="module")
def out() -> View:
    return view_of(CASE, "out")


def changed(view: View, change) -> View:
    return dataclasses.replace(view, value=change(view))


def test_a_faultless_tensor_has_no_defect(out: View) -> None:
    found = statistics(out, CONTRACT)
    assert found.defects == ()
    assert 0.9 < found.rms < 1.1
    assert found.rows == 96
    assert 5000 < found.elements <= 96 * 64
    assert found.largest_t >= quantile(96, SHARE)


ALTERED = {
    "errors are": lambda view: view.truth + 1.4 * view.error(),
    "errors are 0": lambda view: view.truth + 0.6 * view.error(),
    "their mean is off": lambda view: view.value.double() + 0.5 * view.spread.size(view.truth, view.stored),
    "they point toward 0": lambda view: (
        view.value.double() - 0.5 * view.spread.size(view.truth, view.stored) * view.truth.sign()
    ),
    "they point away": lambda view: view.value.double() + 0.5 * view.spread.size(view.truth, view.stored) * view.truth.sign(),
}


@pytest.mark.parametrize("words", ALTERED)
def test_what_is_wrong_with_errors_is_said(out: View, words: str) -> None:
    assert any(defect.startswith(words) for defect in statistics(changed(out, ALTERED[words]), CONTRACT).defects)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_no_number_is_a_defect(out: View, value: float) -> None:
    def change(view: View) -> torch.Tensor:
        values = view.value.clone()
        values[0, 0, 3, 4] = value
        return values

    assert len(statistics(changed(out, change), CONTRACT).defects) >= 3


@pytest.mark.parametrize("size", [math.inf, math.nan])
@pytest.mark.parametrize("field", ["bias", "deviation"])
def test_a_prediction_that_is_no_number_gives_no_scores(out: View, field: str, size: float) -> None:
    """An infinite deviation makes all scores 0, and an infinite bias explains all: both passed where nothing is rounded."""
    values = getattr(out.spread, field).clone()
    values[0, 0, 5, 6] = size
    broken = dataclasses.replace(out, spread=dataclasses.replace(out.spread, **{field: values}))
    assert not_generic(broken) is not None


def test_what_is_left_out_depends_on_the_truth_alone(out: View) -> None:
    """A kernel cannot make its own errors unjudgeable."""
    for change in (*ALTERED.values(), lambda view: torch.zeros_like(view.value), lambda view: view.truth.bfloat16()):
        assert not_generic(changed(out, change)) is None


UNEVEN = {
    "the true values": lambda view: dataclasses.replace(view, truth=view.truth.bfloat16().double() * (1.0 + 2.0**-11)),
    "too few scores: 0": lambda view: dataclasses.replace(view, truth=view.truth.bfloat16().double()),
    "what is common": lambda view: dataclasses.replace(
        view, spread=dataclasses.replace(view.spread, bias=2.0 * view.spread.size(view.truth, view.stored))
    ),
}


@pytest.mark.parametrize("reason", UNEVEN)
def test_tensors_without_scores_say_why(out: View, reason: str) -> None:
    found = not_generic(UNEVEN[reason](out))
    assert found is not None
    assert found.startswith(reason)


def test_small_tensors_have_no_scores() -> None:
    result = distribution(Examination(SimulatedKernel(), CASE.replace(seqlen_q=40, seqlen_k=40)))
    assert result is not None
    assert result.verdict is Verdict.UNSUPPORTED
    assert "at least 4096 in 64" in result.reason


def test_values_that_vanish_are_no_shrinkage_by_a_defect() -> None:
    """Values of dS below half of fp16's smallest number become 0: a faultless kernel's dk had t = -122 toward 0."""
    view = view_of(CASE.replace(dtype="fp16", regime="tiny", seqlen_q=128), "dk")
    found = statistics(view, sharp_contract_of("fp16", HONEST["fp16"]))
    assert found.t_sign < -20.0
    assert not_generic(view) is not None or not found.defects


@pytest.mark.parametrize("seed", range(4))
def test_errors_that_keys_share_are_no_direction(seed: int) -> None:
    """float32, values with an offset: dk's rows share the errors of delta. See tests/numerics/test_sharp.py."""
    view = view_of(CASE.replace(dtype="fp32", regime="offset-values", seqlen_q=256, seqlen_k=256, seed=seed), "dk")
    assert statistics(view, sharp_contract_of("fp32", HONEST["fp32"])).defects == ()


FAULTLESS_ON_A_GPU = (
    "fp32_b1_h1x1_n257x257_d32_full_falling-maximum_contiguous_dlse_s5",
    "fp32_b1_h4x2_n64x300_d128_causal_falling-maximum_contiguous_dlse_s6",
    "fp32_b1_h2x1_n130x131_d64_causal_offset-values_contiguous_scale-1.0_s0",
    "fp32_b1_h3x1_n64x300_d128_causal-topleft_tiny_contiguous_s11",
)
"""Cases of which an H200, and a chain of fused multiply-adds simulated here, had errors that the model did not know.

One feature, the first, is above all others, and its product close above a power of two: it is in all partial sums, with more
error than a random significand has. Many weights are below half a spacing of a sum of values that have one sign: it loses them
all in one direction. All logits are the same in float32, and exp2's error too.
"""


@pytest.mark.parametrize("case", FAULTLESS_ON_A_GPU)
def test_a_chain_of_fused_multiply_adds_is_known(case: str) -> None:
    kernel = SimulatedKernel(Options(dot="fma-chain", exponent="shifted", exp2_ulps=1))
    result = distribution(Examination(kernel, AttentionCase.from_id(case)))
    assert result is not None
    assert result.verdict is (Verdict.UNSUPPORTED if "tiny" in case else Verdict.PASS), result.reason
    for found in result.distributions:
        assert found.rms < 1.05


def test_shared_errors_widen_the_limits(out: View) -> None:
    plain = statistics(out, CONTRACT)
    half = dataclasses.replace(out.spread, shared=math.sqrt(0.5) * out.spread.size(out.truth, out.stored))
    shared = statistics(dataclasses.replace(out, spread=half), CONTRACT)
    explained = plain.largest_t - quantile(96, SHARE)
    assert shared.largest_t - explained == pytest.approx(quantile(96, SHARE) * math.sqrt(1.0 + 96 / 2), rel=2.0**-20)
    assert shared.largest_rms > plain.largest_rms


def test_both_sides_count_where_16_bit_roundings_dominate() -> None:
    assert accuracy_of_model("out", CONTRACT) is ROUNDED
    assert accuracy_of_model("lse", CONTRACT) is UNROUNDED
    assert accuracy_of_model("out", sharp_contract_of("fp32", HONEST["fp32"])) is UNROUNDED


def test_what_is_estimated_from_above_may_be_smaller(device):
    """An H200 failed dq of huge logits from below: what the model only bounds was counted as if it had to be there."""
    case = AttentionCase.from_id("bf16_b1_h2x1_n257x257_d16_causal-topleft_huge_contiguous_s2")
    examination = Examination(TritonKernel(device), case)
    result = distribution(examination)
    assert result.verdict is Verdict.PASS, result.reason
    dq = next(view for view in views(examination) if (view.tensor, view.mode) == ("dq", "modular"))
    everything = dataclasses.replace(dq, spread=dataclasses.replace(dq.spread, casts=dq.spread.deviation))
    assert statistics(everything, examination.walked).defects  # what the check said before


def test_a_weight_next_to_1_becomes_1_and_is_off_by_no_more(device):
    """Windows that show each query one key: P is 1 but for lse's own rounding, and no rounding to bfloat16 has to be there."""
    case = AttentionCase.from_id("bf16_b1_h2x1_n64x100_d128_causal_normal_contiguous_left0_s1")
    result = distribution(Examination(TritonKernel(device), case))
    assert result.verdict is Verdict.PASS, result.reason
    assert {score.tensor for score in result.distributions} >= {"dv"}


@pytest.mark.parametrize(("layout", "rows", "lens"), [("contiguous", 64, True), ("bnhd", 64, False), ("contiguous", 63, False)])
def test_the_debug_mode_runs_on_contiguous_tensors_with_rows_enough(layout, rows, lens, device):
    case = AttentionCase(dtype="bf16", seqlen_q=rows, seqlen_k=32, head_dim=64, layout=layout)
    modes = {view.mode for view in views(Examination(TritonKernel(device), case))}
    assert ("unrounded" in modes) is lens
