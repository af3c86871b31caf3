"""A campaign's certificate holds one record a case in the planned order, and none where the arithmetic is not understood."""

import dataclasses

import pytest

from flashverify.campaign.campaign import Campaign
from flashverify.checks.registry import all_checks
from flashverify.numerics.axioms.arithmetic import Arithmetic, Observation
from flashverify.records.measurement import Verdict
from flashverify.records.summary import CERTIFIED, exit_code
from tests.checks.fakes import HALF, misbehaving, refused

PLANNED = tuple(HALF.replace(seed=seed, seqlen_q=length) for seed, length in ((10, 5), (11, 17), (12, 9)))
UNMEASURED = Arithmetic(device="cpu", lane="interpreter")


def campaign(**changes):
    stated = {"kernel": "fake", "matrix": "three", "cases": PLANNED, "lane": "interpreter", "factory": misbehaving}
    return Campaign(**(stated | {"workers": 1, "options": ("select=three",)} | changes))


def test_records_are_in_the_planned_order_and_seen_as_they_come():
    seen = []
    certificate = campaign().run(UNMEASURED, seen.append)
    assert [record.case for record in certificate.records] == [case.id for case in PLANNED]
    assert sorted(record.case for record in seen) == sorted(case.id for case in PLANNED)
    assert {record.verdict for record in seen} == {Verdict.PASS}
    plan = certificate.plan
    assert (plan.kernel, plan.matrix, plan.cases, plan.lane, plan.options) == (
        "fake",
        "three",
        3,
        "interpreter",
        ("select=three",),
    )
    assert plan.checks == tuple(all_checks())
    assert exit_code(certificate) == CERTIFIED


def test_nothing_is_examined_on_arithmetic_that_fits_no_model():
    odd = dataclasses.replace(UNMEASURED, observations=(Observation("exp2", "40 ulp", "tried", 1000, fits=False),))
    seen = []
    certificate = campaign().run(odd, seen.append)
    assert seen == []
    assert certificate.records == ()
    assert certificate.plan.cases == 3  # what was not run is missing, not forgotten
    assert exit_code(certificate) not in {CERTIFIED, 1}
    assert campaign().examined(odd) == ()


def test_a_kernel_that_does_not_load_is_said_before_anything_runs():
    with pytest.raises(ValueError, match="kernel: got 'fake'"):
        campaign(factory=refused).load()


def test_tensors_are_where_the_lane_is():
    assert (campaign().device.type, campaign(lane="gpu").device.type) == ("cpu", "cuda")
