"""Relations between outputs as reports show them: what was compared, and what differs."""

from __future__ import annotations

from collections.abc import Iterable

from flashverify.records.measurement import CaseRecord
from flashverify.records.relations import BOUNDED, EXACT, OBSERVED, relation_totals
from flashverify.report.text import number

JUDGED = {EXACT: "bit by bit", BOUNDED: "against a bound", OBSERVED: "not promised: counted alone"}


def relation_rows(records: Iterable[CaseRecord]) -> tuple[tuple[str, ...], ...]:
    """Rows of relation, how it was judged, cases, elements, those that differ, and the largest difference / bound."""
    found = ((record.case, one) for record in records for result in record.results for one in result.relations)
    return tuple(
        (
            one.name,
            JUDGED.get(one.mode, one.mode),
            f"{one.cases:,}",
            f"{one.elements:,}",
            f"{one.differing:,}",
            number(one.worst),
        )
        for one in relation_totals(found)
    )
