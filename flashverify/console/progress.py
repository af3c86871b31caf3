"""The progress bar of a campaign, with a live count of verdicts."""

from __future__ import annotations

from collections import Counter
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flashverify.records.measurement import CaseRecord, Verdict

COLOURS = {
    Verdict.PASS: "green",
    Verdict.FAIL: "red",
    Verdict.UNSUPPORTED: "yellow",
    Verdict.INCONCLUSIVE: "magenta",
}


class CampaignProgress:
    """A context manager that shows the bar; failures are printed as they come, the first few in full."""

    SHOWN_PROBLEMS = 20

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._counts: Counter[Verdict] = Counter()
        self._problems = 0
        self._progress = Progress(
            TextColumn("certifying"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[verdicts]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("", total=total, verdicts="")

    def __enter__(self) -> CampaignProgress:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def add(self, record: CaseRecord) -> None:
        """Count a record, and print it if it is a problem."""
        self._counts[record.verdict] += 1
        verdicts = "  ".join(f"[{COLOURS[v]}]{n} {v.value}[/]" for v in Verdict if (n := self._counts[v]))
        self._progress.update(self._task, advance=1, verdicts=verdicts)
        if record.verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE):
            self._problems += 1
            if self._problems <= self.SHOWN_PROBLEMS:
                colour = COLOURS[record.verdict]
                self._console.print(f"[{colour}]{record.verdict.value}[/] {record.case}", highlight=False)
                self._console.print(f"  {record.reason}", highlight=False, markup=False)
            elif self._problems == self.SHOWN_PROBLEMS + 1:
                self._console.print("further problems are in the report")
