"""The sharp tiers as checks: a faultless kernel passes both, and each sees defects that the hard budget passes."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from flashverify.cases.case import AttentionCase
from flashverify.cases.tensors import Inputs, Outputs
from flashverify.checks.accuracy import accuracy
from flashverify.checks.distribution import distribution
from flashverify.checks.examination import Examination
from flashverify.checks.sharp import compared, sharp
from flashverify.checks.views import views
from flashverify.numerics.formats import BF16, FP16, FP32
from flashverify.records.measurement import CheckResult, Verdict
from tests.numerics.simulated import HONEST, SimulatedKernel
from tests.numerics.simulator import Options

CASE = AttentionCase(dtype="bf16", seqlen_q=96, seqlen_k=192, head_dim=64)
HALF = CASE.replace(dtype="fp16")
SINGLE = CASE.replace(dtype="fp32")
DROPPING = CASE.replace(dropout=0.1)
LARGE = CASE.replace(regime="large")

BOTH = {"sharp", "distribution"}
SHARP = {"sharp"}
DISTRIBUTION = {"distribution"}

DEFECTS: dict[str, tuple[AttentionCase, dict[str, object], str, set[str]]] = {
    "P truncated": (CASE, {"truncate_p": True}, "out", DISTRIBUTION),
    "P truncated, dv": (CASE, {"truncate_p": True}, "dv", DISTRIBUTION),
    "P truncated in fp16": (HALF, {"truncate_p": True}, "out", DISTRIBUTION),
    "out truncated": (CASE, {"truncate_out": True}, "out", BOTH),
    "out truncated in fp16": (HALF, {"truncate_out": True}, "out", DISTRIBUTION),
    "row sum kept in bf16": (CASE.replace(seqlen_k=512), {"row_sum": "bf16"}, "out", SHARP),
    "accumulator rounded to bf16 every block": (CASE, {"accumulator": "bf16"}, "out", BOTH),
    "log2(e) = 1.44": (CASE.replace(seqlen_k=1024), {"log2e": 1.44}, "out", DISTRIBUTION),
    "log2(e) = 1.44, dq": (CASE, {"log2e": 1.44}, "dq", BOTH),
    "quadratic exp2": (LARGE, {"exp2_degree": 2}, "out", SHARP),
    "q scaled in bf16": (CASE, {"prescale": True, "exponent": "scaled"}, "out", DISTRIBUTION),
    "S rounded to bf16": (CASE, {"round_scores": True}, "out", BOTH),
    "dS truncated, dq": (CASE, {"truncate_ds": True}, "dq", DISTRIBUTION),
    "dS truncated, dk": (CASE, {"truncate_ds": True}, "dk", DISTRIBUTION),
    "dQ accumulated in bf16": (CASE.replace(seqlen_k=512), {"dq_accumulator": "bf16"}, "dq", BOTH),
    "dS rounded to fp16, for inputs in bf16": (CASE, {"score_gradient": "fp16"}, "dk", DISTRIBUTION),
    "P rounded to fp16, for inputs in bf16": (CASE, {"probability": "fp16"}, "out", DISTRIBUTION),
    "dropout's factor folded into P": (DROPPING.replace(regime="large"), {"rescale": "folded"}, "out", BOTH),
    "dropout's factor folded into P, dv": (DROPPING.replace(regime="large"), {"rescale": "folded"}, "dv", SHARP),
    "dropout's factor rounded to bf16": (DROPPING, {"factor": "bf16"}, "out", DISTRIBUTION),
    "dropout's factor rounded to fp16": (DROPPING.replace(dtype="fp16"), {"factor": "fp16"}, "dq", DISTRIBUTION),
}
"""Case, defect, the tensor that shows it, and the tiers that see it there. The hard budget of that tensor passes it."""


def examined(case: AttentionCase, defect: dict[str, object] | None = None, **stated: object) -> Examination:
    honest = HONEST[case.dtype]
    options = dataclasses.replace(honest, **(defect or {}))
    told = dataclasses.replace(honest, exponent=options.exponent)
    return Examination(SimulatedKernel(options, stated=told, **stated), case)


def seen_by(examination: Examination, tensor: str) -> set[str]:
    """The tiers that fail on a tensor."""
    found = set()
    exact, probable = sharp(examination), distribution(examination)
    assert exact is not None
    assert probable is not None
    if any(one.tensor == tensor and one.violations for one in exact.sharp):
        assert exact.verdict is Verdict.FAIL
        found.add("sharp")
    if any(one.tensor == tensor and one.defects for one in probable.distributions):
        assert probable.verdict is Verdict.FAIL
        found.add("distribution")
    return found


def hard_headroom(examination: Examination, tensor: str) -> float:
    result = accuracy(examination)
    assert result is not None
    return max(one.headroom for one in result.measurements if one.tensor == tensor)


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_within_the_hard_budget_is_seen(name: str) -> None:
    case, defect, tensor, tiers = DEFECTS[name]
    examination = examined(case, defect)
    assert hard_headroom(examination, tensor) <= 1.0
    assert seen_by(examination, tensor) == tiers


def test_a_cubic_exp2_shows_in_lse() -> None:
    """Its error of 10^-4 is less than what roundings to 16 bits make of weights; lse is not rounded to 16 bits, and sees it."""
    examination = examined(HALF, {"exp2_degree": 3})
    assert seen_by(examination, "lse") == SHARP
    assert seen_by(examination, "out") == set()


def test_an_lse_off_by_a_thousandth_shows_in_gradients() -> None:
    """Where a kernel keeps its lse to itself, gradients alone can tell: P is too small, by the same factor everywhere."""
    examination = examined(CASE, {"lse_error": 2.0**-10})
    kernel = examination.kernel
    kernel.saves_outputs = False
    kernel.returns_lse = False
    for tensor in ("dq", "dk", "dv"):
        assert hard_headroom(examination, tensor) <= 1.0
        assert seen_by(examination, tensor) == DISTRIBUTION


@pytest.mark.parametrize(
    "case",
    [CASE, HALF, SINGLE, LARGE, CASE.replace(mask="causal", seqlen_q=192), DROPPING, SINGLE.replace(dropout=0.5)],
    ids=lambda case: case.id,
)
@pytest.mark.parametrize("mode", ["modular", "end-to-end"])
def test_a_faultless_kernel_passes_both(case: AttentionCase, mode: str) -> None:
    examination = examined(case)
    examination.kernel.saves_outputs = mode == "modular"
    assert {view.mode for view in views(examination)} == {"forward", mode}
    for check in (sharp, distribution):
        result = check(examination)
        assert result is not None
        assert result.verdict is Verdict.PASS, result.reason


def test_a_wrong_walk_fails() -> None:
    """The contract's blocks are half of the kernel's: weights that the contract has exact are not."""
    case = LARGE.replace(seqlen_k=512)
    assert sharp(examined(case)).verdict is Verdict.PASS
    assert sharp(examined(case, block_k=16)).verdict is Verdict.FAIL


UNSUPPORTED = {
    "operands": (SINGLE, {"operand": FP16}),
    "q or k is scaled": (CASE, {"prescaled": True}),
    "no pair": (CASE.replace(seqlen_k=0), {}),
    "all logits are 0": (CASE.replace(scale=0.0), {}),
    "logits repeat": (CASE.replace(regime="repeated-maximum"), {}),
}


@pytest.mark.parametrize("reason", UNSUPPORTED)
def test_where_the_model_says_nothing_neither_tier_passes(reason: str) -> None:
    case, stated = UNSUPPORTED[reason]
    for check in (sharp, distribution):
        result = check(examined(case, **stated))
        assert result is not None
        assert result.verdict is Verdict.UNSUPPORTED
        assert result.reason.startswith(reason)


def test_partials_of_a_group_leave_dk_and_dv_out() -> None:
    examination = examined(CASE.replace(heads_q=2), group_partials=True)
    result = sharp(examination)
    assert result is not None
    assert {one.tensor for one in result.sharp} == {"out", "lse", "dq"}


def test_float64_has_no_sharp_tiers() -> None:
    examination = Examination(SimulatedKernel(Options(), stated=HONEST["fp32"]), CASE.replace(dtype="fp64"))
    assert sharp(examination) is None
    assert distribution(examination) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("tensor", ["out", "lse", "dq", "dk", "dv"])
def test_a_value_that_is_no_number_fails(tensor: str, value: float) -> None:
    class Broken(SimulatedKernel):
        def run(self, case: AttentionCase, inputs: Inputs) -> Outputs:
            outputs = super().run(case, inputs)
            getattr(outputs, tensor).view(-1)[5] = value
            return outputs

    examination = Examination(Broken(HONEST["bf16"]), CASE)
    result = sharp(examination)
    assert result is not None
    assert result.verdict is Verdict.FAIL
    assert any(one.tensor == tensor and one.violations for one in result.sharp)


@pytest.mark.parametrize("size", [math.inf, math.nan])
@pytest.mark.parametrize("field", ["bias", "deviation"])
def test_a_budget_that_is_no_number_is_no_pass(field: str, size: float) -> None:
    for view in views(examined(CASE)):
        broken = dataclasses.replace(view.spread, **{field: torch.full_like(view.truth, size)})
        comparison = compared(dataclasses.replace(view, spread=broken))
        assert comparison.undecided()[~view.exact].all()
        assert not (comparison.headroom() <= 1.0)[~view.exact].any()


def test_rows_that_see_no_key_have_to_be_exact() -> None:
    case = CASE.replace(mask="causal", seqlen_q=192, seqlen_k=96)
    found = {view.tensor: view for view in views(examined(case))}
    assert (compared(found["out"]).budget[:, :, :96] == 0.0).all()
    assert (compared(found["out"]).budget[:, :, 96:] > 0.0).all()
    assert (compared(found["dq"]).budget[:, :, :96] == 0.0).all()


def test_views_are_in_the_units_of_what_is_stored() -> None:
    stored = {view.tensor: view.stored for view in views(examined(CASE))}
    assert stored == {"out": BF16, "lse": FP32, "dq": BF16, "dk": BF16, "dv": BF16}


def test_a_check_result_names_what_it_compared() -> None:
    result = sharp(examined(CASE))
    assert isinstance(result, CheckResult)
    assert [(one.tensor, one.mode) for one in result.sharp] == [
        ("out", "forward"),
        ("lse", "forward"),
        ("dq", "modular"),
        ("dk", "modular"),
        ("dv", "modular"),
    ]
