"""Detection power, measured: every planted defect on its cases, with all checks, beside the healthy kernel."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from flashverify.adapters.registry import OURS
from flashverify.campaign import worker
from flashverify.campaign.executor import Work, execute
from flashverify.campaign.worker import KernelFactory
from flashverify.cases.case import AttentionCase
from flashverify.checks.registry import all_checks
from flashverify.mutants import rivals
from flashverify.mutants.catalogue import MUTANTS
from flashverify.mutants.mutant import PREFIX, Mutant, plant
from flashverify.mutants.trials import EQUIVALENT, TRIALS
from flashverify.numerics.axioms.arithmetic import Arithmetic
from flashverify.records.certificate import now
from flashverify.records.detection import Detection, Planted, Trial
from flashverify.records.environment import Environment
from flashverify.records.measurement import CaseRecord, CheckResult, Verdict

HEALTHY = OURS
RIVAL = "rival:"
"""What is before the name of another project's rule among the results of a record here."""


def chosen(words: Sequence[str]) -> tuple[Mutant, ...]:
    """The mutants whose name contains every word.

    Raises:
        ValueError: if there is none.
    """
    found = tuple(mutant for name, mutant in MUTANTS.items() if all(word in name for word in words))
    if not found:
        raise ValueError(f"select: got {' '.join(words)}, accepted are parts of {', '.join(MUTANTS)}")
    return found


def plan(mutants: Iterable[Mutant]) -> list[Work]:
    """The healthy kernel on every case, then every mutant on its own."""
    trials = [(mutant, AttentionCase.from_id(case)) for mutant in mutants for case in TRIALS[mutant.name]]
    cases = dict.fromkeys(case for _, case in trials)
    return [(HEALTHY, case) for case in cases] + [(PREFIX + mutant.name, case) for mutant, case in trials]


def detect(
    mutants: Sequence[Mutant],
    device: str,
    factory: KernelFactory,
    arithmetic: Arithmetic,
    *,
    workers: int,
    timeout: float,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> Detection:
    """Try every mutant on its cases.

    Args:
        mutants: the defects.
        device: "cuda", or "cpu", where Triton's interpreter runs kernels.
        factory: makes kernels, healthy ones and mutants.
        arithmetic: what the device was measured to do.
        workers: worker processes.
        timeout: seconds that one trial may take.
        on_trial: called once a trial, as they come.

    Raises:
        ValueError: if a defect can't be planted: the kernels have changed since.
    """
    started, work, found = time.perf_counter(), plan(mutants), []

    def keep(record: CaseRecord) -> None:
        found.append(to_trial(record))
        on_trial(found[-1])

    with planted(mutants):
        execute(
            work,
            device,
            factory,
            tuple(all_checks()),
            workers=workers,
            timeout=timeout,
            on_record=keep,
            arithmetic=arithmetic,
            task=try_out,
        )
        sources = factory(HEALTHY, torch.device(device)).sources
    trials = {(trial.mutant, trial.case): trial for trial in found}
    order = [(kernel.removeprefix(PREFIX), case.id) for kernel, case in work]
    return Detection(
        created=now(),
        environment=Environment.capture(device == "cpu", sources),
        lane="interpreter" if device == "cpu" else "gpu",
        seconds=time.perf_counter() - started,
        mutants=tuple(Planted(name=m.name, story=m.story, source=m.source, equivalent=EQUIVALENT.get(m.name)) for m in mutants),
        trials=tuple(trials[key] for key in order if key[0] != HEALTHY),
        controls=tuple(trials[key] for key in order if key[0] == HEALTHY),
    )


@contextmanager
def planted(mutants: Iterable[Mutant]) -> Iterator[None]:
    """Within, every mutant can be imported, here and in worker processes.

    Raises:
        ValueError: if one can't be planted.
    """
    with tempfile.TemporaryDirectory(prefix="flashverify-mutants-") as folder:
        for mutant in mutants:
            plant(mutant, Path(folder))
        sys.path.append(folder)
        try:
            yield
        finally:
            sys.path.remove(folder)


def try_out(
    case_id: str,
    kernel_name: str,
    device: str,
    factory: KernelFactory,
    checks: tuple[str, ...],
    arithmetic: Arithmetic | None,
) -> CaseRecord:
    """What `worker.examine` gives, with the verdicts of other projects' rules among the results; they count for nothing."""
    record = worker.examine(case_id, kernel_name, device, factory, checks, arithmetic)
    if record.verdict in (Verdict.INCONCLUSIVE, Verdict.UNSUPPORTED):
        return record  # a kernel that crashed once may take the process with it
    try:
        accepted = rivals.verdicts(worker.kernel_of(kernel_name, device, factory), AttentionCase.from_id(case_id))
    except Exception:  # a test of another project ends here too
        accepted = dict.fromkeys(rivals.RULES, False)
    verdicts = {None: Verdict.UNSUPPORTED, True: Verdict.PASS, False: Verdict.FAIL}
    others = (CheckResult(check=RIVAL + name, verdict=verdicts[accepts]) for name, accepts in accepted.items())
    return dataclasses.replace(record, results=(*record.results, *others))


def to_trial(record: CaseRecord) -> Trial:
    """A record of `try_out` as it is kept."""
    accepted = {Verdict.PASS: True, Verdict.FAIL: False}
    ours = [result for result in record.results if not result.check.startswith(RIVAL)]
    others = [result for result in record.results if result.check.startswith(RIVAL)]
    return Trial(
        mutant=record.kernel.removeprefix(PREFIX),
        case=record.case,
        verdict=record.verdict,
        reason=record.reason,
        checks={result.check: result.verdict for result in ours if result.verdict is not Verdict.UNSUPPORTED},
        rivals={result.check.removeprefix(RIVAL): accepted.get(result.verdict) for result in others},
        seconds=record.seconds,
    )
