"""The three tiers of rounding as reports show them: hard, sharp, distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flashverify.records.tiers import TierRow, Tiers
from flashverify.report.text import number, replay_command

RMS_DIGITS = 3
"""Decimals of rms(z): near 1, three significant digits would differ in number below and above it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierLine:
    """One tensor in one mode over the cases of a dtype, as text; a dash where a tier applied to none.

    Attributes:
        labels: dtype, tensor, mode.
        hard: largest error / hard budget.
        sharp: largest error / sharp budget.
        replay: the command that runs the case that attains it, or "".
        rms: smallest to largest rms of z.
        t: largest |t|.
        t_sign: largest |t_sign|.
        scored: number of tensors whose scores were judged.
    """

    labels: tuple[str, str, str]
    hard: str
    sharp: str
    replay: str
    rms: str
    t: str
    t_sign: str
    scored: str


def tier_lines(found: Tiers, kernel: str) -> tuple[TierLine, ...]:
    """The rows of the table, in its order."""
    return tuple(_line(row, kernel) for row in found.rows)


def _line(row: TierRow, kernel: str) -> TierLine:
    return TierLine(
        labels=(row.dtype, row.tensor, row.mode),
        hard=number(row.hard),
        sharp=number(row.sharp),
        replay=replay_command(row.sharp_case, kernel) if row.sharp_case else "",
        rms=number(None) if row.rms is None else _span(*row.rms),
        t=number(row.t),
        t_sign=number(row.t_sign),
        scored=f"{row.distributions:,}",
    )


def _span(low: float, high: float) -> str:
    """A range, or one number if its ends read alike."""
    ends = [f"{end:.{RMS_DIGITS}f}" if math.isfinite(end) else number(end) for end in (low, high)]
    return " to ".join(dict.fromkeys(ends))
