"""Bytes that subjects move through device memory, read from the GPU's counters by Nsight Compute (ncu), where it runs.

The profiled process is this module (`python -m flashverify.claims.profiler`): it calls the subjects one after another,
with a kernel that only waits between them, by which the list of kernels is taken apart again.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

METRICS = ("dram__bytes_read.sum", "dram__bytes_write.sum")
SEPARATOR = "spin_kernel"
"""The kernel of torch.cuda._sleep."""

LONGEST = 240.0
"""Seconds that a profile may take."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What was measured.

    Attributes:
        moved: subject -> length -> bytes read from and written to device memory.
        missing: why nothing was measured, or None.
    """

    moved: dict[str, dict[int, int]] = field(default_factory=dict)
    missing: str | None = None


def profile(names: Sequence[str], lengths: Sequence[int]) -> Profile:
    """Profile the subjects of these names at these lengths, in a process of its own."""
    program = shutil.which("ncu")
    if program is None:
        return Profile(missing="ncu is not installed")
    options = ("--clock-control", "none", "--profile-from-start", "off", "--print-units", "base", "--csv", "--page", "raw")
    target = (sys.executable, "-m", "flashverify.claims.profiler", ",".join(names), ",".join(map(str, lengths)))
    command = [program, *options, "--metrics", ",".join(METRICS), *target]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False, env=os.environ)
    except subprocess.TimeoutExpired:
        return Profile(missing=f"ncu took more than {LONGEST:.0f} s")
    if done.returncode:
        said = (done.stderr + done.stdout).strip().splitlines()
        return Profile(missing=f"ncu ended with {done.returncode}: {said[-1] if said else 'no message'}")
    try:
        groups = moved_bytes(done.stdout)
    except ValueError as error:
        return Profile(missing=f"ncu's table was not understood: {error}")
    calls = list(itertools.product(names, lengths))
    if len(groups) != len(calls):
        return Profile(missing=f"ncu saw {len(groups)} calls where {len(calls)} were made")
    found: dict[str, dict[int, int]] = {name: {} for name in names}
    for (name, length), moved in zip(calls, groups, strict=True):
        found[name][length] = moved
    return Profile(found)


def moved_bytes(output: str) -> list[int]:
    """Bytes of the kernels between separators, of ncu's raw page as CSV in base units.

    Raises:
        ValueError: if there is no such table, or a metric is missing.
    """
    lines = output.splitlines()
    start = next((place for place, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        raise ValueError('got no line that starts with "ID", accepted is the raw page as CSV')
    rows = csv.DictReader(io.StringIO("\n".join(lines[start:])))
    groups: list[int] = []
    total: int | None = None
    for row in rows:
        if not row["ID"]:  # the line of units
            wrong = {metric: row.get(metric) for metric in METRICS if row.get(metric) != "byte"}
            if wrong:
                raise ValueError(f"got units {wrong}, accepted is byte")
            continue
        if SEPARATOR in row["Kernel Name"]:
            if total is not None:
                groups.append(total)
            total = 0
        elif total is None:
            raise ValueError(f"got {row['Kernel Name']!r} first, accepted is {SEPARATOR}")
        else:
            total += sum(int(row[metric].replace(",", "")) for metric in METRICS)
    return groups


def _run_profiled(names: Sequence[str], lengths: Sequence[int]) -> None:
    import torch

    from flashverify.adapters.triton import TritonKernel
    from flashverify.claims.problems import forward_backward, inputs, subjects

    chosen = {subject.name: subject for subject in subjects(TritonKernel(torch.device("cuda")))}
    for name, length in itertools.product(names, lengths):
        tensors = inputs(length)
        forward_backward(chosen[name], tensors)  # compiles, and makes what stays
        torch.cuda.synchronize()
        with _counted():
            forward_backward(chosen[name], tensors)
    with _counted():  # ends the last call
        pass


@contextmanager
def _counted() -> Iterator[None]:
    """Kernels within are profiled, behind one that separates them from those before."""
    import torch

    torch.cuda.profiler.start()  # type: ignore[no-untyped-call]
    torch.cuda._sleep(1)  # type: ignore[no-untyped-call]
    yield
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    _run_profiled(sys.argv[1].split(","), [int(word) for word in sys.argv[2].split(",")])
