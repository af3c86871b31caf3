"""Speeds without a GPU: how work is counted, how tables read, and that an uncertified kernel's speed is not shown."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import pytest

from flashverify import cli
from flashverify.adapters.registry import NAMES
from flashverify.bench import problems, run, table
from flashverify.bench.peers import PRECISIONS
from flashverify.bench.permission import SAME, refusal
from flashverify.bench.problems import HALF, LARGE_PRODUCTS, SINGLE, Problem, certified_cases, kinds, large_kind
from flashverify.bench.timing import Timing
from flashverify.cases.matrices import matrix
from flashverify.records.certificate import Certificate, Plan
from flashverify.records.environment import Environment
from flashverify.records.measurement import CaseRecord, Verdict
from tests.records.synthetic import H200, record

FULL = Problem("bf16", 64, False, 4096)


def certificate(**changes: object) -> Certificate:
    records = tuple(record(case, Verdict.PASS) for case in certified_cases())
    plan = Plan(kernel="triton", matrix="cases", cases=len(records), checks=("accuracy",), lane="gpu")
    made = Certificate(created="2026-01-31T12:00:00Z", environment=H200, plan=plan, records=records, seconds=1.0)
    return replace(made, **changes)


def of_precision(kernel: str) -> dict[str, object]:
    """What differs in a certificate of float32 in another precision."""
    records = tuple(record(case, Verdict.PASS) for case in certified_cases(kernel))
    return {"records": records, "plan": msgspec.structs.replace(certificate().plan, kernel=kernel, cases=len(records))}


def test_the_twelve_shapes() -> None:
    assert len(set(HALF)) == 12
    assert all(p.batch * p.seqlen == problems.TOKENS and p.heads * p.head_dim == problems.WIDTH for p in (*HALF, *SINGLE))


def test_operations_by_hand() -> None:
    """B=4, H=32: 4·4·32·4096²·64."""
    assert FULL.operations("forward") == 4 * 4 * 32 * 4096**2 * 64
    assert FULL.operations("backward") == 2.5 * FULL.operations("forward")
    assert replace(FULL, causal=True).operations("forward") == FULL.operations("forward") / 2


def test_certified_cases_take_the_code_of_the_problems() -> None:
    """Large enough for tensor copies, as every problem is."""
    from flashverify_kernels.launch import DESCRIPTOR_PRODUCTS

    assert LARGE_PRODUCTS >= DESCRIPTOR_PRODUCTS
    assert [large_kind(case) for case in certified_cases()] == list(kinds())
    assert all(p.batch * p.heads * p.seqlen**2 * p.head_dim >= LARGE_PRODUCTS for p in (*HALF, *SINGLE))


def test_the_standard_matrix_allows_speeds() -> None:
    assert {large_kind(case) for case in matrix("standard")} >= kinds().keys()


def test_geometric_mean() -> None:
    assert table.geometric_mean([2.0, 8.0]) == 4.0
    assert table.geometric_mean([3.0]) == pytest.approx(3.0, rel=1e-15)
    assert math.isnan(table.geometric_mean([]))
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="accepted are positive numbers"):
            table.geometric_mean([1.0, wrong])


def test_rates_and_ratios() -> None:
    seconds = FULL.operations("forward") / 400e12
    timing = Timing(FULL, "forward", {"ours": seconds, "FlexAttention": 2.0 * seconds})
    assert timing.rate("ours") == pytest.approx(400.0, rel=1e-15)
    assert timing.ratio("ours", "FlexAttention") == 2.0
    assert timing.rate("cuDNN") is timing.ratio("ours", "cuDNN") is None


def test_half_table() -> None:
    causal = replace(FULL, causal=True)
    timings = [
        Timing(FULL, "forward", {"ours": 1e-3, "FlexAttention": 1e-3, "FA2": 2e-3, "cuDNN": 1e-3}),
        Timing(causal, "forward", {"ours": 1e-3, "FlexAttention": 4e-3, "cuDNN": 1e-3}),
        Timing(FULL, "backward", {"ours": 2e-3, "FlexAttention": 1e-3}),
        Timing(Problem("fp32", 64, False, 2048), "forward", {"ours ieee": 1.0}),
    ]
    lines = table.half_table(timings)
    assert lines[0].startswith("| problem | pass | ours TFLOP/s | FlexAttention TFLOP/s | FA2 TFLOP/s | cuDNN TFLOP/s |")
    assert lines[2] == "| bf16 D=64 full N=4096 | forward | 550 | 550 | 275 | 550 | 1.00 |"
    assert lines[3] == "| bf16 D=64 causal N=4096 | forward | 275 | 69 | - | 275 | 4.00 |"
    assert "forward: ours / FlexAttention: 2.000 (geometric mean of 2 of 2)" in lines
    assert "forward: ours / FA2: 2.000 (geometric mean of 1 of 2)" in lines
    assert "backward: ours / FlexAttention: 0.500 (geometric mean of 1 of 1)" in lines
    assert "backward: ours / cuDNN: - (geometric mean of 0 of 1)" in lines
    assert not any("fp32" in line for line in lines)


def test_single_table() -> None:
    timing = Timing(
        Problem("fp32", 64, False, 2048), "forward", {"ours ieee": 4.0, "ours bf16x6": 1.0, "memory-efficient": 2.0}
    )
    lines = table.single_table([timing], PRECISIONS)
    assert lines[2].endswith("| 0.50 | 2.00 | - |")
    assert "forward: ours bf16x6 / memory-efficient: 2.000 (geometric mean of 1 of 1)" in lines


def test_a_certificate_of_this_machine_allows() -> None:
    assert refusal(certificate(), H200, "triton") is None


@pytest.mark.parametrize("name", SAME)
def test_another_environment_is_refused(name: str) -> None:
    elsewhere = msgspec.structs.replace(H200, **{name: "another"})
    assert f"holds for another {name}" in str(refusal(certificate(), elsewhere, "triton"))


def test_a_failure_is_refused() -> None:
    records = certificate().records
    failed: tuple[CaseRecord, ...] = (replace(records[0], verdict=Verdict.FAIL), *records[1:])
    assert "not certified" in str(refusal(certificate(records=failed), H200, "triton"))


def test_a_kind_that_was_not_certified_is_refused() -> None:
    made = certificate(records=certificate().records[1:])
    assert "not certified" in str(refusal(made, H200, "triton"))  # fewer records than were planned
    smaller = replace(made, plan=msgspec.structs.replace(made.plan, cases=len(made.records)))
    assert "lacks large cases of what is timed: bf16 64 full" in str(refusal(smaller, H200, "triton"))
    small_case = certified_cases()[0].replace(seqlen_k=16)
    plan = msgspec.structs.replace(made.plan, cases=len(certificate().records))
    with_small = replace(made, records=(record(small_case, Verdict.PASS), *made.records), plan=plan)
    assert "bf16 64 full" in str(refusal(with_small, H200, "triton"))


def test_another_kernel_and_the_interpreter_are_refused() -> None:
    of_mutant = msgspec.structs.replace(certificate().plan, kernel="mutant:lse-in-base-2")
    assert "not of triton" in str(refusal(certificate(plan=of_mutant), H200, "triton"))
    interpreted = msgspec.structs.replace(H200, interpreter=True)
    assert "interpreter" in str(refusal(certificate(environment=interpreted), H200, "triton"))


def test_a_precision_needs_a_certificate_of_its_own() -> None:
    made = certificate(**of_precision("triton:bf16x6"))
    assert refusal(made, H200, "triton:bf16x6") is None
    assert "not of triton:tf32x3" in str(refusal(made, H200, "triton:tf32x3"))
    assert {case.dtype for case in certified_cases("triton:bf16x6")} == {"fp32"}
    assert set(PRECISIONS) <= set(NAMES)


def test_the_command_shows_no_speed_of_a_failed_kernel(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pretended GPU; nothing is timed before the certificate allows it."""
    from flashverify import lanes

    records = certificate().records
    path = tmp_path / "failed.json"
    certificate(records=(replace(records[0], verdict=Verdict.FAIL), *records[1:])).write(path)
    monkeypatch.setattr(lanes, "enter_lane", lambda wanted: lanes.Lane("gpu", "cpu", "pretended"))
    monkeypatch.setattr(Environment, "capture", classmethod(lambda cls, *arguments: H200))
    monkeypatch.setattr(run, "compile_ahead", lambda kernels: pytest.fail("compiled"))
    monkeypatch.setattr(run, "measure", lambda kernels: pytest.fail("measured"))
    monkeypatch.setattr("sys.argv", ["flashverify", "bench", "--certificate", str(path)])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    assert exited.value.code == 1
    assert "no speed of triton is shown: the kernel is not certified" in capsys.readouterr().out


