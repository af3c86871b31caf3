"""The anatomy of one comparison: the worst element and the row that it lies in."""

from __future__ import annotations

import torch
from rich.table import Table

from flashverify.checks.comparison import Comparison
from flashverify.console.text import figure

NEIGHBOURS = 6
"""Elements shown on each side of the worst one."""


def worst_row(comparison: Comparison, budget: str = "budget") -> Table:
    """The worst element with its neighbours along the last dimension: value, truth, error, budget, error / budget.

    Args:
        comparison: a tensor beside its truth; not empty.
        budget: what the budget is called.
    """
    headroom = comparison.headroom()
    index = [int(i) for i in torch.unravel_index(torch.tensor(comparison.worst()), headroom.shape)]
    first = max(0, index[-1] - NEIGHBOURS)
    last = min(headroom.shape[-1], index[-1] + NEIGHBOURS + 1)
    row = tuple(index[:-1])
    title = f"{comparison.tensor} ({comparison.mode}), row {list(row)}, worst at {index}"
    table = Table(title=title, title_justify="left")
    for column in ("index", "value", "truth", "error", budget, f"error / {budget}"):
        table.add_column(column, justify="right")
    error = comparison.error()
    for i in range(first, last):
        here = (*row, i)
        table.add_row(
            str(i),
            f"{float(comparison.value[here]):.9g}",
            f"{float(comparison.truth[here]):.9g}",
            figure(float(error[here])),
            figure(float(comparison.budget[here])),
            figure(float(headroom[here])),
            style="bold" if i == index[-1] else "",
        )
    return table
