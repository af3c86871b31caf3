"""The tiers' table: the worst of every tensor, what did not apply, and nothing lost among numbers that are none."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from flashverify.records.measurement import CheckResult, Verdict
from flashverify.records.tiers import tiers
from tests.records.synthetic import case, distribution, measurement, plausible, record, sharp, tiered


def test_rows_hold_the_worst_and_the_case_that_attains_it() -> None:
    records = [
        tiered(case(), sharp(headroom=0.5), distribution(rms=0.9, t=-3.0, t_sign=2.0), measurement(headroom=0.25)),
        tiered(case(seed=1), sharp(headroom=0.7), distribution(rms=1.1, t=1.0, t_sign=-4.0), measurement(headroom=0.125)),
        tiered(case(seed=2), sharp(headroom=0.6), distribution(rms=1.0, t=2.0, t_sign=3.0), measurement(headroom=0.2)),
    ]
    (row,) = tiers(records).rows
    assert (row.dtype, row.tensor, row.mode) == ("bf16", "out", "forward")
    assert (row.hard, row.sharp, row.sharp_case) == (0.25, 0.7, case(seed=1).id)
    assert (row.rms, row.t, row.t_sign, row.distributions) == ((0.9, 1.1), 3.0, 4.0, 3)


def test_each_dtype_tensor_and_mode_has_a_row_in_the_order_of_tables() -> None:
    records = [
        tiered(case(dtype="fp32"), sharp("dq", "modular"), distribution("dq", "unrounded"), measurement("out")),
        tiered(case(dtype="fp16"), sharp("lse"), distribution("out"), measurement("dq", "end-to-end")),
    ]
    assert [(row.dtype, row.tensor, row.mode) for row in tiers(records).rows] == [
        ("fp16", "out", "forward"), ("fp16", "lse", "forward"), ("fp16", "dq", "end-to-end"),
        ("fp32", "out", "forward"), ("fp32", "dq", "modular"), ("fp32", "dq", "unrounded"),
    ]  # fmt: skip


def test_a_tier_that_applied_to_nothing_has_no_number() -> None:
    hard_only, sharp_only, scored = tiers([tiered(case(), sharp("lse"), distribution("dq"))]).rows
    assert (hard_only.sharp, hard_only.sharp_case, hard_only.rms, hard_only.t, hard_only.distributions) == (
        None,
        "",
        None,
        None,
        0,
    )
    assert (sharp_only.hard, sharp_only.rms) == (None, None)
    assert (scored.hard, scored.sharp) == (None, None)


@pytest.mark.parametrize("order", [1, -1])
def test_nan_is_worse_than_any_number(order: int) -> None:
    records = [
        tiered(case(seed=i), sharp(headroom=x), distribution(rms=x, t=x, t_sign=x), measurement(headroom=x))
        for i, x in enumerate((0.5, math.nan, math.inf))
    ][::order]
    (row,) = tiers(records).rows
    assert row.sharp_case == case(seed=1).id
    assert row.rms is not None
    assert all(math.isnan(x) for x in (row.hard, row.sharp, *row.rms, row.t, row.t_sign) if x is not None)


def test_records_without_the_tiers_have_no_table() -> None:
    assert tiers(plausible(20).records) == tiers([])
    assert tiers([]).rows == ()


def test_distances_of_the_float64_instantiation_are_no_rounding() -> None:
    function = CheckResult(check="function", verdict=Verdict.PASS, measurements=(measurement(mode="enclosure", headroom=0.9),))
    plain = tiered(case())
    (row,) = tiers([replace(plain, results=(*plain.results, function)), record(case(dtype="fp64"))]).rows
    assert (row.mode, row.hard) == ("forward", 0.25)


def test_reasons_are_counted_without_their_figures() -> None:
    few = [f"too few scores: {n} in 2 rows, at least 64 in 16 say something" for n in (10, 12, 14)]
    found = [
        ("distribution", few[0]), ("distribution", "all logits are 0"), ("distribution", few[1]), ("distribution", few[2]),
        ("sharp", "all logits are 0"), ("function", "float64: too large"),
    ]  # fmt: skip
    records = [
        replace(record(case(seed=seed)), results=(CheckResult(check=check, verdict=Verdict.UNSUPPORTED, reason=reason),))
        for seed, (check, reason) in enumerate(found)
    ]
    assert tiers(records).inapplicable == {
        "distribution": {"too few scores": 3, "all logits are 0": 1},
        "sharp": {"all logits are 0": 1},
    }
