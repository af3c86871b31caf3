"""What was measured of the claims that FlashAttention makes, as it is kept: series over lengths, tables, and what they say."""

from __future__ import annotations

import math
import statistics
from typing import Literal

import msgspec

from flashverify.records.decoding import Count
from flashverify.records.document import Document
from flashverify.records.environment import Environment
from flashverify.records.summary import CERTIFIED, FAILED, INCONCLUSIVE

SCHEMA: Literal["flashverify/claims/1"] = "flashverify/claims/1"
"""Name and version of the document; a change that old readers would misread takes the next number."""

Outcome = Literal["holds", "does not hold", "not decided"]
Cell = str | int | float


class Series(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One quantity of one subject against the number of tokens.

    Attributes:
        subject: whose it is: "standard", "ours", with " + dropout" behind it where pairs are dropped.
        quantity: what was measured or counted.
        unit: "bytes" or "ms".
        lengths: numbers of queries and keys, rising.
        values: the quantity at each, positive.
    """

    subject: str
    quantity: str
    unit: str
    lengths: tuple[Count, ...]
    values: tuple[float, ...]

    @property
    def slope(self) -> float:
        """The power of the length that the values grow with: the least-squares line through their logarithms. NaN of one."""
        if len(self.lengths) < 2:
            return math.nan
        return statistics.linear_regression([math.log(n) for n in self.lengths], [math.log(x) for x in self.values]).slope

    def at(self, length: int) -> float | None:
        """The value at a length, or None."""
        return dict(zip(self.lengths, self.values, strict=True)).get(length)


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Further numbers of a claim: names of columns, and rows of as many cells."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


class Claim(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One claim, how it was examined, and what was found.

    Attributes:
        name: a slug.
        statement: the claim, as a sentence.
        method: how it was measured, and what decides.
        outcome: whether it holds.
        finding: what was found, in a sentence or two.
        series: quantities against the number of tokens.
        table: further numbers, or None.
    """

    name: str
    statement: str
    method: str
    outcome: Outcome
    finding: str
    series: tuple[Series, ...] = ()
    table: Table | None = None


class Claims(Document, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Claims of one kernel, measured on one machine.

    Attributes:
        created: when they were measured: UTC, ISO 8601, to the second.
        environment: what they hold for.
        kernel: name of the kernel.
        problem: the problems' sizes, in words.
        seconds: wall time.
        claims: the claims.
    """

    created: str
    environment: Environment
    kernel: str
    problem: str
    seconds: float
    claims: tuple[Claim, ...]
    schema: Literal["flashverify/claims/1"] = SCHEMA

    @property
    def exit_code(self) -> int:
        """1 if a claim does not hold, else 3 if one is not decided, else 0."""
        outcomes = {claim.outcome for claim in self.claims}
        return FAILED if "does not hold" in outcomes else INCONCLUSIVE if "not decided" in outcomes else CERTIFIED

    @classmethod
    def from_json(cls, data: bytes | str, source: str | None = None) -> Claims:
        """The claims back from their JSON document; see `Document`. Series and tables have to be whole."""
        read, source = super().from_json(data, source), source or "claims"
        for claim in read.claims:
            for series in claim.series:
                _require_series(series, f"{source}: claim {claim.name}, {series.subject}")
            if claim.table is not None and any(len(row) != len(claim.table.columns) for row in claim.table.rows):
                raise ValueError(
                    f"{source}: claim {claim.name}: got rows that differ in length from their columns, accepted are equal ones"
                )
        return read


def _require_series(series: Series, source: str) -> None:
    if len(series.lengths) != len(series.values):
        raise ValueError(f"{source}: got {len(series.lengths)} lengths and {len(series.values)} values, accepted are as many")
    if any(not value > 0.0 for value in series.values):
        raise ValueError(f"{source}: got values that are not positive, accepted are positive numbers")
