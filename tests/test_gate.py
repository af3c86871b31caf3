"""The gate as a person meets it: programs of their own, their exit codes and their words."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from flashverify.records.certificate import Certificate
from flashverify.records.measurement import Distribution, Sharp, Verdict
from tests.records.synthetic import H200, case, certificate, distribution, measurement, plausible, record, sharp, tiered

BASE = certificate(record(case()), record(case(seed=1), measurements=(measurement(max_ulp=0.75),)))


def with_first(**changes: object) -> Certificate:
    return replace(BASE, records=(record(case(), measurements=(measurement(**changes),)), BASE.records[1]))


def gate(folder: Path, new: Certificate, *words: str, baseline: Certificate = BASE) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the gate on these two."""
    new.write(folder / "new.json")
    baseline.write(folder / "old.json")
    return program(folder, "gate", "new.json", "--baseline", "old.json", *words)


def program(folder: Path, *words: str) -> tuple[int, str, str]:
    path = os.pathsep.join(part for part in sys.path if part)
    ended = subprocess.run(
        [sys.executable, "-m", "flashverify", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.returncode, ended.stdout, ended.stderr


ANOTHER_PLATFORM = certificate(*BASE.records, environment=msgspec.structs.replace(H200, platform="nvidia-b200"))
ANOTHER_KERNEL = replace(BASE, plan=msgspec.structs.replace(BASE.plan, kernel="mutant:scale-off"))
DECLINED = certificate(record(case(), Verdict.UNSUPPORTED, (), "no bf16 [here]"), BASE.records[1])

OUTCOMES = {
    "the same": (BASE, (), 0, ["8 numbers: 8 equal, 0 fell, 0 rose", "no number got worse"]),
    "worst known exceeded": (with_first(max_ulp=1.5), (), 2, ["beyond the baseline's worst known", "0.5", "1.5", "REGRESSION"]),
    "moved": (with_first(max_ulp=0.7), (), 0, ["moved: rose, within", "max ulp", "1 rose, 0 of them", "no number got worse"]),
    "moved, strictly": (with_first(max_ulp=0.7), ("--strict",), 2, ["rose (--strict)", "REGRESSION against the baseline"]),
    "not a number": (with_first(headroom=math.nan), (), 2, ["error / budget", "nan", "REGRESSION"]),
    "fewer cases": (certificate(BASE.records[0]), (), 2, ["verdicts and coverage lost", "not run", "1 verdicts or coverage"]),
    "declined": (DECLINED, (), 2, ["verdict", "unsupported: no bf16 [here]"]),
    "a new failure": (certificate(*BASE.records, record(case(seed=2), Verdict.FAIL)), (), 1, ["1 new cases", "FAILED"]),
    "incomplete": (certificate(*BASE.records, planned=3), (), 3, ["inconclusive: no worse than the baseline"]),
    "nothing": (certificate(), (), 5, ["the new certificate holds no case that ran", "nothing to compare"]),
    "another platform": (
        ANOTHER_PLATFORM,
        ("--strict",),
        3,
        ["platform: got 'nvidia-b200', the baseline holds for 'nvidia-h200'", "cannot be compared"],
    ),
    "another kernel": (ANOTHER_KERNEL, (), 3, ["kernel: got 'mutant:scale-off', the baseline holds for 'triton'"]),
    "another kernel, allowed": (ANOTHER_KERNEL, ("--allow-kernel",), 0, ["kernel: triton -> mutant:scale-off"]),
}


TIERED = certificate(tiered(case()), tiered(case(seed=1)))


def with_tiers(close: Sharp | None = None, scores: Distribution | None = None) -> Certificate:
    return replace(TIERED, records=(tiered(case(), close, scores), TIERED.records[1]))


TIER_OUTCOMES = {
    "the same": (TIERED, TIERED, 0, ["16 numbers: 16 equal, 0 fell, 0 rose"]),
    "sharp": (
        with_tiers(sharp(headroom=0.9)),
        TIERED,
        2,
        ["beyond the baseline's worst", "error / sharp budget", "0.75", "1.2"],
    ),
    "rms": (with_tiers(None, distribution(rms=1.176)), TIERED, 2, ["rms(z)", "0.98", "1.18"]),
    "t": (with_tiers(None, distribution(t=1.8)), TIERED, 2, ["|t| / limit", "0.188", "0.225"]),
    "t_sign": (with_tiers(None, distribution(t_sign=-3.0)), TIERED, 2, ["|t_sign| / limit", "0.303", "0.364"]),
    "not scored": (with_tiers(None, distribution("dq")), TIERED, 2, ["coverage lost", "distribution: out", "not scored"]),
    "fewer cases": (certificate(TIERED.records[0]), TIERED, 2, ["coverage lost", "not run"]),
    "another platform": (
        replace(TIERED, environment=msgspec.structs.replace(H200, platform="nvidia-b200")),
        TIERED,
        3,
        ["platform: got 'nvidia-b200'"],
    ),
    "before the tiers": (TIERED, BASE, 0, ["8 numbers: ", "new checks, which the baseline cannot judge: distribution, sharp"]),
    "after the tiers": (BASE, TIERED, 2, ["check sharp", "check distribution", "not run"]),
}


@pytest.mark.parametrize("name", TIER_OUTCOMES)
def test_the_later_tiers_have_their_exit_codes_and_their_words(tmp_path: Path, name: str) -> None:
    new, baseline, expected, printed = TIER_OUTCOMES[name]
    code, out, err = gate(tmp_path, new, baseline=baseline)
    assert (code, err) == (expected, "")
    for part in printed:
        assert part in out
    assert ("REGRESSION against the baseline" in out) == (expected == 2)


@pytest.mark.parametrize("name", OUTCOMES)
def test_every_outcome_has_its_exit_code_and_its_words(tmp_path: Path, name: str) -> None:
    new, words, expected, printed = OUTCOMES[name]
    code, out, err = gate(tmp_path, new, *words)
    assert (code, err) == (expected, "")
    for part in printed:
        assert part in out
    assert ("no number got worse" in out) == (expected == 0)


def test_no_baseline_is_an_error_of_usage(tmp_path: Path) -> None:
    BASE.write(tmp_path / "new.json")
    (tmp_path / "broken.json").write_text('{"schema": "flashverify/certificate/0"}')
    for words, message in (
        (("gate", "new.json"), "Missing option '--baseline'"),
        (("gate", "new.json", "--baseline", "old.json"), "old.json: No such file or directory"),
        (("gate", "old.json", "--baseline", "new.json"), "old.json: No such file or directory"),
        (("gate", "new.json", "--baseline", "broken.json"), "broken.json: field schema: got 'flashverify/certificate/0'"),
        (("gate", "new.json", "--baseline", "."), ".: Is a directory"),
    ):
        code, out, err = program(tmp_path, *words)
        assert (code, out) == (4, "")
        assert err.startswith("flashverify: ")
        assert message in err


def test_a_certificate_that_says_a_case_twice_is_an_error_of_usage(tmp_path: Path) -> None:
    code, _, err = gate(tmp_path, certificate(BASE.records[0], BASE.records[0]))
    assert code == 4
    assert "got two records of case" in err


def test_a_table_names_the_worst_first_and_how_many_more(tmp_path: Path) -> None:
    whole = plausible(160)
    worse = [
        replace(
            entry,
            results=tuple(
                replace(
                    result,
                    measurements=tuple(
                        replace(found, max_ulp=found.max_ulp * (50.0 if place == 7 else 10.0)) for found in result.measurements
                    ),
                )
                for result in entry.results
            ),
        )
        for place, entry in enumerate(whole.records)
    ]
    code, out, _ = gate(tmp_path, replace(whole, records=tuple(worse)), baseline=whole)
    assert code == 2
    rows = [line for line in out.partition("beyond the baseline's worst known")[2].splitlines() if "max ulp" in line]
    assert " 50 " in rows[0]
    assert "REGRESSION: max ulp of bf16 out (forward) rose in" in out
    assert " more\n" in out


def test_what_differs_between_the_environments_is_said(tmp_path: Path) -> None:
    new = replace(BASE, environment=msgspec.structs.replace(H200, torch="2.14.0+cu130", ptxas=None))
    code, out, _ = gate(tmp_path, new)
    assert code == 0
    assert "torch: 2.13.0+cu130 -> 2.14.0+cu130" in out
    assert "ptxas: 13.0.88 -> -" in out


def test_close_numbers_are_told_apart(tmp_path: Path) -> None:
    code, out, _ = gate(tmp_path, with_first(max_ulp=math.nextafter(0.5, 1.0)))
    assert code == 0
    assert "0.5000000000000001" in out


def test_the_gate_needs_no_torch(tmp_path: Path) -> None:
    BASE.write(tmp_path / "a.json")
    path = os.pathsep.join(part for part in sys.path if part)
    code = (
        "import sys; sys.modules['torch'] = sys.modules['triton'] = None\n"
        "sys.argv = ['flashverify', 'gate', 'a.json', '--baseline', 'a.json']\n"
        "from flashverify.cli import main; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
