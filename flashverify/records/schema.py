"""The published JSON Schema of certificates: `python -m flashverify.records.schema > docs/certificate.schema.json`."""

from __future__ import annotations

import json
import sys
from typing import Any

import msgspec

from flashverify.records.certificate import SCHEMA, WireCertificate
from flashverify.records.wire import DISTRIBUTION_COLUMNS, ELEMENT_COLUMNS, MEASUREMENT_COLUMNS, SHARP_COLUMNS


def certificate_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a certificate; entries of arrays carry their column's name as title."""
    (reference,), definitions = msgspec.json.schema_components([WireCertificate], ref_template="#/$defs/{name}")
    for name, columns in (
        ("WireMeasurement", MEASUREMENT_COLUMNS),
        ("WireElement", ELEMENT_COLUMNS),
        ("WireSharp", SHARP_COLUMNS),
        ("WireDistribution", DISTRIBUTION_COLUMNS),
    ):
        for column, entry in zip(columns, definitions[name]["prefixItems"], strict=True):
            entry["title"] = column
    definitions["WireCertificate"]["properties"]["schema"] = {"const": SCHEMA}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Certificate of flashverify ({SCHEMA})",
        **reference,
        "$defs": dict(sorted(definitions.items())),
    }


def schema_text() -> str:
    """The schema as it is published."""
    return json.dumps(certificate_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
