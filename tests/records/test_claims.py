"""Claims as they are kept: there and back, and what is no such document."""

import json

import pytest

from flashverify.records.claims import Claims
from tests.records.synthetic import claims


def test_claims_come_back_from_their_document(tmp_path):
    path = tmp_path / "claims.json"
    claims().write(path)
    assert Claims.read(path) == claims()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"flashverify/claims/1"', '"flashverify/claims/2"', "field schema: got"),
        ('"holds"', '"maybe"', "field claims"),
        ("[1.5,3.0]", "[1.5]", "claim claim-0, ours: got 2 lengths and 1 values"),
        ("[1.5,3.0]", "[1.5,0.0]", "got values that are not positive"),
        ('["x",1]', '["x"]', "claim claim-0: got rows that differ in length"),
    ],
)
def test_another_document_is_refused(old, new, message):
    text = json.dumps(json.loads(claims().to_json()), separators=(",", ":"))
    assert old in text
    with pytest.raises(ValueError, match=message):
        Claims.from_json(text.replace(old, new))


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [(("holds", "holds"), 0), (("holds", "not decided"), 3), (("not decided", "does not hold"), 1)],
)
def test_the_exit_code_is_that_of_the_worst_outcome(outcomes, code):
    assert claims(outcomes).exit_code == code
