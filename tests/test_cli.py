"""The command line as a person meets it: exit codes, one-line errors, and the files that a campaign leaves.

Most commands run in this process, through `main`; a few as programs of their own, for what only a program shows.
"""

import os
import signal
import subprocess
import sys
import time

import pytest

from flashverify import cli
from flashverify.campaign.journal import read
from flashverify.numerics.axioms.arithmetic import Arithmetic, Observation
from flashverify.records.axioms import Axioms
from flashverify.records.certificate import Certificate
from flashverify.records.measurement import Verdict
from tests.records import synthetic

TINY = "fp32_b1_h1x1_n2x3_d2_full_normal_contiguous_s0"
BASE_2 = "fp32_b1_h1x1_n3x5_d4_causal_normal_contiguous_s0"
SDPA = "torch.nn.functional:scaled_dot_product_attention"

KERNELS = '''
"""Kernels that end badly."""

import os
import time

import torch


def crashes(query, key, value, **options):
    raise RuntimeError("shared memory exhausted\\nand a second line")


def dies(query, key, value, **options):
    os._exit(41)


def hangs(query, key, value, **options):
    if query.dtype == torch.float64:
        time.sleep(600)
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, **options)


def overwrites(query, key, value, **options):
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, **options)
    key.data.zero_()
    return out
'''


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A fresh current folder that holds a user's module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    (tmp_path / "user_kernels.py").write_text(KERNELS)
    yield tmp_path
    sys.modules.pop("user_kernels", None)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command: exit code, standard output, standard error."""

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["flashverify", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return command


def program(*words, code="from flashverify.cli import main; main()", **keywords):
    """The same as a program of its own; the repository is importable, as if installed."""
    path = os.pathsep.join(part for part in sys.path if part)
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **keywords,
    )


def certify(run, kernel, *cases, more=()):
    options = [word for case in cases for word in ("--case", case)]
    return run("certify", "--kernel", kernel, "--workers", 1, *options, *more)


def test_a_pass_is_certified_and_leaves_its_files(run, folder):
    code, out, err = certify(run, "triton", TINY, TINY)
    assert (code, err) == (0, "")
    assert "certified" in out
    assert "1 cases: 1 pass" in out  # the same case twice is one case
    assert "time of all workers: kernel " in out
    names = {path.name for path in (folder / "certificates").iterdir()}
    assert names == {"triton-cases.json", "triton-cases.html", "triton-cases.md"}  # no journal, nothing partial
    for name in names:
        assert f"certificates/{name}" in out
    certificate = Certificate.read(folder / "certificates" / "triton-cases.json")
    assert [(record.case, record.verdict) for record in certificate.records] == [(TINY, Verdict.PASS)]
    assert certificate.plan.lane == "interpreter"

    code, again, err = run("report", "certificates/triton-cases.json", "--output", "elsewhere/deep")
    assert (code, err) == (0, "")
    assert {path.name for path in (folder / "elsewhere" / "deep").iterdir()} == {"triton-cases.html", "triton-cases.md"}
    assert "certified" in again


def test_the_arithmetic_is_measured_first_and_kept(run, folder):
    code, out, err = run("axioms", "--output", "axioms.json")
    assert (code, err) == (0, "")
    assert "exp2 on [-150, 0], largest error" in out
    kept = Axioms.from_json((folder / "axioms.json").read_bytes())
    assert (kept.lane, kept.unexplained) == ("interpreter", ())
    code, out, _ = certify(run, "triton", TINY)
    assert code == 0
    assert "arithmetic of Triton's interpreter: fp32 any-order, exp2 within 0." in out
    certificate = Certificate.read(folder / "certificates" / "triton-cases.json")
    assert certificate.axioms == kept


def odd_arithmetic(device):
    line = Observation(
        "exp2 on [-150, 0], largest error", "40 ulp", "published: 2.5 ulp; tried: all that is known", 9, fits=False
    )
    return Arithmetic(device="an odd one", lane="interpreter", observations=(line,))


def test_arithmetic_that_fits_no_model_stops_certification(run, folder, monkeypatch):
    for where in ("flashverify.console.campaign", "flashverify.numerics.axioms.measure"):
        monkeypatch.setattr(f"{where}.measure", odd_arithmetic)
    code, out, err = certify(run, "triton", TINY)
    assert (code, err) == (3, "")
    assert "fits no model exp2 on [-150, 0], largest error: 40 ulp" in out
    assert "tried: all that is known" in out
    certificate = Certificate.read(folder / "certificates" / "triton-cases.json")
    assert (certificate.records, certificate.plan.cases) == ((), 1)
    assert "**fits no model:** 40 ulp" in (folder / "certificates" / "triton-cases.md").read_text()
    code, out, _ = run("axioms")
    assert code == 3
    assert "nothing is certified on this arithmetic" in out
    code, out, _ = run("replay", TINY)
    assert code == 3
    assert "40 ulp" in out


def test_a_mutant_fails_and_says_where(run, folder):
    code, out, _ = certify(run, "mutant:lse-in-base-2", BASE_2)
    assert code == 1
    assert "FAILED" in out
    assert f"fail {BASE_2}" in out
    assert "lse (" in out
    assert (folder / "certificates" / "mutant-lse-in-base-2-cases.json").is_file()


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        ("user_kernels:crashes", "RuntimeError: shared memory exhausted (user_kernels.py:"),
        ("user_kernels:dies", "worker died with exit code 41"),
        ("user_kernels:hangs", "timeout: took more than 4 s"),
    ],
)
def test_a_kernel_that_ends_badly_is_inconclusive(run, folder, kernel, reason):
    code, out, err = certify(run, kernel, TINY, more=("--timeout", 4))
    assert (code, err) == (3, "")
    assert reason in out
    assert "certified" not in out
    name = kernel.replace(":", "-")
    (record,) = Certificate.read(folder / "certificates" / f"{name}-cases.json").records
    assert record.verdict is Verdict.INCONCLUSIVE
    assert (folder / "certificates" / f"{name}-cases.html").is_file()


def test_a_kernel_that_overwrites_its_inputs_fails(run):
    code, out, _ = certify(run, "user_kernels:overwrites", TINY)
    assert code == 1
    assert "k: the kernel wrote into the memory of its input" in out


def test_any_function_can_be_certified(run, folder):
    code, _, _ = certify(run, SDPA, TINY)
    assert code == 0
    stem = "torch.nn.functional-scaled_dot_product_attention-cases"
    assert {path.name for path in (folder / "certificates").iterdir()} == {f"{stem}.{end}" for end in ("json", "html", "md")}
    code, _, _ = run("report", f"certificates/{stem}.json")
    assert code == 0


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--matrix", "smoke", "--select", "no-such-feature"), id="nothing selected"),
        pytest.param(("--kernel", SDPA, "--case", "fp32_b1_h1x1_n2x3_d2_causal_normal_contiguous_s0"), id="all declined"),
    ],
)
def test_nothing_that_ran_is_nothing_certified(run, folder, options):
    code, out, err = run("certify", "--workers", 1, *options)
    assert (code, err) == (5, "")
    assert "nothing ran" in out
    assert "certified" not in out
    (markdown,) = (folder / "certificates").glob("*.md")
    assert "nothing ran" in markdown.read_text().lower()


USAGE = {
    "certify --kernel cutlass": "kernel: got 'cutlass', accepted are mutant:NAME, triton, triton:bf16x6, triton:tf32x3, ",
    "certify --kernel triton:tf33": "kernel: got 'triton:tf33', accepted are mutant:NAME, triton, triton:bf16x6, ",
    "certify --kernel mutant:radioactive": "mutant: got 'radioactive', accepted are scale-off",
    "certify --kernel no_such_package:f": "kernel: got 'no_such_package:f'; module 'no_such_package' can't be imported",
    "certify --matrix huge": "matrix: got 'huge', accepted are smoke, standard, full",
    "certify --lane fast": "lane: got 'fast', accepted are auto, gpu, interpreter",
    "certify --case fp32_oops": "case id: got 'fp32_oops', accepted are ids such as bf16_",
    "certify --case fp32_b1_h1x1_n2x3_d2_full_abnormal_contiguous_s0": "case id: got regime 'abnormal' in",
    "certify --case fp32_b1_h1x1_n2x3_d2_full_normal_twisted_s0": "case id: got layout 'twisted' in",
    f"certify --case {TINY} --matrix smoke": "--matrix and --case: got both, accepted is one of them",
    "certify --colour red": "No such option: --colour",
    "certify --workers 0": "Invalid value for '--workers'",
    "certify --timeout soon": "Invalid value for '--timeout'",
    f"certify --case {TINY} --output user_kernels.py/sub": "user_kernels.py/sub: Not a directory",
    "replay fp32_oops": "case id: got 'fp32_oops'",
    "axioms --lane fast": "lane: got 'fast'",
    "replay": "Missing argument 'case'",
    "report nowhere.json": "nowhere.json: No such file or directory",
    "list colours": "what: got 'colours', accepted are cases, regimes, layouts, checks, matrices, mutants",
    "list cases --matrix huge": "matrix: got 'huge'",
    "env --lane fast": "lane: got 'fast'",
    "certifi": "No such command 'certifi'",
}


@pytest.mark.parametrize("words", USAGE)
def test_bad_usage_is_one_line_and_exit_code_4(run, folder, words):
    code, _, err = run(*words.split())
    assert code == 4
    assert err.startswith("flashverify: ")
    assert USAGE[words] in err
    assert err.count("\n") == 1
    assert not (folder / "certificates").exists()


@pytest.mark.parametrize("words", [("certify", "--lane", "gpu"), ("bench",), ("claims",)])
def test_a_lane_without_its_gpu_is_refused(run, monkeypatch, words):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, _, err = run(*words)
    assert (code, err) == (4, "flashverify: lane: got 'gpu', but torch finds no GPU here; accepted are auto and interpreter\n")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[: len(text) // 2], "is not JSON"),
        (lambda text: text.replace('"verdict":"pass"', '"verdict":"perfect"', 1), 'verdict: got "perfect"'),
        (lambda text: text.replace('"records"', '"recordings"', 1), "field recordings"),
        (lambda text: "", "is not JSON"),
        (lambda text: "[]", "(the whole document)"),
    ],
)
def test_a_damaged_certificate_is_no_report(run, folder, damage, words):
    healthy = synthetic.certificate(synthetic.record(synthetic.case())).to_json().decode()
    damaged = damage(healthy)
    assert damaged != healthy
    (folder / "damaged.json").write_text(damaged)
    code, _, err = run("report", "damaged.json")
    assert code == 4
    assert err.startswith("flashverify: damaged.json: ")
    assert words in err
    assert not (folder / "damaged.html").exists()


@pytest.mark.parametrize(
    ("kernel", "case", "expected", "words"),
    [
        ("triton", TINY, 0, [f"{TINY}: pass", "check accuracy: pass", "check function: pass", "error / budget", "worst at ["]),
        (
            "mutant:lse-in-base-2",
            BASE_2,
            1,
            [f"{BASE_2}: fail", "check accuracy: fail", "lse (forward), row [0, 0], worst at [0, 0, "],
        ),
        ("user_kernels:crashes", TINY, 3, [f"{TINY}: inconclusive", "RuntimeError: shared memory exhausted"]),
        ("user_kernels:overwrites", TINY, 1, [f"{TINY}: fail", "k: the kernel wrote into the memory of its input"]),
        (SDPA, BASE_2, 5, [f"{BASE_2}: unsupported", "bottom-right causal mask with seqlen_q != seqlen_k"]),
    ],
)
def test_replay_shows_the_worst_elements_and_ends_with_the_verdicts_code(run, folder, kernel, case, expected, words):
    code, out, _ = run("replay", case, "--kernel", kernel)
    assert code == expected
    for word in words:
        assert word in out
    assert not (folder / "certificates").exists()


def test_replay_of_an_empty_case_has_no_worst_row(run):
    code, out, _ = run("replay", "fp32_b0_h1x1_n2x3_d2_full_normal_contiguous_s0", "--kernel", SDPA)
    assert code == 0
    assert "worst at" not in out


def test_replay_shows_the_masks_of_dropout(run):
    case = "fp32_b2_h4x4_n256x256_d16_full_normal_contiguous_drop0.25_s0"
    code, out, _ = run("replay", case, "--kernel", SDPA)
    assert code == 0
    for words in ("check mask: pass", "forward", "524,288", "check statistics: pass", "least likely"):
        assert words in out
    assert "what the rescaling assumes: 0.2" in out
    assert "check accuracy: unsupported" in out


def test_replay_marks_the_element_that_the_reason_names(run):
    _, out, _ = run("replay", BASE_2, "--kernel", "mutant:lse-in-base-2")
    index = out.partition("worst ")[2].partition(" at (")[2].partition(")")[0]
    assert f"worst at [{index}]" in out


def test_replay_shows_the_tiers_and_the_row_that_only_the_sharp_budget_finds(run):
    case = "bf16_b1_h1x1_n128x144_d64_full_normal_contiguous_s0"
    code, out, _ = run("replay", case, "--kernel", "mutant:out-accumulated-in-bf16")
    assert code == 1
    for words in ("check accuracy: pass", "check sharp: fail", "check distribution: fail", "error / sharp budget", "rms(z)"):
        assert words in out
    assert "; out (unrounded): errors are " in out
    rows = [line for line in out.splitlines() if "worst at [" in line]
    assert len(rows) == 2
    index = out.partition("check sharp")[2].partition("worst ")[2].partition(" at (")[2].partition(")")[0]
    assert f"worst at [{index}]" in rows[1]
    assert "sharp budget" in out.partition(rows[1])[2]


def test_replay_says_why_a_tier_does_not_apply(run):
    _, out, _ = run("replay", TINY)
    assert "does not apply: too few scores: " in out


@pytest.mark.parametrize(
    ("what", "some"),
    [
        ("cases", "_normal_contiguous_s0"),
        ("regimes", "equal-logits"),
        ("layouts", "packed-qkv"),
        ("checks", "accuracy"),
        ("matrices", "smoke"),
        ("mutants", "lse-in-base-2"),
    ],
)
def test_everything_that_can_be_asked_for_is_listed(run, what, some):
    code, out, err = run("list", what)
    assert (code, err) == (0, "")
    assert some in out
    assert all(line.strip() for line in out.splitlines())


def test_listed_cases_can_be_selected(run):
    _, all_of_them, _ = run("list", "cases")
    _, some, _ = run("list", "cases", "--select", "fp64", "--select", "causal")
    chosen = [line for line in all_of_them.splitlines() if "fp64" in line and "causal" in line]
    assert chosen
    assert some.splitlines() == chosen


def test_the_environment_is_shown(run):
    code, out, err = run("env")
    assert (code, err) == (0, "")
    assert out.startswith("lane: Triton's interpreter")
    for word in ("torch", "triton", "python"):
        assert word in out.lower()


def test_help_is_shown_and_is_no_error(run):
    code, out, _ = run("--help")
    assert code == 0
    for command in ("certify", "replay", "report", "gate", "list", "env"):
        assert command in out


def test_a_crash_of_the_program_is_not_the_code_of_a_failed_kernel(run, monkeypatch):
    def crash(*arguments):
        raise RuntimeError("a bug")

    monkeypatch.setattr("flashverify.lanes.enter_lane", crash)
    code, _, err = run("env")
    assert code == 3
    assert "Traceback" in err
    assert "RuntimeError: a bug" in err


def test_importing_the_package_and_asking_for_help_imports_neither_torch_nor_triton():
    code = (
        "import sys, flashverify, flashverify.cli, flashverify.__main__\n"
        "sys.argv = ['flashverify', '--help']\n"
        "try: flashverify.cli.main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'triton', 'numpy', 'flashverify_kernels'} & set(sys.modules)))"
    )
    out, err = program(code=code).communicate()
    assert (out.splitlines()[-1], err) == ("[]", "")


def test_an_interruption_keeps_the_journal_and_names_it(folder):
    """As with Ctrl-C in a terminal, the signal goes to the workers too."""
    running = program(
        "certify", "--kernel", "user_kernels:hangs", "--workers", 2, "--case", TINY.replace("fp32", "fp64"),
        "--case", "fp32_b1_h1x1_n20x30_d2_causal_normal_contiguous_s0", start_new_session=True,
    )  # fmt: skip
    journal = folder / "certificates" / "user_kernels-hangs-cases.journal.jsonl"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (journal.is_file() and journal.stat().st_size):
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Traceback" not in err
    assert "interrupted; 1 of 2 records are in certificates/user_kernels-hangs-cases.journal.jsonl" in err
    assert [record.verdict for record in read(journal)] == [Verdict.UNSUPPORTED]
    assert not list(journal.parent.glob("*.json"))
