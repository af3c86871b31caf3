"""The arithmetic of summaries, and the exit codes."""

from __future__ import annotations

import math

import pytest

from flashverify.records.measurement import Verdict
from flashverify.records.summary import exit_code, settled_verdict, summarise
from tests.records.synthetic import case, certificate, measurement, plausible, record

PASS, FAIL = record(case()), record(case(seed=1), Verdict.FAIL)
UNSUPPORTED = record(case(seed=2), Verdict.UNSUPPORTED, (), "no fp64 here")
INCONCLUSIVE = record(case(seed=3), Verdict.INCONCLUSIVE, (), "timeout")


@pytest.mark.parametrize(
    ("records", "planned", "code"),
    [
        ((PASS,), 1, 0),
        ((PASS, UNSUPPORTED), 2, 0),
        ((PASS, FAIL, INCONCLUSIVE, UNSUPPORTED), 4, 1),
        ((FAIL,), 2, 1),
        ((PASS, INCONCLUSIVE), 2, 3),
        ((INCONCLUSIVE,), 1, 3),
        ((PASS,), 2, 3),
        ((), 0, 5),
        ((), 7, 5),
        ((UNSUPPORTED,), 1, 5),
    ],
)
def test_exit_codes(records: tuple, planned: int, code: int) -> None:  # type: ignore[type-arg]
    assert exit_code(certificate(*records, planned=planned)) == code


def test_a_record_is_no_better_than_its_checks() -> None:
    def claimed(claim: Verdict, result: Verdict) -> Verdict:
        honest = record(case(), result, (measurement(),))
        fields = {name: getattr(honest, name) for name in honest.__dataclass_fields__}
        return settled_verdict(type(honest)(**(fields | {"verdict": claim})))

    assert claimed(Verdict.PASS, Verdict.FAIL) is Verdict.FAIL
    assert claimed(Verdict.UNSUPPORTED, Verdict.FAIL) is Verdict.FAIL
    assert claimed(Verdict.PASS, Verdict.INCONCLUSIVE) is Verdict.INCONCLUSIVE
    assert claimed(Verdict.PASS, Verdict.UNSUPPORTED) is Verdict.INCONCLUSIVE
    assert claimed(Verdict.FAIL, Verdict.PASS) is Verdict.FAIL
    assert claimed(Verdict.PASS, Verdict.PASS) is Verdict.PASS
    assert settled_verdict(record(case(), Verdict.UNSUPPORTED, ())) is Verdict.UNSUPPORTED


def test_groups_pool_their_elements() -> None:
    first = record(case(), measurements=(measurement(elements=100, rms_ulp=3.0, bias_ulp=0.5, max_ulp=2.0, headroom=0.9),))
    second = record(
        case(seed=1), measurements=(measurement(elements=300, rms_ulp=1.0, bias_ulp=-0.5, max_ulp=7.0, headroom=0.1),)
    )
    empty = record(
        case(seqlen_q=0, seqlen_k=0),
        measurements=(measurement(elements=0, rms_ulp=math.nan, bias_ulp=math.nan, max_ulp=0.0),),
    )
    (group,) = summarise(certificate(first, second, empty, UNSUPPORTED, UNSUPPORTED)).groups
    assert (group.dtype, group.features, group.tensor, group.mode) == ("bf16", "plain", "out", "forward")
    assert (group.cases, group.elements, group.violations) == (3, 400, 0)
    assert group.rms_ulp == pytest.approx(math.sqrt((100 * 9 + 300) / 400), rel=1e-15)
    assert group.bias_ulp == pytest.approx(-0.25, rel=1e-15)
    assert (group.ulp.value, group.ulp.case) == (7.0, second.case)
    assert (group.headroom.value, group.headroom.case) == (0.9, first.case)
    assert group.unsupported == {"no fp64 here": 2}


@pytest.mark.parametrize("order", [1, -1])
def test_nan_is_worse_than_infinity_and_infinity_than_any_number(order: int) -> None:
    values = (1e308, math.inf, math.nan)
    records = [record(case(seed=i), measurements=(measurement(max_ulp=x),)) for i, x in enumerate(values)]
    assert summarise(certificate(*records[::order])).groups[0].ulp.case == records[2].case
    assert summarise(certificate(*records[:2][::order])).groups[0].ulp.case == records[1].case


