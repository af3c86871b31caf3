"""Relations between outputs in a terminal: what was compared, and what differs."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from flashverify.console.text import figure
from flashverify.records.certificate import Certificate
from flashverify.records.relations import OBSERVED, Relation, relation_totals


def print_relations(console: Console, certificate: Certificate) -> None:
    """The relations examined in a campaign: one row each; nothing if there were none."""
    found = [(record.case, one) for record in certificate.records for result in record.results for one in result.relations]
    if not found:
        return
    table = _table("relation", "judged", title="relations, without an oracle")
    for one in relation_totals(found):
        numbers = (f"{one.cases:,}", f"{one.elements:,}", f"{one.differing:,}", _worst(one.worst))
        table.add_row(one.name, one.mode, *numbers, style=_style(one.differing, one.mode))
    console.print(table)


def relations_table(found: Iterable[Relation]) -> Table:
    """The relations of one case, tensor by tensor; red where one is broken."""
    table = _table("relation", "tensor", "judged")
    for one in found:
        numbers = ("1", f"{one.elements:,}", f"{one.differing:,}", _worst(one.worst))
        table.add_row(one.name, one.tensor, one.mode, *numbers, style=_style(one.differing, one.mode))
    return table


def _table(*words: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left")
    for column in words:
        table.add_column(column)
    for column in ("cases", "elements", "differ", "difference / bound"):
        table.add_column(column, justify="right")
    return table


def _worst(worst: float | None) -> str:
    return "" if worst is None else figure(worst)


def _style(differing: int, mode: str) -> str:
    return "red" if differing and mode != OBSERVED else ""
