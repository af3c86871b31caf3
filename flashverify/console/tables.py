"""Tables for the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from flashverify.cases.case import DTYPES
from flashverify.console.axioms import axioms_line
from flashverify.console.dropout import print_masks
from flashverify.console.text import figure
from flashverify.console.tiers import print_tiers
from flashverify.records.certificate import Certificate
from flashverify.records.measurement import Measurement, Verdict
from flashverify.records.summary import Summary, Worst, summarise
from flashverify.records.timings import spent

TITLES = {
    0: "[bold green]certified[/]",
    1: "[bold red]FAILED: a kernel is outside its budget[/]",
    3: "[bold magenta]inconclusive: not every case could be decided[/]",
    5: "[bold magenta]nothing ran[/]",
}


def print_summary(console: Console, certificate: Certificate) -> None:
    """The final table of a campaign: worst known errors, counts, distances, verdict."""
    summary = summarise(certificate)
    table = Table(title="worst known errors", title_justify="left")
    for title in ("dtype", "tensor", "mode"):
        table.add_column(title)
    for title in ("max ulp", "error / budget"):
        table.add_column(title, justify="right")
    table.add_column("attained by (largest error / budget)", overflow="fold")
    order = {dtype: place for place, dtype in enumerate(DTYPES)}
    for key, worst in sorted(summary.tensor_headroom.items(), key=lambda item: order.get(item[0][0], len(order))):
        ulp = summary.tensors.get(key)
        table.add_row(*key, figure(ulp.value) if ulp else "", figure(worst.value), worst.case)
    console.print(table)
    console.print("ulp: at the head's largest true value; where a head cancels, error / budget is the figure to read")
    print_tiers(console, certificate)
    print_masks(console, certificate)
    _print_distances(console, summary)
    console.print(axioms_line(certificate.axioms), highlight=False, markup=False, soft_wrap=True)
    counts = ", ".join(f"{n} {verdict.value}" for verdict, n in summary.verdicts.items() if n)
    not_run = f", {summary.not_run} not run" if summary.not_run else ""
    console.print(f"{len(certificate.records)} cases: {counts}{not_run}; {certificate.seconds:.0f} s")
    _print_time(console, certificate)
    for reason, n in sorted(summary.unsupported.items(), key=lambda item: -item[1]):
        console.print(f"  {n} unsupported: {reason}", highlight=False, markup=False)
    console.print(TITLES[summary.exit_code])


def _print_time(console: Console, certificate: Certificate) -> None:
    seconds = spent(certificate.records)
    total = sum(seconds.values())
    if total > 0.0:
        words = ", ".join(f"{stage} {figure(x)} s ({x / total:.0%})" for stage, x in seconds.items() if x)
        console.print(f"time of all workers: {words}", soft_wrap=True)


def _print_distances(console: Console, summary: Summary) -> None:
    def words(worst: Worst | None) -> str:
        return "not measured" if worst is None else f"{figure(worst.value)} ({worst.case})"

    console.print(
        "float64 instantiation, largest distance from the rigorous enclosure, relative to its terms: "
        f"forward {words(summary.forward_distance)}, backward {words(summary.backward_distance)}",
        highlight=False,
    )


def measurement_table(measurements: tuple[Measurement, ...]) -> Table:
    """One row a measurement."""
    table = Table()
    for title in ("tensor", "mode"):
        table.add_column(title)
    for title in ("elements", "max error", "max ulp", "rms ulp", "bias ulp", "error / budget", "violations"):
        table.add_column(title, justify="right")
    for m in measurements:
        style = "red" if m.violations else ("magenta" if not m.headroom <= 1.0 else "")
        numbers = (m.max_error, m.max_ulp, m.rms_ulp, m.bias_ulp, m.headroom)
        table.add_row(m.tensor, m.mode, str(m.elements), *map(figure, numbers), str(m.violations), style=style)
    return table


def verdict_text(verdict: Verdict) -> str:
    """The verdict's word in its colour."""
    from flashverify.console.progress import COLOURS

    return f"[{COLOURS[verdict]}]{verdict.value}[/]"
