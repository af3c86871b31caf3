"""Reading ncu's table: kernels are grouped by the separators between calls, and what is not understood is said."""

import subprocess

import pytest

from flashverify.claims import profiler
from flashverify.claims.profiler import METRICS, SEPARATOR, moved_bytes, profile

HEADER = ",".join(f'"{name}"' for name in ("ID", "Kernel Name", *METRICS))
UNITS = '"","","byte","byte"'


def table(*kernels, units=UNITS):
    rows = [f'"{i}","{name}","{read:,}","{written:,}"' for i, (name, read, written) in enumerate(kernels)]
    return "\n".join(["==PROF== Connected", HEADER, units, *rows])


WAIT = (f"at::native::{SEPARATOR}(long)", 10, 20)


def test_bytes_between_separators_are_summed():
    output = table(WAIT, ("forward_kernel", 1_000, 200), ("dq_kernel", 30, 4), WAIT, ("gemm", 5_000_000, 0), WAIT)
    assert moved_bytes(output) == [1_234, 5_000_000]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("==PROF== nothing", 'got no line that starts with "ID"'),
        (table(WAIT, units='"","","Kbyte","byte"'), "got units"),
        (table(("gemm", 1, 1), WAIT), "got 'gemm' first, accepted is spin_kernel"),
    ],
)
def test_another_table_is_refused(output, message):
    with pytest.raises(ValueError, match=message):
        moved_bytes(output)


def test_a_machine_without_ncu_has_a_reason(monkeypatch):
    monkeypatch.setattr(profiler.shutil, "which", lambda name: None)
    assert profile(["ours"], [1024]).missing == "ncu is not installed"


@pytest.mark.parametrize(
    ("code", "output", "missing"),
    [
        (1, "==ERROR== LibraryNotLoaded", "ncu ended with 1: ==ERROR== LibraryNotLoaded"),
        (0, "nothing", "ncu's table was not understood: got no line"),
        (0, table(WAIT, ("gemm", 1, 1), WAIT), "ncu saw 1 calls where 2 were made"),
    ],
)
def test_a_failed_profile_has_a_reason(monkeypatch, code, output, missing):
    monkeypatch.setattr(profiler.shutil, "which", lambda name: "ncu")
    monkeypatch.setattr(
        profiler.subprocess, "run", lambda command, **options: subprocess.CompletedProcess(command, code, output, "")
    )
    assert profile(["ours"], [1024, 2048]).missing.startswith(missing)


def test_bytes_come_back_by_subject_and_length(monkeypatch):
    output = table(*(row for size in (1, 2, 3, 4) for row in (WAIT, ("kernel", size, 0))), WAIT)
    monkeypatch.setattr(profiler.shutil, "which", lambda name: "ncu")
    monkeypatch.setattr(
        profiler.subprocess, "run", lambda command, **options: subprocess.CompletedProcess(command, 0, output, "")
    )
    assert profile(["a", "b"], [8, 16]).moved == {"a": {8: 1, 16: 2}, "b": {8: 3, 16: 4}}
