"""The gate in a terminal: what moved between two certificates, worst first, and what follows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flashverify.console.text import figure
from flashverify.records.baseline import BaselineComparison, Loss, Move
from flashverify.records.certificate import Certificate
from flashverify.records.summary import Group

SHOWN = 25
"""Rows of a table; a line says how many more there are."""

TITLES = {
    0: "[bold green]no number got worse[/]",
    1: "[bold red]FAILED: no worse than the baseline, but a kernel is outside its budget[/]",
    2: "[bold red]REGRESSION against the baseline[/]",
    3: "[bold magenta]inconclusive: no worse than the baseline, but not every case could be decided[/]",
    5: "[bold magenta]nothing to compare[/]",
}


def print_gate(console: Console, new: Certificate, baseline: Certificate, found: BaselineComparison, strict: bool) -> None:
    """What the gate found: why it refuses, or what differs, what was lost, what moved, and the verdict."""
    if found.refusals:
        for reason in found.refusals:
            console.print(reason, markup=False, soft_wrap=True)
        console.print("[bold magenta]inconclusive: the two certificates cannot be compared[/]")
        return
    _print_environment(console, new, baseline)
    _print_losses(console, found.losses)
    _print_moves(console, "REGRESSION: beyond the baseline's worst known", found.exceeded)
    for trend in found.trends:
        console.print(
            f"REGRESSION: {trend.quantity} of {trend.dtype} {trend.tensor} ({trend.mode}) rose in {trend.rises} of "
            f"{trend.rises + trend.falls} draws that moved; by chance: {float(trend.chance):.2g}",
            markup=False,
            soft_wrap=True,
        )
    title = "REGRESSION: rose (--strict)" if strict else "moved: rose, within the baseline's worst known"
    _print_moves(console, title, found.moved)
    _print_groups(console, found.groups)
    for words in _first(found.undecided, "more numbers that are not finite"):
        console.print(f"no number: {words}", markup=False, soft_wrap=True)
    if found.contracts:
        console.print(
            f"the numerical contract, on which budgets stand, differs in {len(found.contracts)} cases: read ulps there"
        )
    if found.added_checks:
        console.print(f"new checks, which the baseline cannot judge: {', '.join(found.added_checks)}", markup=False)
    if found.added:
        console.print(f"{len(found.added)} new cases, which the baseline cannot judge")
    rose = len(found.exceeded) + len(found.moved)
    console.print(
        f"{found.equal + found.fallen + rose} numbers: {found.equal} equal, {found.fallen} fell, {rose} rose, "
        f"{len(found.exceeded)} of them beyond the worst known; {len(found.trends)} trends; "
        f"{len(found.losses)} verdicts or coverage lost",
        soft_wrap=True,
    )
    if found.empty:
        console.print(found.empty)
    console.print(TITLES[found.exit_code(strict)])


def _first(words: Sequence[str], more: str) -> Iterable[str]:
    yield from words[:SHOWN]
    if len(words) > SHOWN:
        yield f"... {len(words) - SHOWN} {more}"


def _print_environment(console: Console, new: Certificate, baseline: Certificate) -> None:
    before, after = baseline.environment.describe(), new.environment.describe()
    before["kernel"], after["kernel"] = baseline.plan.kernel, new.plan.kernel
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    for name in names:
        console.print(f"{name}: {before.get(name, '-')} -> {after.get(name, '-')}", markup=False, soft_wrap=True)


def _print_losses(console: Console, losses: tuple[Loss, ...]) -> None:
    if not losses:
        return
    table = _table("REGRESSION: verdicts and coverage lost", ("case", "what", "baseline", "new"))
    for loss in losses[:SHOWN]:
        table.add_row(*map(escape, (loss.case, loss.what, loss.old, loss.new)))
    _print(console, table, len(losses))


def _print_moves(console: Console, title: str, moves: tuple[Move, ...]) -> None:
    if not moves:
        return
    table = _table(title, ("case", "check", "tensor", "mode", "quantity"), ("baseline", "new", "new / old", "worst known"))
    for move in moves[:SHOWN]:
        numbers = (exact(move.old, move.new), exact(move.new, move.old), exact(move.growth, 1.0), known(move.known))
        table.add_row(move.case, move.check, move.tensor, move.mode, move.quantity, *numbers)
    _print(console, table, len(moves))


def _print_groups(console: Console, groups: tuple[tuple[Group, Group], ...]) -> None:
    if not groups:
        return
    titles = ("rms ulp", "bias ulp", "max ulp", "error / budget")
    table = _table("pooled, by features: baseline -> new", ("dtype", "features", "tensor", "mode"), titles)
    for old, new in groups[:SHOWN]:
        pairs = (
            (old.rms_ulp, new.rms_ulp),
            (old.bias_ulp, new.bias_ulp),
            (old.ulp.value, new.ulp.value),
            (old.headroom.value, new.headroom.value),
        )
        cells = (f"{exact(before, after)} -> {exact(after, before)}" for before, after in pairs)
        table.add_row(old.dtype, old.features, old.tensor, old.mode, *cells)
    _print(console, table, len(groups))


def exact(x: float, other: float) -> str:
    """Three significant digits, or as many as tell it from the other."""
    if x == other or figure(x) != figure(other):
        return figure(x)
    return next((f"{x:.{digits}g}" for digits in range(4, 17) if f"{x:.{digits}g}" != f"{other:.{digits}g}"), repr(x))


def known(x: float) -> str:
    """The worst known number, or a dash where the baseline knows none."""
    return "-" if x == -math.inf else figure(x)


def _table(title: str, words: tuple[str, ...], numbers: tuple[str, ...] = ()) -> Table:
    table = Table(title=title, title_justify="left")
    for column in words:
        table.add_column(column, overflow="fold")
    for column in numbers:
        table.add_column(column, justify="right")
    return table


def _print(console: Console, table: Table, rows: int) -> None:
    console.print(table)
    if rows > SHOWN:
        console.print(f"... {rows - SHOWN} more")
