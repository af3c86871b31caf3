"""Whatever a kernel does to its worker, every case is answered with one record, and the others are as if nothing had been."""

import os

import pytest

from flashverify.campaign.executor import MAX_RETURNS, execute
from flashverify.campaign.journal import Journal, read
from flashverify.campaign.worker import RETIRED, examine
from flashverify.checks.registry import all_checks
from flashverify.numerics import published
from flashverify.numerics.axioms.arithmetic import Arithmetic
from flashverify.records.measurement import Verdict
from tests.checks.fakes import HALF, misbehaving, refused

DIES, HANGS, RAISES, LOSES_GPU, EXITS, RETIRES = range(1, 7)
HEALTHY = range(10, 14)


def run(seeds, *, factory=misbehaving, device="cpu", workers=1, timeout=60.0, on_record=None, arithmetic=None):
    records = []
    execute(
        [("fake", HALF.replace(seed=seed)) for seed in seeds],
        device,
        factory,
        tuple(all_checks()),
        workers=workers,
        timeout=timeout,
        on_record=on_record or records.append,
        arithmetic=arithmetic,
    )
    by_seed = {int(record.case.rpartition("_s")[2]): record for record in records}
    assert len(records) == len(by_seed)  # one record a case
    return by_seed


def test_every_way_to_go_wrong_costs_its_own_case_alone():
    records = run([10, DIES, 11, RAISES, 12, EXITS, 13], workers=2)
    assert records.keys() == {DIES, RAISES, EXITS, *HEALTHY}
    assert {records[seed].verdict for seed in HEALTHY} == {Verdict.PASS}
    reasons = {seed: records[seed].reason for seed in (DIES, RAISES, EXITS)}
    assert {records[seed].verdict for seed in reasons} == {Verdict.INCONCLUSIVE}
    assert reasons[DIES] == "worker died with exit code 41"
    assert reasons[RAISES].startswith("ArithmeticError: no luck (fakes.py:")
    assert reasons[EXITS] == "SystemExit: 0"
    assert all(not records[seed].results for seed in reasons)


def test_a_case_that_hangs_runs_out_of_time():
    records = run([HANGS, 10], timeout=4.0)
    assert records[HANGS].verdict is Verdict.INCONCLUSIVE
    assert records[HANGS].reason == "timeout: took more than 4 s"
    assert records[HANGS].seconds == 4.0
    assert records[10].verdict is Verdict.PASS


def test_a_lost_gpu_retires_its_worker_and_gives_the_next_case_back():
    records = run([10, LOSES_GPU, 11, 12], device="cuda")
    process = {seed: records[seed].configuration["process"] for seed in (10, 11, 12)}
    assert records[LOSES_GPU].verdict is Verdict.INCONCLUSIVE
    assert records[LOSES_GPU].reason.startswith("RuntimeError: CUDA error: an illegal memory access was encountered (")
    assert {records[seed].verdict for seed in process} == {Verdict.PASS}
    assert process[10] != process[11] == process[12]
    assert str(os.getpid()) not in process.values()


def test_without_a_gpu_the_same_error_is_an_ordinary_one():
    records = run([10, LOSES_GPU, 11])
    assert records[10].configuration == records[11].configuration


def test_a_case_that_always_ends_its_worker_with_the_code_of_retirement_is_given_up(monkeypatch):
    monkeypatch.setattr("flashverify.campaign.executor.MAX_RETURNS", 2)
    assert MAX_RETURNS > 64  # more than there are workers on any machine lent
    records = run([RETIRES, 10])
    assert records[RETIRES].verdict is Verdict.INCONCLUSIVE
    assert records[RETIRES].reason == f"worker died with exit code {RETIRED}"
    assert records[10].verdict is Verdict.PASS


def test_what_was_measured_of_the_device_reaches_the_contracts_of_workers():
    arithmetic = Arithmetic(device="a GPU", lane="gpu", exp2_max_ulps=1.75, exhaustive=("exp2",))
    assert run([10], arithmetic=arithmetic)[10].contract["exp2_ulps"] == "1.75"
    assert run([10])[10].contract["exp2_ulps"] == str(published.EXP2_ULPS)


def test_nothing_to_run_is_nothing_recorded():
    assert run([]) == {}


def test_an_interruption_stops_the_workers_and_leaves_the_journal(tmp_path):
    def keep(record):
        journal.append(record)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Journal(tmp_path / "a.jsonl") as journal:
        run([10, HANGS, 11], on_record=keep)
    (record,) = read(tmp_path / "a.jsonl")
    assert (record.case, record.verdict) == (HALF.replace(seed=10).id, Verdict.PASS)


def test_a_kernel_that_cannot_be_made_is_answered_in_each_record():
    record = examine(HALF.id, "mine", "cpu", refused, ("accuracy",))
    assert record.verdict is Verdict.INCONCLUSIVE
    assert record.reason.startswith("ValueError: kernel: got 'mine' on cpu, accepted are none (fakes.py:")
    assert (record.case, record.kernel, record.dtype, record.features) == (HALF.id, "mine", "bf16", "causal+cross-length+mqa")


def test_unknown_checks_are_inconclusive_not_unsupported():
    record = examine(HALF.id, "fake", "cpu", misbehaving, ("speed",))
    assert record.verdict is Verdict.INCONCLUSIVE
    assert "checks: got speed" in record.reason
