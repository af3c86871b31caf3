"""Dropout masks as reports show them: bits compared, statistics of other generators, and rates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from flashverify.records.dropout import Bits, Statistic, totals
from flashverify.records.measurement import CaseRecord
from flashverify.report.text import number, replay_command

COMPARED_WITH = {
    "predicted": "the host's prediction",
    "forward": "the kernel's own forward mask",
    "schedules": "the host's, under other schedules",
}


def bits_rows(records: Iterable[CaseRecord]) -> tuple[tuple[str, ...], ...]:
    """Rows of tensor, what it was compared with, cases, bits, bits that differ, bits that can't be told, lost by value."""
    return tuple(
        (
            found.tensor,
            COMPARED_WITH.get(found.mode, found.mode),
            f"{found.cases:,}",
            f"{found.compared:,}",
            f"{found.differing:,}",
            f"{found.untold:,}",
            f"{found.lost_by_value:,}",
        )
        for found in totals(_bits(records))
    )


def statistics_rows(records: Iterable[CaseRecord], kernel: str) -> tuple[tuple[str, ...], ...]:
    """Rows of question, cases, tests, bits, the least likely outcome of all, its p-value and limit, and its replay."""
    found: dict[str, list[tuple[CaseRecord, Statistic]]] = {}
    for record in records:
        for result in record.results:
            for one in result.statistics:
                found.setdefault(one.question, []).append((record, one))
    rows = []
    for question, of in found.items():
        worst_record, worst = min(of, key=lambda pair: pair[1].p / pair[1].allowed)
        tests, bits = (sum(getattr(one, name) for _, one in of) for name in ("tests", "bits"))
        outcome = f"{worst.name}: {worst.events:,} of {worst.trials:,}, {worst.expected:,.1f} expected"
        replay = replay_command(worst_record.case, kernel)
        rows.append(
            (question, f"{len(of):,}", f"{tests:,}", f"{bits:,}", outcome, number(worst.p), number(worst.allowed), replay)
        )
    return tuple(rows)


def _bits(records: Iterable[CaseRecord]) -> Iterator[Bits]:
    for record in records:
        for result in record.results:
            yield from result.bits
