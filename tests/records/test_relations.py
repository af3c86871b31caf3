"""What relations sum up to over a certificate."""

from flashverify.records.relations import BOUNDED, EXACT, Relation, RelationTotals, relation_totals


def test_relations_are_summed_by_name_and_mode_and_cases_are_counted_once():
    found = [
        ("b", Relation(name="alone", tensor="out", mode=EXACT, elements=10)),
        ("b", Relation(name="alone", tensor="dq", mode=EXACT, elements=5, differing=2, first=(0, 1))),
        ("a", Relation(name="alone", tensor="out", mode=EXACT, elements=7)),
        ("a", Relation(name="alone", tensor="out", mode=BOUNDED, elements=3, worst=0.5)),
        ("c", Relation(name="alone", tensor="dq", mode=BOUNDED, elements=3, differing=1)),
    ]
    assert relation_totals(found) == (
        RelationTotals(name="alone", mode=BOUNDED, cases=2, elements=6, differing=1, worst=0.5),
        RelationTotals(name="alone", mode=EXACT, cases=2, elements=22, differing=2, worst=None),
    )
