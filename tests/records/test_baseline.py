"""The gate's rules: each has a defect that it alone sees, and a change that is none."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import msgspec
import pytest

from flashverify.records.baseline import BaselineComparison, compare
from flashverify.records.certificate import Certificate
from flashverify.records.dropout import Bits
from flashverify.records.measurement import CaseRecord, CheckResult, Measurement, Verdict
from flashverify.records.trend import FALSE_ALARMS, Trend, significant, votes
from tests.records.synthetic import (
    H200,
    case,
    certificate,
    distribution,
    dropped,
    measurement,
    plausible,
    record,
    sharp,
    tiered,
)

FIELDS = {"max ulp": "max_ulp", "rms ulp": "rms_ulp", "|bias| ulp": "bias_ulp", "error / budget": "headroom"}
TWO = (measurement(), measurement("lse"))


def changed(whole: Certificate, change: Callable[[CaseRecord, Measurement], Measurement]) -> Certificate:
    """The certificate with each of its measurements changed."""

    def of(entry: CaseRecord) -> CaseRecord:
        results = tuple(
            replace(result, measurements=tuple(change(entry, found) for found in result.measurements))
            for result in entry.results
        )
        return replace(entry, results=results)

    return replace(whole, records=tuple(map(of, whole.records)))


def scaled(factor: float) -> Callable[[CaseRecord, Measurement], Measurement]:
    return lambda _, entry: replace(entry, **{field: getattr(entry, field) * factor for field in FIELDS.values()})


def pair(
    old: dict[str, object], new: dict[str, object], others: dict[str, object] | None = None, **case_of_others: object
) -> BaselineComparison:
    """One case whose measurement goes from old to new, beside another that stays."""
    other = record(case(seed=1, **case_of_others), measurements=(measurement(**(others or {})),))
    before = certificate(record(case(), measurements=(measurement(**old),)), other)
    return compare(certificate(record(case(), measurements=(measurement(**new),)), other), before)


@pytest.mark.parametrize("whole", [plausible(60), plausible(60, unsupported=3), certificate(record(case()))])
def test_the_same_twice_is_no_worse(whole: Certificate) -> None:
    found = compare(whole, whole)
    assert found.exit_code() == found.exit_code(strict=True) == 0
    assert found.losses == found.exceeded == found.moved == found.trends == found.groups == found.added == ()
    assert found.equal > 0
    assert found.fallen == 0


def test_better_numbers_are_no_worse() -> None:
    found = compare(changed(plausible(200), scaled(0.9)), plausible(200))
    assert found.exit_code(strict=True) == 0
    assert found.fallen > 0


@pytest.mark.parametrize("quantity", FIELDS)
def test_a_number_beyond_the_worst_known_is_a_regression(quantity: str) -> None:
    field = FIELDS[quantity]
    found = pair({field: 0.2}, {field: 0.2500001}, {field: 0.25})
    assert found.exit_code() == 2
    (move,) = found.exceeded
    assert (move.case, move.tensor, move.mode, move.quantity) == (case().id, "out", "forward", quantity)
    assert (move.old, move.new, move.known) == (0.2, 0.2500001, 0.25)


@pytest.mark.parametrize("quantity", FIELDS)
def test_a_number_within_the_worst_known_moved(quantity: str) -> None:
    field = FIELDS[quantity]
    found = pair({field: 0.2}, {field: 0.25}, {field: 0.25})
    assert (found.exit_code(), found.exit_code(strict=True)) == (0, 2)
    assert found.exceeded == ()
    assert [(move.case, move.quantity) for move in found.moved] == [(case().id, quantity)]


def test_the_sign_of_a_bias_is_not_its_size() -> None:
    assert pair({"bias_ulp": 0.1}, {"bias_ulp": -0.1}).exit_code(strict=True) == 0
    assert pair({"bias_ulp": 0.1}, {"bias_ulp": -0.2}).exit_code() == 2


@pytest.mark.parametrize("others", [{"regime": "cancelling-values"}, {"dtype": "fp32"}])
def test_the_worst_known_of_another_regime_or_dtype_allows_nothing(others: dict[str, object]) -> None:
    assert pair({"max_ulp": 1.0}, {"max_ulp": 2.0}, {"max_ulp": 1e6}, **others).exit_code() == 2


@pytest.mark.parametrize("key", [("lse", "forward"), ("out", "enclosure")])
def test_the_worst_known_of_another_tensor_or_mode_allows_nothing(key: tuple[str, str]) -> None:
    def whole(ulp: float) -> Certificate:
        return certificate(record(case(), measurements=(measurement(max_ulp=ulp), measurement(*key, max_ulp=1e6))))

    assert compare(whole(2.0), whole(1.0)).exit_code() == 2


def test_a_failed_case_of_the_baseline_allows_nothing() -> None:
    failed = record(case(seed=1), Verdict.FAIL, (measurement(headroom=50.0),))

    def whole(headroom: float) -> Certificate:
        return certificate(record(case(), measurements=(measurement(headroom=headroom),)), failed)

    assert compare(whole(0.5), whole(0.25)).exit_code() == 2
    assert compare(whole(0.25), whole(0.25)).exit_code() == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("quantity", FIELDS)
def test_a_number_that_is_none_never_passes(quantity: str, value: float) -> None:
    field = FIELDS[quantity]
    found = pair({}, {field: value})
    assert found.exit_code() == 2
    assert found.exceeded[0].quantity == quantity
    both = pair({field: value}, {field: value})
    assert both.exit_code() == 3
    assert both.undecided
    here = certificate(record(case()))
    added = compare(certificate(*here.records, record(case(seed=9), measurements=(measurement(**{field: value}),))), here)
    assert added.exit_code() == 3
    assert case(seed=9).id in added.undecided[0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("quantity", FIELDS)
def test_a_number_that_is_none_in_the_baseline_allows_nothing(quantity: str, value: float) -> None:
    field = FIELDS[quantity]
    assert pair({field: 0.2}, {field: 0.3}, {field: value}).exceeded
    recovered = pair({field: value}, {field: 0.2})
    assert recovered.exceeded == recovered.undecided == ()


TRANSITIONS = {
    ("pass", "fail"): 2, ("pass", "inconclusive"): 2, ("pass", "unsupported"): 2,
    ("unsupported", "fail"): 2, ("unsupported", "inconclusive"): 2, ("unsupported", "pass"): 0,
    ("inconclusive", "fail"): 2, ("inconclusive", "unsupported"): 0, ("inconclusive", "pass"): 0,
    ("fail", "inconclusive"): 2, ("fail", "unsupported"): 2, ("fail", "pass"): 0,
    ("fail", "fail"): 1, ("inconclusive", "inconclusive"): 3, ("unsupported", "unsupported"): 0,
}  # fmt: skip


@pytest.mark.parametrize(("old", "new"), TRANSITIONS)
def test_a_verdict_that_got_worse_is_a_regression(old: str, new: str) -> None:
    def whole(verdict: str) -> Certificate:
        found = () if verdict in ("inconclusive", "unsupported") else None
        return certificate(record(case(), Verdict(verdict), found, f"{verdict} because"), record(case(seed=1)))

    found = compare(whole(new), whole(old))
    assert found.exit_code() == TRANSITIONS[old, new]
    if found.exit_code() == 2:
        assert (found.losses[0].what, found.losses[0].old, found.losses[0].new) == ("verdict", old, f"{new}: {new} because")


def test_a_record_that_claims_more_than_its_checks_is_not_believed() -> None:
    claimed = replace(record(case(), Verdict.FAIL), verdict=Verdict.PASS)
    assert compare(certificate(claimed), certificate(record(case()))).losses[0].what == "verdict"


def test_a_case_that_is_missing_is_a_regression() -> None:
    before = certificate(record(case()), record(case(seed=1)))
    found = compare(certificate(record(case())), before)
    assert found.exit_code() == 2
    assert [(loss.case, loss.new) for loss in found.losses] == [(case(seed=1).id, "not run")]


def two_checks(function: Verdict | None, seed: int = 0) -> CaseRecord:
    accuracy = record(case(seed=seed))
    if function is None:
        return accuracy
    found = () if function is Verdict.UNSUPPORTED else (measurement(mode="enclosure"),)
    return replace(accuracy, results=(*accuracy.results, CheckResult(check="function", verdict=function, measurements=found)))


@pytest.mark.parametrize(("now", "words"), [(None, "not run"), (Verdict.UNSUPPORTED, "unsupported")])
def test_a_check_that_is_lost_behind_another_one_is_a_regression(now: Verdict | None, words: str) -> None:
    found = compare(certificate(two_checks(now)), certificate(two_checks(Verdict.PASS)))
    assert found.exit_code() == 2
    assert (found.losses[0].what, found.losses[0].new) == ("check function", words)


def test_an_inconclusive_check_cannot_be_dropped_for_a_better_verdict() -> None:
    found = compare(certificate(two_checks(None)), certificate(two_checks(Verdict.INCONCLUSIVE)))
    assert (found.exit_code(), found.losses[0].what) == (2, "check function")


@pytest.mark.parametrize(
    ("now", "words"),
    [((measurement(),), "not measured"), ((measurement(), measurement("lse", elements=999)), "999 elements")],
)
def test_a_tensor_that_is_measured_less_is_a_regression(now: tuple[Measurement, ...], words: str) -> None:
    found = compare(certificate(record(case(), measurements=now)), certificate(record(case(), measurements=TWO)))
    assert found.exit_code() == 2
    assert [(loss.what, loss.new) for loss in found.losses] == [("accuracy: lse (forward)", words)]


def test_new_cases_are_named_and_judged_by_their_own_verdict_alone() -> None:
    before = certificate(record(case()))
    found = compare(certificate(record(case()), record(case(seed=1), measurements=(measurement(max_ulp=99.0),))), before)
    assert (found.exit_code(strict=True), found.added) == (0, (case(seed=1).id,))
    failing = compare(certificate(record(case()), record(case(seed=1), Verdict.FAIL)), before)
    assert (failing.exit_code(), failing.losses) == (1, ())
    assert compare(certificate(record(case()), planned=2), before).exit_code() == 3


EMPTY = [certificate(), certificate(planned=3), certificate(record(case(), Verdict.UNSUPPORTED, (), "no bf16"))]


@pytest.mark.parametrize("empty", EMPTY)
def test_nothing_is_never_a_success(empty: Certificate) -> None:
    full = certificate(record(case()))
    assert "new" in compare(empty, full).empty
    assert "baseline" in compare(full, empty).empty
    assert compare(empty, full).exit_code() == compare(full, empty).exit_code() == compare(empty, empty).exit_code() == 5


def test_no_number_in_common_is_never_a_success() -> None:
    crashed = certificate(record(case(), Verdict.INCONCLUSIVE, (), "timeout"))
    found = compare(certificate(record(case())), crashed)
    assert (found.exit_code(), found.empty) == (5, "the two have no number in common")
    assert compare(certificate(record(case(seed=1))), certificate(record(case()))).exit_code() == 2  # its case is missing


def test_another_platform_lane_or_kernel_is_refused() -> None:
    here = certificate(record(case()))
    there = certificate(record(case()), environment=msgspec.structs.replace(H200, platform="nvidia-b200"))
    interpreted = replace(here, plan=msgspec.structs.replace(here.plan, lane="interpreter"))
    mutant = replace(here, plan=msgspec.structs.replace(here.plan, kernel="mutant:scale-off"))
    for other, word in ((there, "platform"), (interpreted, "lane"), (mutant, "kernel")):
        for new, baseline in ((here, other), (other, here)):
            found = compare(new, baseline)
            assert (found.exit_code(), len(found.refusals)) == (3, 1)
            assert found.refusals[0].startswith(f"{word}: got ")
    assert compare(mutant, here, allow_kernel=True).exit_code() == 0
    assert compare(there, here, allow_kernel=True).refusals


def test_a_certificate_that_says_something_twice_is_refused() -> None:
    once = certificate(record(case()))
    worse = record(case(), measurements=(measurement(max_ulp=9.0),))
    (result,) = record(case()).results
    doubled = replace(record(case()), results=(result, replace(result, measurements=())))
    for twice in (
        certificate(worse, record(case())),
        certificate(record(case(), measurements=(worse.results[0].measurements[0], measurement()))),
        certificate(doubled),
    ):
        with pytest.raises(ValueError, match=r"two|twice"):
            compare(twice, once)
        with pytest.raises(ValueError, match=r"two|twice"):
            compare(once, twice)


def test_one_tensor_worsened_by_a_fifth_is_seen_in_every_way() -> None:
    def worse(entry: CaseRecord, found: Measurement) -> Measurement:
        return scaled(1.2)(entry, found) if (entry.dtype, found.tensor, found.mode) == ("bf16", "dk", "modular") else found

    found = compare(changed(plausible(200), worse), plausible(200))
    assert found.exit_code() == 2
    assert {(move.dtype, move.tensor, move.quantity) for move in found.exceeded} == {("bf16", "dk", q) for q in FIELDS}
    assert {(trend.dtype, trend.tensor, trend.mode, trend.quantity) for trend in found.trends} >= {
        ("bf16", "dk", "modular", quantity) for quantity in FIELDS
    }
    assert {(new.dtype, new.tensor, new.mode) for _, new in found.groups} == {("bf16", "dk", "modular")}


def three_tiers(of_sharp: dict[str, object] | None = None, of_scores: dict[str, object] | None = None) -> Certificate:
    """A case with these numbers in the later tiers, beside another of the same regime."""
    return certificate(tiered(case(), sharp(**(of_sharp or {})), distribution(**(of_scores or {}))), tiered(case(seed=1)))


TIERS = {
    "error / sharp budget": lambda factor: three_tiers({"headroom": 0.75 * factor}),
    "rms(z)": lambda factor: three_tiers(of_scores={"rms": 0.98 * factor}),
    "|t| / limit": lambda factor: three_tiers(of_scores={"t": -1.5 * factor}),
    "|t_sign| / limit": lambda factor: three_tiers(of_scores={"t_sign": 2.5 * factor}),
}
"""Quantity -> a certificate whose first case has it scaled; the sign of t is another one than the other case's."""


