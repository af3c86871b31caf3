"""What was measured of relations between outputs of a kernel that need no oracle. In a certificate as it is here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from flashverify.records.decoding import Count

EXACT, BOUNDED, OBSERVED = "exact", "bounded", "observed"
"""How a relation is judged: bits have to be the same; differences have to be within a bound; or not at all, since the kernel
does not promise it."""


class Relation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One relation, of one tensor of one case.

    Attributes:
        name: of the relation (docs/relations.md).
        tensor: out, lse, dq, dk, dv, dbias or dsink; or what is made of several.
        mode: `EXACT`, `BOUNDED` or `OBSERVED`.
        elements: how many were compared.
        differing: how many have other bits, or differ by more than the bound.
        worst: the largest difference in units of the bound, if that is a number; None where bits are compared.
        first: place of the first one that differs, or None.
    """

    name: str
    tensor: str
    mode: str
    elements: Count
    differing: Count = 0
    worst: float | None = None
    first: tuple[Count, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RelationTotals:
    """One relation in one mode over many cases, all tensors together; see `Relation`.

    Attributes:
        cases: cases in which it was examined.
    """

    name: str
    mode: str
    cases: int
    elements: int
    differing: int
    worst: float | None


def relation_totals(found: Iterable[tuple[str, Relation]]) -> tuple[RelationTotals, ...]:
    """What pairs of case and relation sum up to, by relation and mode, sorted."""
    groups: dict[tuple[str, str], list[tuple[str, Relation]]] = {}
    for case, one in found:
        groups.setdefault((one.name, one.mode), []).append((case, one))
    return tuple(
        RelationTotals(
            name=name,
            mode=mode,
            cases=len({case for case, _ in group}),
            elements=sum(one.elements for _, one in group),
            differing=sum(one.differing for _, one in group),
            worst=max((one.worst for _, one in group if one.worst is not None), default=None),
        )
        for (name, mode), group in sorted(groups.items())
    )
