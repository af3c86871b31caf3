"""What was measured of dropout: bits compared one by one, statistics of masks, and rates. In a certificate as they are here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from flashverify.records.decoding import Count


class Bits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Dropout bits of one tensor of one case, compared one by one.

    Attributes:
        tensor: out, dq, dk or dv: where the kernel's mask was seen; or probabilities, which carry it in their signs.
        mode: what it was compared with: "predicted" (the host's), or "forward" (the mask of the kernel's own out).
        compared: number of bits.
        differing: how many differ, or show no bit.
        untold: bits of visible pairs that can't be told, because numbers underflow or overflow.
        first: batch entry, query head, query row and key column of the first one that differs, or None.
        lost_by_value: how many bits of signs `>= 0` would have read wrongly, or None: no signs were read.
    """

    tensor: str
    mode: str
    compared: Count
    differing: Count = 0
    untold: Count = 0
    first: tuple[Count, ...] | None = None
    lost_by_value: Count | None = None


class Statistic(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The statistical tests of one question about a mask, and the least likely outcome of all.

    Attributes:
        question: "rate", or "independence".
        tests: how many tests there were.
        bits: how many bits of masks they looked at.
        name: what the least likely outcome is of.
        trials: how many events could have happened there.
        events: how many did.
        expected: how many were to be expected.
        p: its p-value.
        allowed: p-values below it are an alarm.
    """

    question: str
    tests: Count
    bits: Count
    name: str
    trials: Count
    events: Count
    expected: float
    p: float
    allowed: float


class Rates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rates that a mask may have, and those that a kernel's rescaling assumes, each from a lowest to a highest one.

    Attributes:
        mask_low, mask_high: the mask's: one number where it is known.
        assumed_low, assumed_high: those of the rescaling; None where there is no bound. Without any, low is above high.
    """

    mask_low: float
    mask_high: float
    assumed_low: float | None
    assumed_high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Bits of one tensor and mode over many cases; see `Bits`.

    Attributes:
        cases: cases with such bits.
    """

    tensor: str
    mode: str
    cases: int
    compared: int
    differing: int
    untold: int
    lost_by_value: int


def totals(found: Iterable[Bits]) -> tuple[Totals, ...]:
    """What bits sum up to, by tensor and mode, in the order of their first one."""
    groups: dict[tuple[str, str], list[Bits]] = {}
    for bits in found:
        groups.setdefault((bits.tensor, bits.mode), []).append(bits)
    return tuple(
        Totals(
            tensor=tensor,
            mode=mode,
            cases=len(group),
            compared=sum(bits.compared for bits in group),
            differing=sum(bits.differing for bits in group),
            untold=sum(bits.untold for bits in group),
            lost_by_value=sum(bits.lost_by_value or 0 for bits in group),
        )
        for (tensor, mode), group in groups.items()
    )
