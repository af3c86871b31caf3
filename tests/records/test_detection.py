"""Detection power: what counts as seen, what as a false alarm, and the document there and back."""

import math

import msgspec
import pytest

from flashverify.records.detection import CAMPAIGN, Detection, Planted, Trial
from flashverify.records.measurement import Verdict
from flashverify.report.detection import render_detection
from tests.records.synthetic import H200

PASS, FAIL, LOST, DECLINED = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.UNSUPPORTED


def trial(mutant, verdict, checks=None, case="a", rivals=None):
    return Trial(
        mutant=mutant, case=case, verdict=verdict, reason="why | not", checks=checks or {}, rivals=rivals or {}, seconds=1.0
    )


def detection(*trials, controls=None, equivalent=()):
    names = dict.fromkeys(one.mutant for one in trials)
    return Detection(
        created="2026-01-31T12:00:00Z",
        environment=H200,
        lane="gpu",
        seconds=3.0,
        mutants=tuple(
            Planted(name=n, story="It is wrong.", source="control", equivalent="0 is 0" if n in equivalent else None)
            for n in names
        ),
        trials=trials,
        controls=(trial("triton", PASS, {"accuracy": PASS}),) if controls is None else controls,
    )


SEEN = trial("one", FAIL, {"accuracy": FAIL, "mask": PASS})
MISSED = trial("two", PASS, {"accuracy": PASS, "mask": PASS})
CRASHED = trial("three", LOST)


def test_a_failing_check_sees_a_defect_and_a_crash_is_the_campaigns():
    found = detection(SEEN, MISSED, CRASHED)
    assert [found.seen_by(name) for name in ("one", "two", "three")] == [("accuracy",), (), (CAMPAIGN,)]
    assert found.score == pytest.approx(2 / 3, rel=1e-15)
    assert [mutant.name for mutant in found.survivors] == ["two"]
    assert found.checks == ("accuracy", "mask", CAMPAIGN)


@pytest.mark.parametrize("verdict", [FAIL, LOST, DECLINED])
def test_a_case_that_the_healthy_kernel_does_not_pass_shows_nothing(verdict):
    found = detection(SEEN, CRASHED, controls=(trial("triton", verdict),))
    assert found.score == 0.0
    assert bool(found.false_alarms) is (verdict is not DECLINED)


def test_a_declined_trial_sees_nothing():
    assert detection(trial("one", DECLINED)).score == 0.0


def test_equivalent_defects_do_not_count():
    found = detection(SEEN, MISSED, equivalent=("two",))
    assert found.score == 1.0
    assert [mutant.equivalent for mutant in found.survivors] == ["0 is 0"]
    assert math.isnan(detection(MISSED, equivalent=("two",)).score)


@pytest.mark.parametrize(("least", "code"), [(0.5, 0), (0.51, 1)])
def test_the_gate_asks_for_a_share(least, code):
    assert detection(SEEN, MISSED).exit_code(least) == code


def test_a_false_alarm_leaves_the_gate_inconclusive():
    assert detection(SEEN, controls=(trial("triton", FAIL, {"accuracy": FAIL}),)).exit_code(0.0) == 3


def test_other_rules_are_counted_where_they_apply():
    rules = {"loose": True, "tight": False, "other": None}
    found = detection(
        trial("one", FAIL, {"accuracy": FAIL}, rivals=rules),
        trial("two", FAIL, {"accuracy": FAIL}, rivals=rules | {"tight": True}),
        controls=(trial("triton", PASS, rivals=rules | {"loose": False}),),
    )
    assert [found.rival(rule) for rule in found.rules] == [(0, 2, 1, 1), (1, 2, 1, 1), (0, 0, 0, 0)]


def test_it_comes_back_from_its_document(tmp_path):
    found = detection(SEEN, MISSED, CRASHED)
    found.write(tmp_path / "mutants.json")
    assert Detection.read(tmp_path / "mutants.json") == found
    with pytest.raises(ValueError, match=r"field trials\[0\].verdict: got .good."):
        Detection.from_json(found.to_json().replace(b'"fail"', b'"good"', 1))


def test_the_report_has_score_survivors_matrix_and_rules():
    rules = {"2x": True, "loose | rule": None}
    found = detection(msgspec.structs.replace(SEEN, rivals=rules), MISSED, CRASHED, controls=(trial("triton", FAIL, case="b"),))
    text = render_detection(found)
    assert "**False alarm:** `b`" in text
    found = detection(msgspec.structs.replace(SEEN, rivals=rules), MISSED, CRASHED)
    text = render_detection(found)
    assert "**2 of 3 planted defects are seen: 66.7 %.**" in text
    assert "- `two`: It is wrong. a gap" in text
    assert "- **accuracy**: `one`" in text
    assert "| 2x | 0 | 1 | 0 % | 0 | 0 |" in text
    assert "| `one` | control | ● | · |   | · |   | `a` |" in text
    assert r"loose \| rule" in text
