"""The certificate: the machine-readable result of a campaign, with the environment that it holds for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from flashverify.records.axioms import Axioms
from flashverify.records.decoding import Count, decode
from flashverify.records.environment import Environment
from flashverify.records.files import read_document, write_atomically
from flashverify.records.measurement import CaseRecord
from flashverify.records.wire import (
    DISTRIBUTION_COLUMNS,
    ELEMENT_COLUMNS,
    MEASUREMENT_COLUMNS,
    SHARP_COLUMNS,
    Number,
    Table,
    WireRecord,
    from_record,
    to_number,
    to_record,
)

SCHEMA = "flashverify/certificate/1"
"""Name and version of the document; a change that old readers would misread takes the next number."""


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a campaign set out to do.

    Attributes:
        kernel: name of the examined kernel.
        matrix: name of the matrix of cases, or of another source of cases.
        cases: number of cases planned; a case without a record was not run, and is never a pass.
        checks: names of the checks.
        lane: "gpu", or "interpreter" if Triton's interpreter ran the kernels.
        seed: seed of the campaign.
        options: further options that shape the results, as on a command line; no path of the machine.
    """

    kernel: str
    matrix: str
    cases: Count
    checks: tuple[str, ...]
    lane: Literal["gpu", "interpreter"]
    seed: int = 0
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """The result of a campaign.

    Attributes:
        created: when the campaign ended: UTC, ISO 8601, to the second ("2026-01-31T12:00:00Z").
        environment: what the result holds for.
        plan: what was to be done.
        records: one entry a case that ran.
        seconds: wall time of the campaign.
        axioms: what the device's arithmetic was measured to do, or None (certificates of before it was measured).
    """

    created: str
    environment: Environment
    plan: Plan
    records: tuple[CaseRecord, ...]
    seconds: float
    axioms: Axioms | None = None

    def to_json(self) -> bytes:
        """The JSON document: one line a record; `from_json` gives the same certificate back, every float64 exactly."""
        contracts, configurations = Table(), Table()
        records = [to_record(record, contracts, configurations) for record in self.records]
        wire = WireCertificate(
            schema=SCHEMA,
            created=self.created,
            environment=self.environment,
            plan=self.plan,
            seconds=to_number(self.seconds),
            columns=COLUMNS if any(map(_is_tiered, self.records)) else COLUMNS_WITHOUT_TIERS,
            contracts=tuple(contracts.rows),
            configurations=tuple(configurations.rows),
            records=tuple(records),
            axioms=self.axioms,
        )
        lines = []
        for name in WireCertificate.__struct_fields__:
            value = getattr(wire, name)
            if name == "axioms" and value is None:
                continue
            encoded = msgspec.json.encode(value)
            if name in ("contracts", "configurations", "records") and value:
                encoded = b"[\n" + b",\n".join(map(msgspec.json.encode, value)) + b"\n]"
            lines.append(b'"' + name.encode() + b'":' + encoded)
        return b"{\n" + b",\n".join(lines) + b"\n}\n"

    @classmethod
    def from_json(cls, data: bytes | str, source: str = "certificate") -> Certificate:
        """The certificate back from its JSON document.

        Raises:
            ValueError: if it is not one; the message names the source, the field, what came and what is accepted.
        """
        version = decode(data, _Version, source).schema
        if version != SCHEMA:
            raise ValueError(f"{source}: field schema: got {version!r}, accepted is {SCHEMA!r}")
        wire = decode(data, WireCertificate, source)
        if wire.columns not in (COLUMNS, COLUMNS_WITHOUT_TIERS):
            raise ValueError(f"{source}: field columns: got {_words(wire.columns)}, accepted is {_words(COLUMNS)}")
        for i, record in enumerate(wire.records):
            for name, table in (("contract", wire.contracts), ("configuration", wire.configurations)):
                if getattr(record, name) >= len(table):
                    raise ValueError(
                        f"{source}: field records[{i}].{name}: got {getattr(record, name)}, "
                        f"accepted are positions in {name}s, below {len(table)}"
                    )
        return cls(
            created=wire.created,
            environment=wire.environment,
            plan=wire.plan,
            records=tuple(
                from_record(record, wire.contracts[record.contract], wire.configurations[record.configuration])
                for record in wire.records
            ),
            seconds=float(wire.seconds),
            axioms=wire.axioms,
        )

    def write(self, path: Path) -> None:
        """Write the JSON document as a whole: a reader finds the old file or the new one, never a part.

        Raises:
            OSError: if the folder cannot be written.
        """
        write_atomically(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> Certificate:
        """Read a JSON document, as it was written or compressed by gzip.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it is not a certificate; the message names the file, the field and what is accepted.
        """
        return cls.from_json(read_document(path), path.name)


def now() -> str:
    """The time, as certificates write it: UTC, ISO 8601, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Columns(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Names of the entries of the arrays in a certificate, so that it can be read without this program.

    Those of sharp measurements and distributions are left out where there are none, as in certificates of before these.
    """

    measurement: tuple[str, ...]
    element: tuple[str, ...]
    sharp: tuple[str, ...] = ()
    distribution: tuple[str, ...] = ()


def _words(columns: Columns) -> str:
    return " and ".join(f"({', '.join(getattr(columns, name))})" for name in Columns.__struct_fields__)


COLUMNS_WITHOUT_TIERS = Columns(MEASUREMENT_COLUMNS, ELEMENT_COLUMNS)
COLUMNS = Columns(MEASUREMENT_COLUMNS, ELEMENT_COLUMNS, SHARP_COLUMNS, DISTRIBUTION_COLUMNS)


def _is_tiered(record: CaseRecord) -> bool:
    return any(result.sharp or result.distributions for result in record.results)


class WireCertificate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The JSON document; see `Certificate`. Records point into the tables of contracts and configurations."""

    schema: str
    created: str
    environment: Environment
    plan: Plan
    seconds: Number
    axioms: Axioms | None = None
    columns: Columns
    contracts: tuple[dict[str, str], ...]
    configurations: tuple[dict[str, str], ...]
    records: tuple[WireRecord, ...]


class _Version(msgspec.Struct):
    """The one field of every version of the document."""

    schema: str
