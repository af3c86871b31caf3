"""What the three tiers of rounding found, by dtype, tensor and mode: hard (T1), sharp (T2), distribution (T3)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from flashverify.records.measurement import CaseRecord, Distribution, Measurement, Sharp, Verdict
from flashverify.records.summary import in_case_dtype, severity, table_order

TIER_CHECKS = ("sharp", "distribution")
"""Checks that do not apply to every case, and say why."""


@dataclass(slots=True, kw_only=True)
class TierRow:
    """One tensor in one mode over the cases of a dtype; None where a tier applied to none.

    Attributes:
        dtype, tensor, mode: what it is of.
        hard: largest error / hard budget.
        sharp: largest error / sharp budget.
        sharp_case: id of the case that attains it.
        rms: smallest and largest rms of z.
        t: largest |t|.
        t_sign: largest |t_sign|.
        distributions: number of tensors whose scores were judged.
    """

    dtype: str
    tensor: str
    mode: str
    hard: float | None = None
    sharp: float | None = None
    sharp_case: str = ""
    rms: tuple[float, float] | None = None
    t: float | None = None
    t_sign: float | None = None
    distributions: int = 0

    def measured(self, entry: Measurement) -> None:
        """Take a measurement against a hard budget in."""
        self.hard = _larger(self.hard, entry.headroom)

    def measured_sharply(self, case: str, entry: Sharp) -> None:
        """Take a measurement against a sharp budget in."""
        if self.sharp is None or severity(entry.headroom) > severity(self.sharp):
            self.sharp, self.sharp_case = entry.headroom, case

    def scored(self, entry: Distribution) -> None:
        """Take the statistics of a tensor's scores in."""
        low, high = self.rms or (entry.rms, entry.rms)
        self.rms = (-_larger(-low, -entry.rms), _larger(high, entry.rms))
        self.t, self.t_sign = _larger(self.t, abs(entry.t)), _larger(self.t_sign, abs(entry.t_sign))
        self.distributions += 1


@dataclass(frozen=True, slots=True)
class Tiers:
    """Rows of the table, and where tiers did not apply.

    Attributes:
        rows: in the order of tables.
        inapplicable: per check, reasons why it did not apply, with their numbers of cases, the most frequent first.
    """

    rows: tuple[TierRow, ...]
    inapplicable: dict[str, dict[str, int]] = field(default_factory=dict)


def tiers(records: Iterable[CaseRecord]) -> Tiers:
    """Summarise the tiers; no rows if no tier beyond the hard one measured anything."""
    rows: dict[tuple[str, str, str], TierRow] = {}
    reasons: dict[str, Counter[str]] = defaultdict(Counter)

    def row(record: CaseRecord, tensor: str, mode: str) -> TierRow:
        return rows.setdefault((record.dtype, tensor, mode), TierRow(dtype=record.dtype, tensor=tensor, mode=mode))

    for record in records:
        for result in record.results:
            if result.check in TIER_CHECKS and result.verdict is Verdict.UNSUPPORTED:
                reasons[result.check][result.reason.partition(":")[0]] += 1
            for entry in result.measurements:
                if in_case_dtype(record, entry) and record.dtype != "fp64":
                    row(record, entry.tensor, entry.mode).measured(entry)
            for close in result.sharp:
                row(record, close.tensor, close.mode).measured_sharply(record.case, close)
            for scores in result.distributions:
                row(record, scores.tensor, scores.mode).scored(scores)
    judged = any(found.sharp is not None or found.distributions for found in rows.values())
    return Tiers(
        rows=tuple(rows[key] for key in sorted(rows, key=lambda key: table_order(*key))) if judged else (),
        inapplicable={check: dict(found.most_common()) for check, found in sorted(reasons.items())},
    )


def _larger(known: float | None, value: float) -> float:
    """The larger of two, or the value where nothing is known; NaN, which no bound holds, is larger than any number."""
    return value if known is None or severity(value) > severity(known) else known