def test_the_command_times_those_kernels_alone_that_are_certified(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flashverify import lanes

    certificate().write(tmp_path / "ours.json")
    certificate(**of_precision("triton:bf16x6")).write(tmp_path / "pieces.json")
    monkeypatch.setattr(lanes, "enter_lane", lambda wanted: lanes.Lane("gpu", "cpu", "pretended"))
    monkeypatch.setattr(Environment, "capture", classmethod(lambda cls, *arguments: H200))
    monkeypatch.setattr(run, "compile_ahead", lambda kernels: None)
    seconds = {"ours ieee": 4.0, "ours bf16x6": 1.0, "memory-efficient": 2.0}
    timed: list[object] = []
    monkeypatch.setattr(run, "measure", lambda kernels: timed.append(kernels) or [Timing(SINGLE[0], "forward", seconds)])
    paths = [str(tmp_path / name) for name in ("ours.json", "pieces.json")]
    words = ["bench", "--certificate", paths[0], "--certificate", paths[1], "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["flashverify", *words])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    assert not exited.value.code
    assert timed == [["triton", "triton:bf16x6"]]
    shown = capsys.readouterr().out
    assert "no speed of triton:tf32x3 is shown: no certificate of triton:tf32x3 was given" in shown
    assert "forward: ours bf16x6 / memory-efficient: 2.000" in shown
    assert "forward: ours bf16x6 / memory-efficient: 2.000" in (tmp_path / "triton-bench-tables.md").read_text()


def test_without_a_gpu_it_is_an_error_of_usage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["flashverify", "bench"])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    assert exited.value.code == cli.USAGE
    assert "no GPU" in capsys.readouterr().err
