"""What dropout bits sum up to over a certificate."""

from flashverify.records.dropout import Bits, Totals, totals


def test_bits_are_summed_by_tensor_and_mode():
    found = [
        Bits(tensor="out", mode="predicted", compared=10),
        Bits(tensor="dq", mode="predicted", compared=7, differing=2, untold=3, first=(0, 0, 1, 2)),
        Bits(tensor="out", mode="predicted", compared=5, untold=1),
        Bits(tensor="dq", mode="forward", compared=1),
        Bits(tensor="probabilities", mode="predicted", compared=9, lost_by_value=4),
    ]
    assert [(one.tensor, one.mode, one.cases, one.compared) for one in totals(found)] == [
        ("out", "predicted", 2, 15),
        ("dq", "predicted", 1, 7),
        ("dq", "forward", 1, 1),
        ("probabilities", "predicted", 1, 9),
    ]
    assert totals(found)[1] == Totals(
        tensor="dq", mode="predicted", cases=1, compared=7, differing=2, untold=3, lost_by_value=0
    )
    assert totals(found)[3].lost_by_value == 4
    assert totals([]) == ()
