"""Planted defects in a terminal: those that nothing sees as they come, and the score."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flashverify.records.detection import Detection, Trial


@contextmanager
def watched(console: Console, total: int) -> Iterator[Callable[[Trial], None]]:
    """A progress bar of so many trials; gives what is to be called with each."""
    columns = (TextColumn("planting"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda trial: progress.update(task, advance=1)


def print_detection(console: Console, detection: Detection) -> None:
    """The score, survivors and false alarms."""
    for mutant in detection.survivors:
        console.print(f"[red]not seen[/] {mutant.name}: {mutant.equivalent or mutant.story}", soft_wrap=True)
    for alarm in detection.false_alarms:
        console.print(f"[red]false alarm[/] {alarm.case}: ", end="", soft_wrap=True)
        console.print(alarm.reason, markup=False, soft_wrap=True)
    for rule in detection.rules:
        caught, tried, alarms, healthy = detection.rival(rule)
        console.print(f"{rule}: {caught} of {tried} seen, {alarms} of {healthy} healthy cases rejected", markup=False)
    for verifier in detection.verifiers:
        if not verifier.differing:
            console.print(f"[red]not caught[/] verifier:{verifier.name}: {verifier.story}", soft_wrap=True)
    console.print(
        f"{detection.seen} of {len(detection.counted)} planted defects seen ({100 * detection.score:.1f} %), "
        f"{len(detection.false_alarms)} false alarms in {len(detection.controls)} healthy cases; {detection.seconds:.0f} s"
    )
