"""Measured arithmetic survives the record, older certificates have none, and what fits no model certifies nothing."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import msgspec
import pytest

from flashverify.numerics.axioms.arithmetic import Arithmetic, BlockModel, Observation
from flashverify.records.axioms import Axioms, to_axioms
from flashverify.records.certificate import Certificate
from flashverify.records.claims import Claims
from flashverify.records.detection import Detection
from flashverify.records.measurement import Verdict
from flashverify.records.summary import CERTIFIED, INCONCLUSIVE, exit_code
from tests.records.synthetic import AXIOMS, ODD, ODD_AXIOMS, case, certificate, record

REPORTS = Path(__file__).parents[2] / "reports"

ARITHMETIC = Arithmetic(
    device="a GPU",
    lane="gpu",
    tensor_cores={"bf16": BlockModel(16, 2, "nearest", "separate")},
    exp2_max_ulps=0.1 + 0.2,
    exhaustive=("exp2",),
    observations=(Observation("exp2", "0.3 ulp", "published: 2.5 ulp", 9, True, False),),
)


def test_everything_that_was_measured_is_kept() -> None:
    kept = to_axioms(ARITHMETIC)
    assert {field.name for field in dataclasses.fields(Arithmetic)} == set(Axioms.__struct_fields__)
    assert (kept.exp2_max_ulps, kept.exp2_mean_ulps) == (0.1 + 0.2, "NaN")
    assert msgspec.to_builtins(kept.tensor_cores["bf16"]) == dataclasses.asdict(ARITHMETIC.tensor_cores["bf16"])
    assert msgspec.structs.asdict(kept.observations[0]) == dataclasses.asdict(ARITHMETIC.observations[0])
    assert kept.unexplained == kept.observations


def test_it_survives_its_own_document_and_the_certificates() -> None:
    kept = to_axioms(ARITHMETIC)
    assert Axioms.from_json(kept.to_json()) == kept
    whole = certificate(record(case()), axioms=kept)
    assert Certificate.from_json(whole.to_json()) == whole
    assert math.isnan(float(Certificate.from_json(whole.to_json()).axioms.exp2_mean_ulps))


def test_a_certificate_without_it_is_read_and_written_as_before() -> None:
    without = certificate(record(case()))
    assert "axioms" not in json.loads(without.to_json())
    assert Certificate.from_json(without.to_json()).axioms is None


@pytest.mark.parametrize("path", sorted(REPORTS.glob("**/*.json")), ids=lambda path: path.name)
def test_committed_documents_are_read_and_written_as_they_are(path: Path) -> None:
    kinds = {kind.__name__.lower(): kind for kind in (Certificate, Claims, Detection)}
    kind = kinds[json.loads(path.read_bytes())["schema"].split("/")[1]]
    assert kind.read(path).to_json() == path.read_bytes()


def test_a_damaged_one_is_refused_by_field() -> None:
    document = json.loads(AXIOMS.to_json())
    document["fuses"] = "yes"
    with pytest.raises(ValueError, match=r'a\.json: field fuses: got "yes", accepted is bool'):
        Axioms.from_json(json.dumps(document), "a.json")


def test_what_fits_no_model_certifies_nothing() -> None:
    passed = record(case())
    assert exit_code(certificate(passed, axioms=AXIOMS)) == CERTIFIED
    assert ODD_AXIOMS.unexplained == (ODD,)
    assert exit_code(certificate(passed, axioms=ODD_AXIOMS)) == INCONCLUSIVE
    assert exit_code(certificate(record(case(), Verdict.FAIL), axioms=ODD_AXIOMS)) == INCONCLUSIVE
    assert exit_code(certificate(planned=9, axioms=ODD_AXIOMS)) == INCONCLUSIVE
