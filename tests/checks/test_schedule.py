"""The schedule check: every schedule that a kernel offers is held to one mask, on the plain cases whose turn it is."""

from dataclasses import dataclass, field

import pytest

from flashverify.cases.case import AttentionCase
from flashverify.cases.dropout_matrices import smoke_schedules, standard_schedules
from flashverify.cases.matrices import matrix
from flashverify.checks.examination import Examination
from flashverify.checks.registry import all_checks
from flashverify.checks.schedule import MODE, TURNS, is_examined
from flashverify.records.measurement import Verdict
from tests.checks import dropping
from tests.checks.dropping import Dropping

(CASE,) = smoke_schedules()
LONGEST_TILE = 128
"""Rows or keys of our largest tile on a GPU."""


@dataclass
class Scheduled(Dropping):
    """A kernel that can be run under other schedules."""

    offered: dict[str, Dropping] = field(default_factory=dict)

    def schedules(self, case):
        return self.offered


def check(kernel, case=CASE):
    return all_checks()["schedule"](Examination(kernel, case))


def test_schedules_with_one_mask_pass_and_their_bits_are_summed():
    one, both = (check(Scheduled(offered={str(n): Dropping() for n in range(count)})) for count in (1, 2))
    assert one.verdict is both.verdict is Verdict.PASS
    assert [bits.mode for bits in both.bits] == [MODE] * 4
    assert [bits.compared for bits in both.bits] == [2 * bits.compared for bits in one.bits]


@pytest.mark.parametrize("part", ["forward", "of_dq", "of_dk", "of_dv"])
def test_a_mask_that_depends_on_the_schedule_is_seen_where_it_does(part):
    tensor = part.replace("forward", "of_out").removeprefix("of_")
    kernel = Scheduled(offered={"64x64": Dropping(), "16x16": Dropping(**{part: dropping.tiles_of_rows})})
    assert all_checks()["mask"](Examination(kernel, CASE)).verdict is Verdict.PASS
    result = check(kernel)
    assert result.verdict is Verdict.FAIL
    assert result.reason.startswith(f"16x16: {tensor}: ")
    assert "64x64" not in result.reason
    assert {bits.tensor for bits in result.bits if bits.differing} == {tensor}


@pytest.mark.parametrize(
    "kernel",
    [Dropping(), Scheduled(), Scheduled(offered={"16x16": Dropping()}, predictable=False)],
    ids=["offers none", "has none for the case", "has a generator of its own"],
)
def test_kernels_without_schedules_or_prediction_are_not_examined(kernel):
    assert check(kernel) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"dropout": None},
        {"dropout": 0.0},
        {"dropout": 1.0},
        {"alibi": "heads"},
        {"layout": "bnhd"},
        {"scale": 0.3},
        {"seqlen_q": 2**9, "seqlen_k": 2**10},
        {"batch": 0},
    ],
    ids=str,
)
def test_other_cases_have_no_turn(changes):
    assert not any(is_examined(CASE.replace(seed=seed, **changes)) for seed in range(3 * TURNS))


def test_one_plain_case_in_so_many_has_its_turn():
    turns = sum(is_examined(CASE.replace(seed=seed)) for seed in range(100 * TURNS))
    assert 50 < turns < 150  # 100 are expected, and their deviation is 10


def test_matrices_have_cases_that_are_longer_than_tiles():
    assert is_examined(CASE)
    assert CASE in matrix("smoke")
    on_gpu = list(standard_schedules())
    assert {case.dtype for case in on_gpu} == {"fp16", "bf16", "fp32", "fp64"}
    assert all(is_examined(case) and min(case.seqlen_q, case.seqlen_k) > LONGEST_TILE for case in on_gpu)
    assert set(on_gpu) <= set(matrix("standard"))


def test_turns_in_the_standard_matrix_are_few():
    having = [case for case in matrix("standard") if is_examined(case)]
    assert all(isinstance(case, AttentionCase) for case in having)
    assert len(having) <= len(matrix("standard")) // TURNS // 2
