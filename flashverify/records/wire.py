"""How records look in JSON, and the exact way there and back.

Floats are written as the shortest decimal that gives the same float64 back; the values that JSON has no number for are
the strings "NaN", "Infinity" and "-Infinity". Measurements and elements are arrays (their columns are named once, at
the top of a certificate), and numerical contracts and configurations are kept once, in tables.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from flashverify.records.decoding import ARRAYS, Count, decode
from flashverify.records.dropout import Bits, Rates, Statistic
from flashverify.records.measurement import CaseRecord, CheckResult, Distribution, Element, Measurement, Sharp, Verdict

Nonfinite = Literal["NaN", "Infinity", "-Infinity"]
Number = float | Nonfinite


class WireElement(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One element of a tensor; see `Element`."""

    index: tuple[Count, ...]
    value: Number
    truth: Number
    budget: Number


class WireMeasurement(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The error of one tensor; see `Measurement`. As `worst_ulp`, "worst" stands for the same element as `worst`."""

    tensor: str
    mode: str
    elements: Count
    max_error: Number
    max_ulp: Number
    rms_error: Number
    rms_ulp: Number
    bias_ulp: Number
    headroom: Number
    certain_excess: Number
    max_relative: Number
    violations: Count
    worst: WireElement | None
    worst_ulp: WireElement | Literal["worst"] | None


class WireSharp(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The error of one tensor against its sharp budget; see `Sharp`."""

    tensor: str
    mode: str
    elements: Count
    headroom: Number
    certain_excess: Number
    violations: Count
    worst: WireElement | None


class WireDistribution(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Standard scores of one tensor; see `Distribution`."""

    tensor: str
    mode: str
    elements: Count
    rows: Count
    rms: Number
    smallest_rms: Number
    largest_rms: Number
    mean: Number
    t: Number
    largest_t: Number
    shrinkage: Number
    t_sign: Number
    largest_t_sign: Number


class WireResult(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What one check found; see `CheckResult`."""

    check: str
    verdict: Verdict
    reason: str = ""
    measurements: tuple[WireMeasurement, ...] = ()
    sharp: tuple[WireSharp, ...] = ()
    distributions: tuple[WireDistribution, ...] = ()
    bits: tuple[Bits, ...] = ()
    statistics: tuple[Statistic, ...] = ()
    rates: Rates | None = None


class WireRecord(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One case; see `CaseRecord`. `contract` and `configuration` are positions in the certificate's tables."""

    case: str
    kernel: str
    verdict: Verdict
    dtype: str
    features: str
    regime: str
    contract: Count
    configuration: Count
    seconds: Number
    reason: str = ""
    timings: dict[str, Number] = {}
    peak_bytes: Count | None = None
    results: tuple[WireResult, ...] = ()


class WireLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One record that stands alone, with its own contract and configuration; the positions in the record are 0."""

    record: WireRecord
    contract: dict[str, str]
    configuration: dict[str, str]


ELEMENT_COLUMNS = WireElement.__struct_fields__
MEASUREMENT_COLUMNS = WireMeasurement.__struct_fields__
SHARP_COLUMNS = WireSharp.__struct_fields__
DISTRIBUTION_COLUMNS = WireDistribution.__struct_fields__
ARRAYS.update(
    {
        "measurements[]": MEASUREMENT_COLUMNS,
        "sharp[]": SHARP_COLUMNS,
        "distributions[]": DISTRIBUTION_COLUMNS,
        "worst": ELEMENT_COLUMNS,
        "worst_ulp": ELEMENT_COLUMNS,
    }
)


class Table:
    """Texts that many records share, each kept once, in the order of their first use."""

    def __init__(self) -> None:
        self.rows: list[dict[str, str]] = []
        self._positions: dict[tuple[tuple[str, str], ...], int] = {}

    def position(self, row: dict[str, str]) -> int:
        """Where the row stands; it is added if it is new."""
        key = tuple(row.items())
        if key not in self._positions:
            self._positions[key] = len(self.rows)
            self.rows.append(dict(row))
        return self._positions[key]


def to_number(x: float) -> Number:
    """The JSON form of a float64."""
    if math.isfinite(x):
        return float(x)
    if math.isnan(x):
        return "NaN"
    return "Infinity" if x > 0 else "-Infinity"


def to_element(element: Element) -> WireElement:
    """The JSON form of an element."""
    return WireElement(
        tuple(int(i) for i in element.index),
        to_number(element.value),
        to_number(element.truth),
        to_number(element.budget),
    )


def from_element(wire: WireElement) -> Element:
    """The element back from its JSON form."""
    return Element(index=wire.index, value=float(wire.value), truth=float(wire.truth), budget=float(wire.budget))


def to_measurement(measurement: Measurement) -> WireMeasurement:
    """The JSON form of a measurement."""
    worst = None if measurement.worst is None else to_element(measurement.worst)
    worst_ulp: WireElement | Literal["worst"] | None = None
    if measurement.worst_ulp is not None:
        worst_ulp = to_element(measurement.worst_ulp)
        if worst is not None and _same(worst, worst_ulp):
            worst_ulp = "worst"
    return WireMeasurement(
        tensor=measurement.tensor,
        mode=measurement.mode,
        elements=int(measurement.elements),
        max_error=to_number(measurement.max_error),
        max_ulp=to_number(measurement.max_ulp),
        rms_error=to_number(measurement.rms_error),
        rms_ulp=to_number(measurement.rms_ulp),
        bias_ulp=to_number(measurement.bias_ulp),
        headroom=to_number(measurement.headroom),
        certain_excess=to_number(measurement.certain_excess),
        max_relative=to_number(measurement.max_relative),
        violations=int(measurement.violations),
        worst=worst,
        worst_ulp=worst_ulp,
    )


def from_measurement(wire: WireMeasurement) -> Measurement:
    """The measurement back from its JSON form."""
    worst = None if wire.worst is None else from_element(wire.worst)
    worst_ulp = worst if wire.worst_ulp == "worst" else None
    if isinstance(wire.worst_ulp, WireElement):
        worst_ulp = from_element(wire.worst_ulp)
    return Measurement(
        tensor=wire.tensor,
        mode=wire.mode,
        elements=wire.elements,
        max_error=float(wire.max_error),
        max_ulp=float(wire.max_ulp),
        rms_error=float(wire.rms_error),
        rms_ulp=float(wire.rms_ulp),
        bias_ulp=float(wire.bias_ulp),
        headroom=float(wire.headroom),
        certain_excess=float(wire.certain_excess),
        max_relative=float(wire.max_relative),
        violations=wire.violations,
        worst=worst,
        worst_ulp=worst_ulp,
    )


def to_sharp(sharp: Sharp) -> WireSharp:
    """The JSON form of a measurement against a sharp budget."""
    return WireSharp(
        tensor=sharp.tensor,
        mode=sharp.mode,
        elements=int(sharp.elements),
        headroom=to_number(sharp.headroom),
        certain_excess=to_number(sharp.certain_excess),
        violations=int(sharp.violations),
        worst=None if sharp.worst is None else to_element(sharp.worst),
    )


def from_sharp(wire: WireSharp) -> Sharp:
    """The measurement back from its JSON form."""
    return Sharp(
        tensor=wire.tensor,
        mode=wire.mode,
        elements=wire.elements,
        headroom=float(wire.headroom),
        certain_excess=float(wire.certain_excess),
        violations=wire.violations,
        worst=None if wire.worst is None else from_element(wire.worst),
    )


_NUMBERS = DISTRIBUTION_COLUMNS[DISTRIBUTION_COLUMNS.index("rms") :]
"""Columns of a distribution that are floats: all from there on."""


def to_distribution(scores: Distribution) -> WireDistribution:
    """The JSON form of a distribution."""
    numbers = {name: to_number(getattr(scores, name)) for name in _NUMBERS}
    return WireDistribution(scores.tensor, scores.mode, int(scores.elements), int(scores.rows), **numbers)


def from_distribution(wire: WireDistribution) -> Distribution:
    """The distribution back from its JSON form."""
    numbers = {name: float(getattr(wire, name)) for name in _NUMBERS}
    return Distribution(tensor=wire.tensor, mode=wire.mode, elements=wire.elements, rows=wire.rows, **numbers)


def to_record(record: CaseRecord, contracts: Table, configurations: Table) -> WireRecord:
    """The JSON form of a case's record; its contract and configuration go into the tables."""
    return WireRecord(
        case=record.case,
        kernel=record.kernel,
        verdict=record.verdict,
        dtype=record.dtype,
        features=record.features,
        regime=record.regime,
        contract=contracts.position(record.contract),
        configuration=configurations.position(record.configuration),
        seconds=to_number(record.seconds),
        reason=record.reason,
        timings={stage: to_number(seconds) for stage, seconds in record.timings.items()},
        peak_bytes=record.peak_bytes,
        results=tuple(
            WireResult(
                result.check,
                result.verdict,
                result.reason,
                tuple(map(to_measurement, result.measurements)),
                tuple(map(to_sharp, result.sharp)),
                tuple(map(to_distribution, result.distributions)),
                result.bits,
                result.statistics,
                result.rates,
            )
            for result in record.results
        ),
    )


def from_record(wire: WireRecord, contract: dict[str, str], configuration: dict[str, str]) -> CaseRecord:
    """The case's record back from its JSON form and its rows of the tables."""
    return CaseRecord(
        case=wire.case,
        kernel=wire.kernel,
        verdict=wire.verdict,
        reason=wire.reason,
        dtype=wire.dtype,
        features=wire.features,
        regime=wire.regime,
        results=tuple(
            CheckResult(
                check=result.check,
                verdict=result.verdict,
                reason=result.reason,
                measurements=tuple(map(from_measurement, result.measurements)),
                sharp=tuple(map(from_sharp, result.sharp)),
                distributions=tuple(map(from_distribution, result.distributions)),
                bits=result.bits,
                statistics=result.statistics,
                rates=result.rates,
            )
            for result in wire.results
        ),
        contract=dict(contract),
        configuration=dict(configuration),
        seconds=float(wire.seconds),
        timings={stage: float(seconds) for stage, seconds in wire.timings.items()},
        peak_bytes=wire.peak_bytes,
    )


def encode_record(record: CaseRecord) -> bytes:
    """One record as a line of JSON without a newline: for journals and messages between processes."""
    wire = to_record(record, Table(), Table())
    return msgspec.json.encode(WireLine(wire, record.contract, record.configuration))


def decode_record(line: bytes | str, source: str = "record") -> CaseRecord:
    """The record back from `encode_record`, exactly.

    Raises:
        ValueError: if the line is not such a record; the message names the source, the field and what is accepted.
    """
    wire = decode(line, WireLine, source)
    return from_record(wire.record, wire.contract, wire.configuration)


def _same(first: WireElement, second: WireElement) -> bool:
    """Whether two elements are written alike; -0.0 and 0.0 are not."""
    return msgspec.json.encode(first) == msgspec.json.encode(second)