def test_not_finite_errors_are_not_averaged_away() -> None:
    records = [record(case(seed=i), measurements=(measurement(rms_ulp=x),)) for i, x in enumerate((1.0, math.nan))]
    assert math.isnan(summarise(certificate(*records)).groups[0].rms_ulp)
    large = [record(case(seed=i), measurements=(measurement(rms_ulp=1e300),)) for i in range(2)]
    assert summarise(certificate(*large)).groups[0].rms_ulp == pytest.approx(1e300, rel=1e-15)


def test_distances_from_enclosures_are_kept_apart() -> None:
    entries = (
        measurement("out", "enclosure", max_relative=1e-15),
        measurement("lse", "enclosure", max_relative=3e-15),
        measurement("dk", "enclosure", max_relative=2e-14),
    )
    summary = summarise(certificate(record(case(), measurements=entries, check="function"), PASS))
    assert summary.forward_distance is not None
    assert summary.backward_distance is not None
    assert (summary.forward_distance.value, summary.forward_distance.tensor) == (3e-15, "lse")
    assert summary.backward_distance.value == 2e-14
    assert [group.mode for group in summary.groups] == ["forward"]
    assert summarise(certificate(PASS)).forward_distance is None


def test_distances_from_enclosures_are_the_errors_of_float64_cases() -> None:
    entry = measurement("out", "enclosure", max_ulp=3.0, max_relative=1e-15)
    summary = summarise(certificate(record(case(dtype="fp64"), measurements=(entry,)), PASS))
    assert summary.tensors["fp64", "out", "enclosure"].value == 3.0
    assert summary.tensor_relative["fp64", "out", "enclosure"].value == 1e-15
    assert [group.mode for group in summary.groups] == ["forward", "enclosure"]


def test_a_case_counts_for_every_feature_that_it_has() -> None:
    both = case(mask="causal", sink=True)
    near = measurement("out", "enclosure", max_relative=2e-16)
    summary = summarise(
        certificate(
            record(case(mask="causal"), measurements=(measurement("dq", "modular", headroom=0.25, max_ulp=2.0),)),
            record(both, Verdict.PASS, (measurement("dsink", "modular", headroom=0.5, max_ulp=1.0), near)),
            PASS,
        )
    )
    assert list(summary.features) == ["plain", "causal", "sink"]
    causal, sink = summary.features["causal"], summary.features["sink"]
    assert (causal.cases[Verdict.PASS], sink.cases[Verdict.PASS]) == (2, 1)
    assert causal.headroom is not None
    assert (causal.headroom.value, causal.headroom.case) == (0.5, both.id)
    assert causal.ulp is not None
    assert (causal.ulp.value, causal.ulp.tensor) == (2.0, "dq")
    assert sink.forward is not None
    assert sink.forward.value == 2e-16
    assert (summary.features["plain"].forward, sink.backward) == (None, None)


def test_counts_and_orders() -> None:
    summary = summarise(certificate(PASS, FAIL, UNSUPPORTED, INCONCLUSIVE, planned=6))
    assert summary.verdicts == dict.fromkeys(Verdict, 1)
    assert summary.not_run == 2
    assert summary.checks["accuracy"] == {"pass": 1, "fail": 1, "unsupported": 0, "inconclusive": 1}
    assert summary.regime_cases["normal"] == dict.fromkeys(Verdict, 1)
    assert summary.unsupported == {"no fp64 here": 1}
    large = summarise(plausible(200))
    dtypes = [key[0] for key in large.tensors]
    assert list(dict.fromkeys(dtypes)) == ["fp16", "bf16", "fp32", "fp64"]
    assert [key[1:] for key in large.tensors][:3] == [("out", "forward"), ("lse", "forward"), ("dq", "modular")]
    assert list(large.regime_headroom.values()) == sorted(large.regime_headroom.values(), key=lambda w: -w.value)


def test_nothing_is_an_empty_summary() -> None:
    summary = summarise(certificate())
    assert summary.groups == ()
    assert summary.tensors == summary.regime_ulp == summary.unsupported == {}
    assert summary.exit_code == 5
