"""Where the time goes: sums over cases, and what certificates without stages say."""

from __future__ import annotations

from dataclasses import replace

from flashverify.records.measurement import Verdict
from flashverify.records.timings import STAGES, UNTIMED, spent
from tests.records.synthetic import case, plausible, record


def test_stages_are_summed_over_cases_the_largest_first() -> None:
    first = replace(record(case()), timings={"kernel": 0.5, "oracle": 1.0})
    second = replace(record(case(seed=1)), timings={"kernel": 0.25, "other": 4.0})
    found = spent([first, second])
    assert found == dict.fromkeys(STAGES, 0.0) | {"other": 4.0, "oracle": 1.0, "kernel": 0.75}
    assert list(found)[:3] == ["other", "oracle", "kernel"]


def test_cases_that_ended_early_count_with_their_wall_time() -> None:
    crashed = replace(record(case(seed=1), Verdict.INCONCLUSIVE, (), "timeout"), seconds=300.0)
    found = spent([replace(record(case()), timings={"kernel": 0.5}), crashed])
    assert (found[UNTIMED], next(iter(found))) == (300.0, UNTIMED)


def test_certificates_without_stages_say_nothing() -> None:
    assert spent(plausible(5).records) == spent([]) == {}
