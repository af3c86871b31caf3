"""One case run again, in a terminal: what each check measured, and the rows in which the worst elements lie."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

from flashverify.checks import accuracy, function, sharp
from flashverify.checks.comparison import Comparison
from flashverify.checks.examination import Examination
from flashverify.console.anatomy import worst_row
from flashverify.console.dropout import bits_table, rates_line, statistics_table
from flashverify.console.tables import measurement_table, verdict_text
from flashverify.console.tiers import distribution_table, sharp_table
from flashverify.records.measurement import CaseRecord, CheckResult, Verdict


def print_replay(console: Console, record: CaseRecord, examination: Examination) -> None:
    """Verdicts and measurements of a case's checks, then the row of the worst element of those that compare elements.

    Args:
        console: where to.
        record: what the checks found.
        examination: the same kernel on the same case; it is run again for the rows.
    """
    console.print(f"{record.case}: {verdict_text(record.verdict)}", soft_wrap=True)
    if record.reason:
        console.print(record.reason, markup=False)
    for key, value in record.configuration.items():
        console.print(f"  {key}: {value}", markup=False)
    for result in record.results:
        _print_result(console, result, said=record.reason)
    measured = {result.check: result.verdict for result in record.results if result.measurements or result.sharp}
    if "accuracy" in measured:
        _print_worst(console, accuracy.comparisons(examination))
    if measured.get("sharp", Verdict.PASS) is not Verdict.PASS and measured.get("accuracy") is Verdict.PASS:
        _print_worst(console, sharp.comparisons(examination), budget="sharp budget")
    if "function" in measured:
        _print_worst(console, function.comparisons(examination.doubled))


def _print_result(console: Console, result: CheckResult, said: str) -> None:
    console.print(f"check {result.check}: {verdict_text(result.verdict)}")
    if result.reason not in ("", said):
        does_not_apply = "does not apply: " if result.verdict is Verdict.UNSUPPORTED else ""
        console.print(f"  {does_not_apply}{result.reason}", markup=False, soft_wrap=True)
    if result.measurements:
        console.print(measurement_table(result.measurements))
    if result.sharp:
        console.print(sharp_table(result.sharp))
    if result.distributions:
        console.print(distribution_table(result.distributions))
    if result.bits:
        console.print(bits_table(result.bits))
    if result.statistics:
        console.print(statistics_table(result.statistics))
    if result.rates is not None:
        console.print(f"  {rates_line(result.rates)}", highlight=False, soft_wrap=True)


def _print_worst(console: Console, comparisons: Iterable[Comparison], budget: str = "budget") -> None:
    """The row of the worst element of all tensors: the one that fails by most, else the one closest to its budget."""
    compared = max((c for c in comparisons if c.truth.numel()), key=_badness, default=None)
    if compared is not None:
        console.print(worst_row(compared, budget))


def _badness(comparison: Comparison) -> tuple[float, float]:
    certain = float(comparison.certain_excess().max())
    return (certain if certain > 1.0 else 0.0, float(comparison.headroom().max()))