def test_three_tiers_twice_are_no_worse() -> None:
    found = compare(three_tiers(), three_tiers())
    assert (found.exit_code(strict=True), found.equal, found.added_checks) == (0, 16, ())


@pytest.mark.parametrize("quantity", TIERS)
def test_a_fifth_worse_in_a_later_tier_is_a_regression(quantity: str) -> None:
    found = compare(TIERS[quantity](1.2), three_tiers())
    assert found.exit_code() == 2
    (move,) = found.exceeded
    assert (move.case, move.tensor, move.mode, move.quantity) == (case().id, "out", "forward", quantity)
    assert move.growth == pytest.approx(1.2, rel=2.0**-51)
    assert compare(TIERS[quantity](0.8), three_tiers()).exit_code(strict=True) == 0


@pytest.mark.parametrize("quantity", TIERS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_of_a_later_tier_that_is_none_never_passes(quantity: str, value: float) -> None:
    broken = TIERS[quantity](value)
    assert [move.quantity for move in compare(broken, three_tiers()).exceeded] == [quantity]
    both = compare(replace(broken, records=tuple(map(passing, broken.records))), broken)
    assert both.exit_code() == 3
    assert quantity in both.undecided[0]


def passing(entry: CaseRecord) -> CaseRecord:
    """The record with all its verdicts a pass, whatever it holds."""
    return replace(
        entry,
        verdict=Verdict.PASS,
        results=tuple(replace(result, verdict=Verdict.PASS, reason="") for result in entry.results),
    )


def test_a_t_is_seen_in_units_of_its_limit() -> None:
    """More rows make a larger t of the same bias, and accept a larger one."""
    old = three_tiers(of_scores={"t": 4.0, "largest_t": 8.0})
    assert compare(three_tiers(of_scores={"t": 5.0, "largest_t": 10.0}), old).exit_code(strict=True) == 0
    assert compare(three_tiers(of_scores={"t": 4.0, "largest_t": 7.0}), old).exit_code() == 2


def test_an_rms_below_its_range_is_for_the_check_to_fail() -> None:
    found = compare(three_tiers(of_scores={"rms": 0.5}), three_tiers())
    assert (found.exceeded, found.exit_code()) == ((), 2)
    assert [(loss.what, loss.new) for loss in found.losses] == [
        ("verdict", "fail: made up"),
        ("check distribution", "fail: made up"),
    ]


def changed_result(check: str, **changes: object) -> Certificate:
    """Three tiers with one result of the first case changed."""
    whole = three_tiers()
    first = whole.records[0]
    results = tuple(replace(one, **changes) if one.check == check else one for one in first.results)  # type: ignore[arg-type]
    return replace(whole, records=(replace(first, results=results), *whole.records[1:]))


UNCOVERED = {
    "a tensor is no longer scored": (
        changed_result("distribution", distributions=(distribution("dq"),)), "distribution: out (forward)", "not scored"),
    "a tensor has no sharp budget": (changed_result("sharp", sharp=(sharp("dq"),)), "sharp: out (forward)", "not measured"),
    "fewer elements": (changed_result("sharp", sharp=(sharp(elements=999),)), "sharp: out (forward)", "999 elements"),
    "the tier does not apply": (
        changed_result("sharp", verdict=Verdict.UNSUPPORTED, reason="all logits are 0", sharp=()),
        "check sharp", "unsupported: all logits are 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNCOVERED)
def test_a_tensor_that_a_later_tier_judges_no_more_is_a_regression(name: str) -> None:
    new, what, words = UNCOVERED[name]
    found = compare(new, three_tiers())
    assert found.exit_code() == 2
    assert [(loss.case, loss.what, loss.new) for loss in found.losses] == [(case().id, what, words)]


def test_dropout_bits_that_differ_or_are_compared_no_more_are_a_regression() -> None:
    def masked(seed: int = 0, **changes: int) -> CaseRecord:
        return dropped(case(seed=seed), Bits(**{"tensor": "dq", "mode": "predicted", "compared": 100} | changes))

    old = certificate(masked())
    assert compare(certificate(masked()), old).exit_code(strict=True) == 0
    assert compare(certificate(masked(compared=101)), old).exit_code(strict=True) == 0
    fewer = compare(certificate(masked(compared=99)), old)
    assert (fewer.exit_code(), [loss.new for loss in fewer.losses]) == (2, ["99 bits"])
    none = compare(certificate(dropped(case())), old)
    assert [(loss.old, loss.new) for loss in none.losses] == [("100 bits", "0 bits")]
    wrong = compare(certificate(masked(differing=1)), old)
    assert (wrong.exit_code(), [move.quantity for move in wrong.exceeded]) == (2, ["bits that differ"])


def test_the_number_of_scores_is_no_coverage() -> None:
    """Modular truth moves with the kernel's own out, and which true values are exact moves with it."""
    assert compare(three_tiers(of_scores={"elements": 959}), three_tiers()).exit_code(strict=True) == 0


def test_a_baseline_of_before_the_tiers_judges_what_it_has() -> None:
    before = certificate(record(case()), record(case(seed=1)))
    found = compare(three_tiers(), before)
    assert (found.exit_code(strict=True), found.equal, found.added_checks) == (0, 8, ("distribution", "sharp"))
    worse = certificate(tiered(case(), hard=measurement(max_ulp=0.6)), tiered(case(seed=1)))
    assert [move.quantity for move in compare(worse, before).exceeded] == ["max ulp"]
    assert compare(certificate(tiered(case(), sharp(violations=1)), tiered(case(seed=1))), before).exit_code() == 2
    dropped = compare(before, three_tiers())
    assert {(loss.what, loss.new) for loss in dropped.losses} == {("check sharp", "not run"), ("check distribution", "not run")}
    assert dropped.exit_code() == 2


def test_a_trend_in_scores_is_seen_below_the_worst_known() -> None:
    def whole(factor: float) -> Certificate:
        draws = [tiered(case(seed=seed), scores=distribution(t_sign=-0.5 * factor)) for seed in range(40)]
        return certificate(*draws, tiered(case(seed=40), scores=distribution(t_sign=7.0)))

    found = compare(whole(1.25), whole(1.0))
    assert (found.exceeded, len(found.moved), found.exit_code()) == ((), 40, 2)
    assert [(trend.check, trend.quantity, trend.rises) for trend in found.trends] == [("distribution", "|t_sign| / limit", 40)]


def spread(seeds: int, layouts: tuple[str, ...] = ("contiguous",)) -> Certificate:
    """Draws of one regime, and a case of the same that is far worse than they are: the worst known is never exceeded."""
    records = [
        record(case(seed=seed, layout=layout), measurements=(measurement(rms_ulp=0.1),))
        for seed, layout in itertools.product(range(seeds), layouts)
    ]
    return certificate(*records, record(case(seed=seeds), measurements=(measurement(rms_ulp=10.0),)))


def risen(whole: Certificate, seeds: set[int]) -> Certificate:
    """The cases of these seeds a little worse, the others a little better; the far one stays."""

    def move(entry: CaseRecord, found: Measurement) -> Measurement:
        if found.rms_ulp == 10.0:
            return found
        return replace(found, rms_ulp=found.rms_ulp * (1.001 if int(entry.case.rpartition("_s")[2]) in seeds else 0.999))

    return changed(whole, move)


def test_a_small_rise_everywhere_is_a_regression_although_no_worst_known_is_exceeded() -> None:
    whole = spread(40)
    found = compare(risen(whole, set(range(40))), whole)
    assert (found.exceeded, len(found.moved)) == ((), 40)
    assert [(trend.quantity, trend.rises, trend.falls) for trend in found.trends] == [("rms ulp", 40, 0)]
    assert found.exit_code() == 2


def test_small_moves_both_ways_are_none() -> None:
    whole = spread(40)
    found = compare(risen(whole, set(range(0, 40, 2))), whole)
    assert (found.exit_code(), found.trends, len(found.moved), found.fallen) == (0, (), 20, 20)


def test_cases_of_one_draw_have_one_vote() -> None:
    whole = spread(5, ("contiguous", "bnhd", "packed-qkv", "packed-kv", "padded", "sliced", "transposed", "broadcast"))
    found = compare(risen(whole, set(range(5))), whole)
    assert (found.exit_code(), found.trends, len(found.moved)) == (0, (), 40)


def test_votes_are_majorities_of_draws() -> None:
    a, b, c = ("normal", 0), ("normal", 1), ("peaked", 0)
    assert votes([(a, 1.0), (a, 2.0), (a, -9.0), (b, -1.0), (c, 1.0), (c, -1.0)]) == (1, 1)
    assert votes([(a, math.nan), (b, math.inf), (c, -math.inf)]) == (1, 1)
    assert votes([(a, 0.0)]) == votes([]) == (0, 0)


def trend(rises: int, falls: int) -> Trend:
    return Trend(dtype="bf16", check="accuracy", tensor="out", mode="forward", quantity="rms ulp", rises=rises, falls=falls)


def test_the_chance_of_a_trend_is_exact() -> None:
    assert trend(3, 1).chance == Fraction(5, 16)
    assert trend(0, 4).chance == 1
    assert trend(20, 0).chance == Fraction(1, 2**20)


def test_the_false_alarm_rate_is_shared_among_all_tests() -> None:
    alone, quiet = trend(20, 0), trend(1, 1)
    assert alone.chance <= FALSE_ALARMS < 2 * alone.chance
    assert significant([alone]) == (alone,)
    assert significant([alone, trend(0, 0)]) == (alone,)  # nothing moved: nothing was tested
    assert significant([alone, quiet]) == ()
    assert significant([trend(19, 0)]) == ()


def test_a_contract_that_changed_is_named() -> None:
    new = replace(record(case()), contract={"storage": "bf16", "accumulator": "bf16"})
    assert compare(certificate(new), certificate(record(case()))).contracts == (case().id,)
    assert compare(certificate(record(case())), certificate(record(case()))).contracts == ()


def test_pooled_figures_are_of_the_cases_that_both_have() -> None:
    old = certificate(record(case(), measurements=(measurement(rms_ulp=3.0),)))
    new = certificate(
        record(case(), measurements=(measurement(rms_ulp=2.0),)), record(case(seed=1), measurements=(measurement(rms_ulp=9.0),))
    )
    ((before, after),) = compare(new, old).groups
    assert (before.rms_ulp, after.rms_ulp, after.cases) == (3.0, 2.0, 1)
