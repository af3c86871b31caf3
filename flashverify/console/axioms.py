"""The table of the device's own arithmetic in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flashverify.records.axioms import Axioms, TensorCoreModel


def print_axioms(console: Console, axioms: Axioms) -> None:
    """One line a primitive, then what fits no model, in full."""
    table = Table(title=f"arithmetic of {escape(axioms.device)}", title_justify="left")
    table.add_column("primitive", overflow="fold")
    table.add_column("measured", overflow="fold")
    table.add_column("model or limit", overflow="fold")
    table.add_column("inputs", justify="right")
    for line in axioms.observations:
        inputs = ("all " if line.exhaustive else "") + (f"{line.inputs:,}" if line.inputs else "")
        table.add_row(*map(escape, (line.name, line.value, line.text)), inputs, style="" if line.fits else "magenta")
    console.print(table)
    print_unexplained(console, axioms)


def print_unexplained(console: Console, axioms: Axioms) -> None:
    """Why nothing can be certified on this arithmetic, one line a primitive; nothing if it is understood."""
    for line in axioms.unexplained:
        console.print(f"[magenta]fits no model[/] {escape(line.name)}: {escape(line.value)}", soft_wrap=True)
        console.print(f"  {line.text}", markup=False, soft_wrap=True)
    if axioms.unexplained:
        console.print("Budgets would stand on nothing: nothing is certified on this arithmetic (docs/axioms.md).")


def axioms_line(axioms: Axioms | None) -> str:
    """The arithmetic in one line, for summaries."""
    if axioms is None:
        return "arithmetic of the device: not measured; budgets stand on published figures"
    formats: dict[TensorCoreModel, list[str]] = {}
    for name, model in axioms.tensor_cores.items():
        formats.setdefault(model, []).append(name)
    words = [f"{'/'.join(names)} in blocks of {model.block}, {model.extra_bits} extra bits" for model, names in formats.items()]
    words.append(f"fp32 {axioms.fp32_dot or 'unknown'}")
    words.append(f"exp2 within {float(axioms.exp2_max_ulps):.4g} ulp")
    words.append(f"division within {float(axioms.division_max_ulps):.4g}")
    found = f"; {len(axioms.unexplained)} primitives fit no model" if axioms.unexplained else ""
    return f"arithmetic of {axioms.device}: {', '.join(words)}{found}"
