"""The stopwatch: each moment counts once, for the innermost stage, with a GPU's work waited for."""

from __future__ import annotations

import math
import time

import pytest
import torch

from flashverify.campaign.worker import examine_with
from flashverify.checks.registry import all_checks
from flashverify.checks.stopwatch import Stopwatch
from flashverify.records.timings import STAGES
from tests.checks.fakes import CPU, DOUBLE, HALF, FakeKernel


class Clock:
    """Time that passes when it is told to, in seconds that float64 adds exactly."""

    def __init__(self) -> None:
        self.now = 1.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(clock: Clock) -> Stopwatch:
    return Stopwatch(CPU, clock)


def test_what_lies_in_no_stage_is_other(watch: Stopwatch, clock: Clock) -> None:
    clock.now += 0.5
    with watch.stage("kernel"):
        clock.now += 0.25
    clock.now += 0.125
    assert watch.seconds() == {"kernel": 0.25, "other": 0.625}


def test_a_stage_within_a_stage_is_not_counted_twice(watch: Stopwatch, clock: Clock) -> None:
    with watch.stage("sharp"):
        clock.now += 1.0
        with watch.stage("oracle"):
            clock.now += 2.0
            with watch.stage("sharp"):
                clock.now += 4.0
            clock.now += 8.0
        clock.now += 16.0
    assert watch.seconds() == {"sharp": 21.0, "oracle": 10.0}
    assert sum(watch.seconds().values()) == clock.now - 1.0


def test_an_exception_ends_its_stages(watch: Stopwatch, clock: Clock) -> None:
    def give_up() -> None:
        with watch.stage("sharp"), watch.stage("kernel"):
            clock.now += 2.0
            raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        give_up()
    clock.now += 0.5
    assert watch.seconds() == {"kernel": 2.0, "other": 0.5}


def test_seconds_can_be_asked_for_again(watch: Stopwatch, clock: Clock) -> None:
    clock.now += 0.5
    assert watch.seconds() == watch.seconds() == {"other": 0.5}
    clock.now += 2.0**-30  # below a microsecond
    assert watch.seconds() == {"other": 0.5}


def test_a_stage_that_is_none_is_refused(watch: Stopwatch) -> None:
    with pytest.raises(ValueError, match=r"stage: got 'lunch', accepted are kernel, oracle"), watch.stage("lunch"):
        pass


def test_the_work_of_a_gpu_counts_where_it_was_asked_for(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = [0.0]

    def finish() -> None:
        clock.now += queue[0]
        queue[0] = 0.0

    monkeypatch.setattr("torch.cuda.synchronize", finish)
    watch = Stopwatch(torch.device("cuda"), clock)
    queue[0] = 1.0
    with watch.stage("kernel"):
        queue[0] = 2.0
        with watch.stage("oracle"):
            queue[0] = 4.0
        queue[0] = 8.0
    queue[0] = 16.0
    assert watch.seconds() == {"other": 17.0, "kernel": 10.0, "oracle": 4.0}


def test_a_lost_gpu_is_not_asked_again(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("torch.cuda.synchronize", lambda: asked.append(1))
    watch = Stopwatch(torch.device("cuda"), clock)
    with pytest.raises(RuntimeError, match="illegal memory access"), watch.stage("kernel"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    assert len(asked) == 1


class Slow(FakeKernel):
    """Takes its time."""

    SECONDS = 0.25

    def run(self, case, inputs):  # type: ignore[no-untyped-def]
        time.sleep(self.SECONDS)
        return super().run(case, inputs)


def test_a_records_stages_sum_to_its_time_and_a_slow_kernel_is_seen_in_its_own() -> None:
    kernel = Slow()
    record = examine_with(kernel, HALF, tuple(all_checks()))
    assert record.timings.keys() <= STAGES.keys()
    assert {"kernel", "oracle", "budget", "inputs", "other"} <= record.timings.keys()
    assert record.timings["kernel"] >= kernel.runs * Slow.SECONDS
    assert math.fsum(record.timings.values()) <= record.seconds + 1e-6 * len(STAGES)
    others = math.fsum(seconds for stage, seconds in record.timings.items() if stage != "kernel")
    assert record.seconds - record.timings["kernel"] < others + Slow.SECONDS  # nothing as long as a run is left out


def test_float64_cases_have_no_sharp_stage() -> None:
    record = examine_with(FakeKernel(), DOUBLE, tuple(all_checks()))
    assert "sharp" not in record.timings
    assert "kernel" in record.timings


def test_a_declined_case_has_no_stages() -> None:
    assert examine_with(FakeKernel(), HALF.replace(head_dim=7), tuple(all_checks())).timings == {}
