"""The suite sees what it is for: each planted defect fails a case on which the healthy kernel passes."""

import pytest

from flashverify.campaign.worker import examine_with
from flashverify.cases.case import AttentionCase
from flashverify.checks.registry import all_checks
from flashverify.kernels import load
from flashverify.mutants.catalogue import MUTANTS
from flashverify.records.measurement import Verdict

CAUSAL = "bf16_b1_h2x1_n33x47_d32_causal_normal_contiguous_s0"
TAIL = "fp32_b1_h1x1_n33x70_d16_full_normal_contiguous_s0"
GROWING = "fp16_b1_h1x1_n17x65_d16_full_growing-maximum_contiguous_s0"
FALLING = "fp16_b1_h1x1_n17x65_d16_full_falling-maximum_contiguous_s0"

SEEN_BY = {
    "scale-off-by-1-percent": (CAUSAL, "lse", {"accuracy", "function"}),
    "running-max-lost": (FALLING, "out", {"accuracy"}),
    "rescale-missed": (GROWING, "out", {"accuracy", "function"}),
    "tail-keys-unmasked": (TAIL, "lse", {"accuracy", "function"}),
    "causal-off-by-one": (CAUSAL, "lse", {"accuracy", "function"}),
    "delta-missing": (CAUSAL, "dq", {"accuracy", "function"}),
    "tf32-for-fp32": (TAIL, "dv", {"accuracy"}),
    "lse-in-base-2": (CAUSAL, "lse", {"accuracy", "function"}),
}
"""Mutant -> case, the tensor with the largest excess, and the checks that fail."""


def examine(kernel_name, case_id, device):
    return examine_with(load(kernel_name, device), AttentionCase.from_id(case_id), tuple(all_checks()))


def test_every_mutant_is_expected_to_be_seen():
    assert SEEN_BY.keys() == MUTANTS.keys()


@pytest.mark.parametrize("case_id", [CAUSAL, TAIL, GROWING, FALLING])
def test_the_healthy_kernel_passes(case_id, device):
    record = examine("triton", case_id, device)
    assert record.verdict is Verdict.PASS, record.reason
    assert {result.check for result in record.results} == set(all_checks())


@pytest.mark.parametrize("name", SEEN_BY)
def test_a_planted_defect_is_seen(name, device):
    case_id, tensor, checks = SEEN_BY[name]
    record = examine(f"mutant:{name}", case_id, device)
    assert record.verdict is Verdict.FAIL
    assert {result.check for result in record.results if result.verdict is Verdict.FAIL} - {"sharp"} == checks
    failed = [m for result in record.results for m in result.measurements if m.violations]
    assert tensor in {m.tensor for m in failed}
    assert record.reason.startswith(f"{tensor} (")
