"""Where the time of a case goes, and of a campaign."""

from __future__ import annotations

from collections.abc import Iterable

from flashverify.records.measurement import CaseRecord

OTHER = "other"

STAGES = {
    "kernel": "the examined kernel, forward and backward, in every precision and mode that was asked for; compiling it counts",
    "oracle": "truth, by whatever oracle",
    "budget": "hard budgets, and how far truth itself may be off",
    "sharp": "the sharp tiers: predicted deviations, walks inferred for them, comparisons and statistics",
    "inputs": "drawing inputs, laying them out, guarding and moving them",
    OTHER: "the rest, comparisons with hard budgets above all",
}
"""What a case's time is kept by, and what belongs to it."""

UNTIMED = "not examined"
"""What cases without stages count for: those that were declined, and those that ended early by a crash or a timeout."""

UNTIMED_MEANING = "cases that were declined, crashed or ran out of time"


def spent(records: Iterable[CaseRecord]) -> dict[str, float]:
    """Seconds by stage, summed over cases, and so over worker processes; the largest first.

    Empty if no record has stages, as before they were kept.
    """
    found = dict.fromkeys(STAGES, 0.0)
    untimed, any_timed = 0.0, False
    for record in records:
        for stage, seconds in record.timings.items():
            found[stage] = found.get(stage, 0.0) + seconds
        any_timed = any_timed or bool(record.timings)
        untimed += 0.0 if record.timings else record.seconds
    if not any_timed:
        return {}
    if untimed:
        found[UNTIMED] = untimed
    return dict(sorted(found.items(), key=lambda item: -item[1]))
