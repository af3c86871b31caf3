"""Failed and inconclusive cases, one by one: why, the worst element of each tensor, and scores beyond their ranges."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flashverify.records.measurement import CaseRecord, CheckResult, Distribution, Element, Measurement, Sharp, Verdict
from flashverify.records.summary import settled_verdict, severity
from flashverify.report.text import exact, number, replay_command

_ORDER = (Verdict.FAIL, Verdict.INCONCLUSIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A failed or inconclusive case, as text.

    Attributes:
        case: its id.
        verdict: its verdict.
        reasons: why, a sentence a check.
        replay: the command that runs it again.
        tensors: rows of check, tensor, mode, worst element, value, true value, budget, error / budget, elements outside: those
            against hard budgets first, each kind worst first.
        scores: rows of tensor, mode, scores, rms(z) and its range, t and its limit, t_sign and its limit, of the tensors whose
            scores are outside.
    """

    case: str
    verdict: str
    reasons: tuple[str, ...]
    replay: str
    tensors: tuple[tuple[str, ...], ...]
    scores: tuple[tuple[str, ...], ...]


def worst_first(records: Iterable[CaseRecord]) -> list[CaseRecord]:
    """The failed cases, then the inconclusive ones; each by how far they are beyond hard budgets, then beyond sharp ones."""
    return sorted((record for record in records if settled_verdict(record) in _ORDER), key=_order)


def _order(record: CaseRecord) -> tuple[int, float, float]:
    hard = [severity(entry.headroom) for result in record.results for entry in result.measurements]
    sharp = [severity(entry.headroom) for result in record.results for entry in result.sharp]
    # within a budget, how close to it says nothing of how bad the case is: hence at least 1
    return (_ORDER.index(settled_verdict(record)), -max([1.0, *hard]), -max([1.0, *sharp]))


def describe(record: CaseRecord) -> Problem:
    """What a reader needs to know of one such case."""
    results = [result for result in record.results if result.verdict in _ORDER]
    reasons = dict.fromkeys(f"{result.check}: {result.reason}" for result in results if result.reason)
    if record.reason and not any(record.reason in reason for reason in reasons):
        reasons = {record.reason: None, **reasons}
    hard = [(result.check, entry) for result in results for entry in result.measurements]
    sharp = [(result.check, entry) for result in results for entry in result.sharp]
    return Problem(
        case=record.case,
        verdict=str(settled_verdict(record)),
        reasons=tuple(reasons) or ("no reason given",),
        replay=replay_command(record.case, record.kernel),
        tensors=(*_rows(hard), *_rows(sharp)),
        scores=tuple(_score_row(scores) for scores in _outside(results)),
    )


def _rows(entries: Iterable[tuple[str, Measurement | Sharp]]) -> tuple[tuple[str, ...], ...]:
    suspects = sorted((pair for pair in entries if _suspect(pair[1])), key=lambda pair: -severity(pair[1].headroom))
    return tuple(_row(check, entry, entry.worst) for check, entry in suspects if entry.worst is not None)


def _suspect(entry: Measurement | Sharp) -> bool:
    return entry.violations > 0 or not entry.headroom <= 1.0


def _row(check: str, entry: Measurement | Sharp, worst: Element) -> tuple[str, ...]:
    return (
        check,
        entry.tensor,
        entry.mode,
        f"[{', '.join(map(str, worst.index))}]",
        exact(worst.value),
        exact(worst.truth),
        number(worst.budget),
        number(entry.headroom),
        f"{entry.violations:,} of {entry.elements:,}",
    )


def _outside(results: Iterable[CheckResult]) -> list[Distribution]:
    return [scores for result in results for scores in result.distributions if scores.defects]


def _score_row(scores: Distribution) -> tuple[str, ...]:
    return (
        scores.tensor,
        scores.mode,
        f"{scores.elements:,} in {scores.rows:,} rows",
        f"{number(scores.rms)} ({number(scores.smallest_rms)} to {number(scores.largest_rms)})",
        f"{number(scores.t)} (±{number(scores.largest_t)})",
        f"{number(scores.t_sign)} (±{number(scores.largest_t_sign)})",
    )
