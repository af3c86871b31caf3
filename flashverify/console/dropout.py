"""Dropout masks in a terminal: bits compared, statistics, and rates."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from flashverify.console.text import figure
from flashverify.records.certificate import Certificate
from flashverify.records.dropout import Bits, Rates, Statistic, totals


def print_masks(console: Console, certificate: Certificate) -> None:
    """The bits compared in a campaign: one row a tensor; nothing if there were none."""
    bits = [one for record in certificate.records for result in record.results for one in result.bits]
    if bits:
        console.print(bits_table(bits, title="dropout masks, bit by bit"))


def bits_table(bits: Iterable[Bits], title: str | None = None) -> Table:
    """Bits by tensor and what they were compared with; red where one differs."""
    table = Table(title=title, title_justify="left")
    for column in ("mask of", "against"):
        table.add_column(column)
    for column in ("cases", "bits", "differ", "can't be told", "lost by value"):
        table.add_column(column, justify="right")
    for one in totals(bits):
        numbers = (one.cases, one.compared, one.differing, one.untold, one.lost_by_value)
        table.add_row(one.tensor, one.mode, *(f"{count:,}" for count in numbers), style="red" if one.differing else "")
    return table


def statistics_table(found: Iterable[Statistic]) -> Table:
    """The least likely outcome of each question's tests; red where it is an alarm."""
    table = Table()
    for column in ("question", "least likely"):
        table.add_column(column)
    for column in ("events", "of", "expected", "p", "limit"):
        table.add_column(column, justify="right")
    for one in found:
        numbers = (f"{one.events:,}", f"{one.trials:,}", figure(one.expected), figure(one.p), figure(one.allowed))
        table.add_row(one.question, one.name, *numbers, style="red" if one.p < one.allowed else "")
    return table


def rates_line(rates: Rates) -> str:
    """Both ranges of rates, in a line."""
    low, high = ("no bound" if bound is None else f"{bound:.9g}" for bound in (rates.assumed_low, rates.assumed_high))
    return f"the mask's rate: {rates.mask_low:.9g} to {rates.mask_high:.9g}; what the rescaling assumes: {low} to {high}"
