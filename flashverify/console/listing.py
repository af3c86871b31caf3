"""What can be asked for, as lines: cases, regimes, layouts, checks, matrices, mutants."""

from __future__ import annotations

from collections.abc import Callable

from flashverify.campaign.plan import select
from flashverify.cases import layouts, matrices, regimes
from flashverify.checks.registry import all_checks
from flashverify.mutants import catalogue


def listing(what: str, matrix: str, words: list[str]) -> list[str]:
    """The lines that list `what`; cases are those of a matrix, if words are given only those whose id or features contain one.

    Raises:
        ValueError: if there is no such list or matrix.
    """

    def cases() -> list[str]:
        return [found.id for found in select(matrices.matrix(matrix), words)]

    listings: dict[str, Callable[[], list[str]]] = {
        "cases": cases,
        "regimes": lambda: list(regimes.REGIMES),
        "layouts": lambda: list(layouts.LAYOUTS),
        "checks": lambda: list(all_checks()),
        "matrices": lambda: list(matrices.MATRICES),
        "mutants": lambda: [f"{mutant.name:28} {mutant.story}" for mutant in catalogue.MUTANTS.values()],
    }
    if what not in listings:
        raise ValueError(f"what: got {what!r}, accepted are {', '.join(listings)}")
    return listings[what]()
