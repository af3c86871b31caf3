"""The three tiers of rounding in a terminal: the table of a campaign, and the tables of one case."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from flashverify.console.text import figure
from flashverify.records.certificate import Certificate
from flashverify.records.measurement import Distribution, Sharp
from flashverify.records.tiers import tiers


def print_tiers(console: Console, certificate: Certificate) -> None:
    """The table of a campaign, and the counted reasons why a tier did not apply."""
    found = tiers(certificate.records)
    if found.rows:
        numbers = ("error / hard", "error / sharp", "rms(z)", "largest |t|", "largest |t_sign|", "scored")
        table = _table("three tiers of rounding: hard, sharp, distribution", ("dtype", "tensor", "mode"), numbers)
        for row in found.rows:
            span = "" if row.rms is None else " to ".join(dict.fromkeys(f"{end:.3f}" for end in row.rms))
            hard, sharp, t, t_sign = map(figure, (row.hard, row.sharp, row.t, row.t_sign))
            table.add_row(row.dtype, row.tensor, row.mode, hard, sharp, span, t, t_sign, str(row.distributions or ""))
        console.print(table)
    for check, reasons in found.inapplicable.items():
        for reason, n in reasons.items():
            console.print(f"  {check} does not apply to {n}: {reason}", markup=False)


def sharp_table(entries: Iterable[Sharp]) -> Table:
    """Measurements against sharp budgets: one row each."""
    table = _table(None, ("tensor", "mode"), ("elements", "error / sharp budget", "violations"))
    for entry in entries:
        style = "red" if entry.violations else ("magenta" if not entry.headroom <= 1.0 else "")
        table.add_row(entry.tensor, entry.mode, str(entry.elements), figure(entry.headroom), str(entry.violations), style=style)
    return table


def distribution_table(entries: Iterable[Distribution]) -> Table:
    """Statistics of scores, each beside what is accepted: one row a tensor."""
    table = _table(None, ("tensor", "mode"), ("scores", "rows", "rms(z)", "accepted", "t", "accepted", "t_sign", "accepted"))
    for entry in entries:
        table.add_row(
            entry.tensor,
            entry.mode,
            str(entry.elements),
            str(entry.rows),
            f"{entry.rms:.3f}",
            f"{entry.smallest_rms:.3f} to {entry.largest_rms:.3f}",
            figure(entry.t),
            f"±{figure(entry.largest_t)}",
            figure(entry.t_sign),
            f"±{figure(entry.largest_t_sign)}",
            style="red" if entry.defects else "",
        )
    return table


def _table(title: str | None, words: tuple[str, ...], numbers: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in words:
        table.add_column(column)
    for column in numbers:
        table.add_column(column, justify="right")
    return table
