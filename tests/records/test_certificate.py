"""Certificates survive the way through JSON exactly, and broken ones are refused with an explanation."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashverify.records import files
from flashverify.records.certificate import COLUMNS, Certificate, Columns, now
from flashverify.records.dropout import Bits, Rates, Statistic
from flashverify.records.measurement import Distribution, Element, Measurement, Sharp, Verdict
from flashverify.records.schema import certificate_schema, schema_text
from flashverify.records.timings import STAGES
from flashverify.records.wire import decode_record, encode_record
from tests.records.synthetic import case, certificate, distribution, dropped, measurement, plausible, record, sharp, tiered

SCHEMA_FILE = Path(__file__).parents[2] / "docs" / "certificate.schema.json"
FLOATS = [name for name, kind in Measurement.__annotations__.items() if kind == "float"]
HARD_FLOATS = (math.nan, math.inf, -math.inf, 0.0, -0.0, 5e-324, -2.2250738585072009e-308, 1.7976931348623157e308, 0.1)

any_float = st.floats(width=64) | st.sampled_from(HARD_FLOATS)
elements = st.none() | st.builds(
    Element,
    index=st.lists(st.integers(0, 2**40), max_size=4).map(tuple),
    value=any_float,
    truth=any_float,
    budget=any_float,
)


def bits(x: float) -> bytes:
    """The float64 itself, one NaN for all."""
    return struct.pack("<d", math.nan if math.isnan(x) else x)


def same(first: object, second: object) -> bool:
    """Equality of records, bit for bit in their floats."""
    if isinstance(first, float):
        return isinstance(second, float) and bits(first) == bits(second)
    if isinstance(first, tuple):
        return isinstance(second, tuple) and len(first) == len(second) and all(map(same, first, second))
    if dataclasses.is_dataclass(first):
        return type(first) is type(second) and all(
            same(getattr(first, name), getattr(second, name)) for name in type(first).__dataclass_fields__
        )
    return type(first) is type(second) and first == second


def test_a_compressed_certificate_is_read(tmp_path: Path) -> None:
    kept = certificate(record(case()))
    path = tmp_path / "one.json.gz"
    path.write_bytes(gzip.compress(kept.to_json()))
    assert Certificate.read(path) == kept
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"one\.json\.gz: got a damaged gzip file"):
        Certificate.read(path)


def test_a_document_that_grows_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGEST_DOCUMENT", 1000)
    path = tmp_path / "one.json.gz"
    path.write_bytes(gzip.compress(b" " * 1001))
    with pytest.raises(ValueError, match=r"more than 1000 bytes, accepted are at most 1000"):
        Certificate.read(path)


@pytest.mark.parametrize("value", HARD_FLOATS)
def test_every_float_survives(value: float) -> None:
    element = Element(index=(0, 1), value=value, truth=-value, budget=value)
    entry = measurement(worst=element, worst_ulp=element, **dict.fromkeys(FLOATS, value))
    kept = certificate(record(case(), measurements=(entry,)))
    assert same(Certificate.from_json(kept.to_json()), kept)


def test_null_is_never_written_for_a_number() -> None:
    kept = certificate(record(case(), measurements=(measurement(**dict.fromkeys(FLOATS, math.nan)),)))
    (line,) = json.loads(kept.to_json())["records"]
    assert None not in line["results"][0]["measurements"][0]


def test_a_zero_keeps_its_sign_beside_its_twin() -> None:
    plus = Element(index=(0,), value=0.0, truth=0.0, budget=1.0)
    minus = Element(index=(0,), value=-0.0, truth=0.0, budget=1.0)
    kept = certificate(record(case(), measurements=(measurement(worst=plus, worst_ulp=minus),)))
    assert same(Certificate.from_json(kept.to_json()), kept)


@given(
    st.lists(any_float, min_size=len(FLOATS), max_size=len(FLOATS)),
    elements,
    elements,
    st.text(),
    st.dictionaries(st.text(), st.text(), max_size=3),
)
def test_any_record_survives(
    values: list[float], worst: Element | None, worst_ulp: Element | None, reason: str, contract: dict[str, str]
) -> None:
    entry = measurement(worst=worst, worst_ulp=worst_ulp, **dict(zip(FLOATS, values, strict=True)))
    kept = record(case(), Verdict.FAIL, (entry,), reason)
    kept.contract.clear()
    kept.contract.update(contract)
    assert same(decode_record(encode_record(kept)), kept)
    whole = certificate(kept, record(case(seed=1)))
    assert same(Certificate.from_json(whole.to_json()), whole)


@given(st.data(), elements)
def test_sharp_measurements_and_distributions_survive(data: st.DataObject, worst: Element | None) -> None:
    def floats(kind: type) -> dict[str, float]:
        return {name: data.draw(any_float) for name, of in kind.__annotations__.items() if of == "float"}

    counts = {name: data.draw(st.integers(0, 2**40)) for name in ("elements", "rows")}
    kept = tiered(
        case(),
        sharp("dq", "unrounded", elements=counts["elements"], violations=counts["rows"], worst=worst, **floats(Sharp)),
        distribution("dk", "modular", **counts, **floats(Distribution)),
    )
    assert same(decode_record(encode_record(kept)), kept)
    whole = certificate(kept, record(case(seed=1)))
    assert same(Certificate.from_json(whole.to_json()), whole)


counts, numbers = st.integers(0, 2**40), st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.builds(
        Bits,
        compared=counts,
        differing=counts,
        untold=counts,
        first=st.none() | st.tuples(counts, counts, counts, counts),
        lost_by_value=st.none() | counts,
    ),
    st.builds(Statistic, tests=counts, bits=counts, trials=counts, events=counts, expected=numbers, p=numbers, allowed=numbers),
    st.builds(Rates, mask_low=numbers, mask_high=numbers, assumed_low=st.none() | numbers, assumed_high=st.none() | numbers),
)
def test_what_was_found_of_dropout_survives(bits: Bits, statistic: Statistic, rates: Rates) -> None:
    kept = dropped(case(), bits, statistics=(statistic,), rates=rates)
    assert same(decode_record(encode_record(kept)), kept)
    whole = certificate(kept, record(case(seed=1)))
    assert same(Certificate.from_json(whole.to_json()), whole)
    schema = certificate_schema()
    assert fits(json.loads(whole.to_json()), schema, schema)


@given(st.dictionaries(st.sampled_from(list(STAGES)), any_float))
def test_timings_survive(timings: dict[str, float]) -> None:
    kept = replace(record(case()), timings=timings)
    for back in (decode_record(encode_record(kept)), Certificate.from_json(certificate(kept).to_json()).records[0]):
        assert back.timings.keys() == timings.keys()
        assert all(same(back.timings[stage], seconds) for stage, seconds in timings.items())


def test_nothing_is_written_of_timings_that_are_not_known() -> None:
    assert b"timings" not in certificate(record(case())).to_json()


def test_a_certificate_of_1500_cases_stays_small() -> None:
    kept = plausible(1500)
    data = kept.to_json()
    assert len(data) < 5_000_000
    assert same(Certificate.from_json(data), kept)
    assert len(json.loads(data)["contracts"]) <= 8


def test_a_record_is_one_line() -> None:
    kept = plausible(3)
    lines = kept.to_json().decode().splitlines()
    for entry in kept.records:
        assert sum(f'"case":"{entry.case}"' in line for line in lines) == 1


def test_writing_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "certificate.json"
    certificate(record(case())).write(path)
    before = path.read_bytes()

    def broken(_: int) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(files.os, "fsync", broken)
    with pytest.raises(OSError, match="full"):
        plausible(3).write(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["certificate.json"]
    assert same(Certificate.read(path), certificate(record(case())))


def document() -> dict[str, object]:
    """The JSON document of one case."""
    return json.loads(certificate(record(case())).to_json())  # type: ignore[no-any-return]


DAMAGES = {
    "field records[0].results[0].measurements[0].max_error: got null, accepted is a number":
        lambda d: d["records"][0]["results"][0]["measurements"][0].__setitem__(3, None),
    'field records[0].results[0].measurements[0].max_ulp: got "nan", accepted is a number, "NaN"':
        lambda d: d["records"][0]["results"][0]["measurements"][0].__setitem__(4, "nan"),
    'field records[0].results[0].measurements[0].worst.truth: got [], accepted is a number':
        lambda d: d["records"][0]["results"][0]["measurements"][0][12].__setitem__(2, []),
    "field records[0].results[0].measurements[0].elements: got -1, accepted is int >= 0":
        lambda d: d["records"][0]["results"][0]["measurements"][0].__setitem__(2, -1),
    'field records[0].verdict: got "fine", accepted is fail or inconclusive or pass or unsupported':
        lambda d: d["records"][0].update(verdict="fine"),
    "field records[0].regime: got nothing, accepted is a value": lambda d: d["records"][0].pop("regime"),
    "field records[0].extra: got 1, accepted are case, kernel, verdict,": lambda d: d["records"][0].update(extra=1),
    "field records[0].contract: got 4, accepted are positions in contracts, below 1":
        lambda d: d["records"][0].update(contract=4),
    "field environment.torch: got 2.13": lambda d: d["environment"].update(torch=2.13),
    "field plan.lane: got \"cloud\"": lambda d: d["plan"].update(lane="cloud"),
    "field schema: got 'flashverify/certificate/9', accepted is 'flashverify/certificate/1'":
        lambda d: d.update(schema="flashverify/certificate/9"),
    "field records[0].results[0].sharp[0].headroom: got null, accepted is a number":
        lambda d: d["records"][0]["results"][0].update(sharp=[["out", "forward", 1, None, 0.5, 0, None]]),
    "field records[0].results[0].distributions[0].rows: got -1, accepted is int >= 0":
        lambda d: d["records"][0]["results"][0].update(distributions=[["out", "forward", 1, -1]]),
    "field columns": lambda d: d["columns"]["measurement"].reverse(),
}  # fmt: skip


@pytest.mark.parametrize("message", DAMAGES)
def test_a_damaged_certificate_is_refused_by_field(message: str, tmp_path: Path) -> None:
    damaged = document()
    DAMAGES[message](damaged)
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(damaged), encoding="utf-8")
    with pytest.raises(ValueError, match=r"^damaged\.json: ") as caught:
        Certificate.read(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{", b"\xff\xfe{}", b'{"schema":"flashverify/certificate/1"}'])
def test_what_is_no_certificate_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^file\.json: .*(accepted)"):
        Certificate.from_json(data, "file.json")


@given(st.data())
def test_a_cut_certificate_is_refused(data: st.DataObject) -> None:
    whole = certificate(record(case())).to_json()
    with pytest.raises(ValueError, match="accepted"):
        Certificate.from_json(whole[: data.draw(st.integers(0, len(whole) - 3))])


def test_the_published_schema_is_the_generated_one() -> None:
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text(), (
        "run: python -m flashverify.records.schema > docs/certificate.schema.json"
    )


def fits(value: object, schema: dict, root: dict) -> bool:  # type: ignore[type-arg]
    """Whether a value fits the part of JSON Schema that the published schema uses; unknown keywords are an error."""
    known = {"$ref", "$defs", "$schema", "title", "description", "type", "properties", "required", "default", "items",
             "additionalProperties", "prefixItems", "minItems", "maxItems", "anyOf", "enum", "const",
             "minimum"}  # fmt: skip
    assert set(schema) <= known, set(schema) - known
    if "$ref" in schema:
        return fits(value, root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root)
    if "anyOf" in schema:
        return any(fits(value, one, root) for one in schema["anyOf"])
    if "const" in schema:
        return value == schema["const"]
    if "enum" in schema:
        return value in schema["enum"]
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    if "type" in schema and not (value is None if schema["type"] == "null" else isinstance(value, kinds[schema["type"]])):
        return False
    if isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        return set(schema.get("required", ())) <= set(value) and all(
            fits(entry, properties[name], root) if name in properties
            else (others if isinstance(others, bool) else fits(entry, others, root))
            for name, entry in value.items()
        )  # fmt: skip
    if isinstance(value, list):
        first = schema.get("prefixItems", [])
        rest = schema.get("items", {})
        return schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)) and all(
            fits(entry, first[i] if i < len(first) else rest, root) for i, entry in enumerate(value)
        )
    return not isinstance(value, (int, float)) or value >= schema.get("minimum", value)


def test_certificates_fit_the_published_schema() -> None:
    schema = certificate_schema()
    for kept in (plausible(40, failures=3, inconclusive=2, unsupported=4), certificate(), certificate(tiered(case()))):
        assert fits(json.loads(kept.to_json()), schema, schema)
    for message, damage in DAMAGES.items():
        if "columns" not in message and "positions" not in message:
            damaged = document()
            damage(damaged)
            assert not fits(damaged, schema, schema), message


def test_columns_are_named_in_the_document() -> None:
    names = {name: list(getattr(COLUMNS, name)) for name in Columns.__struct_fields__}
    assert json.loads(certificate(tiered(case())).to_json())["columns"] == names
    assert document()["columns"] == {name: names[name] for name in ("measurement", "element")}  # as before the tiers
    assert COLUMNS.measurement == tuple(Measurement.__dataclass_fields__)
    assert COLUMNS.element == tuple(Element.__dataclass_fields__)
    assert COLUMNS.sharp == tuple(Sharp.__dataclass_fields__)
    assert COLUMNS.distribution == tuple(Distribution.__dataclass_fields__)


def test_now_is_utc_to_the_second() -> None:
    assert len(now()) == len("2026-01-31T12:00:00Z")
    assert now().endswith("Z")
