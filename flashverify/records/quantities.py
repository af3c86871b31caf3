"""What the gate compares of each tensor of a case, in all three tiers and of dropout bits; of each quantity, more is worse."""

from __future__ import annotations

import math
from collections.abc import Iterator

from flashverify.records.dropout import Bits
from flashverify.records.measurement import CaseRecord, CheckResult, Distribution, Measurement, Sharp

Entry = Measurement | Sharp | Distribution | Bits

Key = tuple[str, str, str, str]
"""Check, tensor, mode and kind of entry: names an entry of a case."""


def quantities(entry: Entry) -> dict[str, float]:
    """The numbers of an entry by name.

    Of Student's t, the share of what is accepted counts: a limit moves with the number of rows and with the bias that is
    explained. An rms(z) that falls is no worse here: below its range the check itself fails.
    """
    if isinstance(entry, Measurement):
        return {
            "max ulp": entry.max_ulp,
            "rms ulp": entry.rms_ulp,
            "|bias| ulp": abs(entry.bias_ulp),
            "error / budget": entry.headroom,
        }
    if isinstance(entry, Sharp):
        return {"error / sharp budget": entry.headroom}
    if isinstance(entry, Bits):
        return {"bits that differ": float(entry.differing)}
    return {
        "rms(z)": entry.rms,
        "|t| / limit": _share(entry.t, entry.largest_t),
        "|t_sign| / limit": _share(entry.t_sign, entry.largest_t_sign),
    }


def by_key(record: CaseRecord) -> dict[Key, Entry]:
    """Every entry of a case.

    Raises:
        ValueError: if a check has two of a kind for one tensor and mode.
    """
    found: dict[Key, Entry] = {}
    for result in record.results:
        for kind, entry in entries(result):
            key = (result.check, entry.tensor, entry.mode, kind)
            if key in found:
                raise ValueError(f"case {record.case}: got {', '.join(key)} twice, accepted is once")
            found[key] = entry
    return found


def entries(result: CheckResult) -> Iterator[tuple[str, Entry]]:
    """Everything that a check measured, with the kind that it is of."""
    yield from (("measurement", entry) for entry in result.measurements)
    yield from (("sharp", entry) for entry in result.sharp)
    yield from (("distribution", entry) for entry in result.distributions)
    yield from (("bits", entry) for entry in result.bits)


def coverage_lost(old: Entry, new: Entry | None) -> tuple[str, str] | None:
    """What was covered and what is now, in words, or None if nothing was lost.

    The number of scores is no coverage: it is that of the true values that their format does not hold exactly, and modular
    truth moves with the kernel's own out and lse.
    """
    if isinstance(old, Distribution):
        return (f"{old.elements} scores", "not scored") if new is None else None
    if isinstance(old, Bits):
        compared = new.compared if isinstance(new, Bits) else 0
        return (f"{old.compared} bits", f"{compared} bits") if compared < old.compared else None
    if new is None:
        return f"{old.elements} elements", "not measured"
    assert not isinstance(new, Bits)
    return (f"{old.elements} elements", f"{new.elements} elements") if new.elements < old.elements else None


def _share(t: float, limit: float) -> float:
    """|t| in units of its limit; infinite where nothing is accepted."""
    return abs(t) / limit if limit else (0.0 if t == 0.0 else math.inf)
