"""The verdict on small tensors made by hand: what passes, what fails, and what nobody can know."""

import math

import pytest
import torch

from flashverify.checks.comparison import Comparison, judge, measure
from flashverify.numerics.formats import FP16, FP64
from flashverify.records.measurement import Verdict

INF, NAN = math.inf, math.nan
MODES = ("forward", "modular", "end-to-end")


def compare(value, truth, radius=0.0, budget=0.0, mode="forward", tensor="out", number_format=FP16):
    """A comparison of one head: arguments are numbers or lists of numbers, one an element."""
    value = torch.tensor(value if isinstance(value, list) else [value], dtype=torch.float64).reshape(1, 1, 1, -1)

    def like_value(numbers):
        return torch.tensor(numbers, dtype=torch.float64).expand(value.shape[-1]).reshape(value.shape)

    return Comparison(tensor, mode, value, like_value(truth), like_value(radius), like_value(budget), number_format)


def verdict(*arguments, **keywords):
    return judge([measure(compare(*arguments, **keywords))])[0]


# value, truth, radius, budget -> verdict; powers of two, so that sums and quotients here are exact
THRESHOLDS = [
    pytest.param(1.0, 1.0, 0.0, 0.0, Verdict.PASS, id="exact, and nothing allowed"),
    pytest.param(1.25, 1.0, 0.0, 0.25, Verdict.PASS, id="error equals budget"),
    pytest.param(0.75, 1.0, 0.0, 0.25, Verdict.PASS, id="the same below truth"),
    pytest.param(1.25, 1.0, 0.125, 0.375, Verdict.PASS, id="error plus radius equals budget"),
    pytest.param(1.25, 1.0, 0.25, 0.375, Verdict.INCONCLUSIVE, id="error plus radius above the budget"),
    pytest.param(1.25, 1.0, 0.125, 0.125, Verdict.INCONCLUSIVE, id="error minus radius equals budget"),
    pytest.param(1.25, 1.0, 0.0625, 0.125, Verdict.FAIL, id="error minus radius above the budget"),
    pytest.param(1.25, 1.0, 0.0, 0.125, Verdict.FAIL, id="error above the budget"),
    pytest.param(1.0 + 2.0**-52, 1.0, 0.0, 0.0, Verdict.FAIL, id="one ulp where the value must be exact"),
    pytest.param(5e-324, 0.0, 0.0, 0.0, Verdict.FAIL, id="a subnormal where the value must be 0"),
    pytest.param(-0.0, 0.0, 0.0, 0.0, Verdict.PASS, id="zeros are equal"),
    pytest.param(1.0, 1.0, 0.25, 0.0, Verdict.INCONCLUSIVE, id="equal to a truth that is itself not exact"),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("value", "truth", "radius", "budget", "expected"), THRESHOLDS)
def test_thresholds(value, truth, radius, budget, expected, mode):
    assert verdict(value, truth, radius, budget, mode=mode) is expected


@pytest.mark.parametrize(
    ("value", "truth", "radius", "budget", "expected"),
    [
        pytest.param(1.25, 1.0, 0.25, 0.0, Verdict.PASS, id="on the border of the enclosure"),
        pytest.param(1.25, 1.0, 0.125, 0.125, Verdict.PASS, id="the budget beside it"),
        pytest.param(1.25, 1.0, 0.125, 0.0625, Verdict.FAIL, id="outside of both: nothing in between"),
        pytest.param(1.25, 1.0, INF, 0.125, Verdict.INCONCLUSIVE, id="an enclosure of everything"),
        pytest.param(1.25, 1.0, NAN, 0.125, Verdict.INCONCLUSIVE, id="an enclosure of nothing known"),
    ],
)
def test_enclosures(value, truth, radius, budget, expected):
    assert verdict(value, truth, radius, budget, mode="enclosure") is expected


@pytest.mark.parametrize("mode", [*MODES, "enclosure"])
@pytest.mark.parametrize(
    ("value", "truth", "expected"),
    [
        (-INF, -INF, Verdict.PASS),
        (INF, INF, Verdict.PASS),
        (INF, -INF, Verdict.FAIL),
        (-1e300, -INF, Verdict.FAIL),
        (-INF, 1.0, Verdict.FAIL),
        (INF, 1.0, Verdict.FAIL),
        (NAN, 1.0, Verdict.FAIL),
        (NAN, -INF, Verdict.FAIL),
        (1.0, NAN, Verdict.INCONCLUSIVE),
        (NAN, NAN, Verdict.INCONCLUSIVE),
    ],
)
def test_values_and_truths_that_are_not_finite(value, truth, expected, mode):
    assert verdict(value, truth, 0.0, 1.0, mode=mode) is expected


@pytest.mark.parametrize("mode", [*MODES, "enclosure"])
@pytest.mark.parametrize("name", ["radius", "budget"])
@pytest.mark.parametrize("bound", [INF, NAN, -1.0])
@pytest.mark.parametrize(("value", "truth", "expected"), [
    (1.0, 1.0, Verdict.INCONCLUSIVE),
    (5.0, 1.0, Verdict.INCONCLUSIVE),
    (INF, 1.0, Verdict.INCONCLUSIVE),
    (-INF, -INF, Verdict.INCONCLUSIVE),
    (NAN, 1.0, Verdict.FAIL),
])  # fmt: skip
def test_a_bound_that_nothing_can_exceed_is_no_pass(value, truth, expected, bound, name, mode):
    bounds = {"radius": 0.0, "budget": 1.0} | {name: bound}
    assert verdict(value, truth, mode=mode, **bounds) is expected


def test_one_vacuous_element_spoils_the_pass_of_its_tensor_but_hides_no_failure():
    assert verdict([1.0, 1.0], 1.0, 0.0, [1.0, INF]) is Verdict.INCONCLUSIVE
    measured = measure(compare([5.0, 1.0, 1.0], 1.0, 0.0, [1.0, INF, 1.0]))
    assert measured.violations == 1
    assert measured.certain_excess == 4.0
    assert measured.worst.index == (0, 0, 0, 0)
    assert judge([measured])[0] is Verdict.FAIL


def test_the_worst_element_of_a_failure_is_one_that_fails():
    """The largest headroom may belong to an element whose oracle is dull."""
    measured = measure(compare([1.0, 6.0], 1.0, [100.0, 0.0], 1.0))
    assert measured.headroom == 100.0
    assert measured.worst.index == (0, 0, 0, 1)
    _, reason = judge([measured])
    assert reason == (
        "out (forward): 1 of 2 elements beyond the budget, worst 5 times it at (0, 0, 0, 1): value 6, truth 1, budget 1"
    )


def test_reasons_say_why_nothing_is_known():
    def reason(*arguments):
        return judge([measure(compare(*arguments))])[1]

    assert reason(1.0, 1.0, 0.0, INF) == "out (forward): no error bound: the budget at (0, 0, 0, 0) is inf"
    assert reason(1.0, NAN, 0.0, 1.0) == "out (forward): the oracle gives no number at (0, 0, 0, 0)"
    assert reason(1.0, 1.0, 2.0, 1.0) == (
        "out (forward): oracle not sharp enough: the value at (0, 0, 0, 0) lies within its radius of the budget"
    )


def test_numbers_by_hand():
    """Truth 3: an ulp of fp16 at the head's largest |truth| is 2^(1 - 10)."""
    ulp = 2.0**-9
    value = [3.0 + 2 * ulp, 1.0 - ulp, -2.0 - ulp, 0.0]
    measured = measure(compare(value, [3.0, 1.0, -2.0, 0.0], 0.25 * ulp, 4 * ulp))
    assert measured.elements == 4
    assert measured.max_error == 2 * ulp
    assert measured.max_ulp == 2.0
    assert measured.rms_error == pytest.approx(ulp * math.sqrt(6 / 4), rel=1e-15)
    assert measured.rms_ulp == pytest.approx(math.sqrt(6 / 4), rel=1e-15)
    assert measured.bias_ulp == (2.0 - 1.0 + 1.0 + 0.0) / 4  # the first and third are too large in magnitude
    assert measured.headroom == 2.25 / 4
    assert measured.certain_excess == 1.75 / 4
    assert measured.max_relative == pytest.approx(1.75 * ulp / 3.0, rel=1e-15)
    assert measured.violations == 0
    assert measured.worst.index == measured.worst_ulp.index == (0, 0, 0, 0)
    assert (measured.worst.value, measured.worst.truth, measured.worst.budget) == (value[0], 3.0, 4 * ulp)


def test_ulps_are_counted_at_the_size_of_the_head_and_not_where_it_drowns_in_the_budget():
    value = torch.tensor([8.0 + 2.0**-7, 2.0**-7]).double().reshape(1, 2, 1, 1)
    truth = torch.tensor([8.0, 0.0]).double().reshape(1, 2, 1, 1)
    budget = torch.ones_like(truth)
    measured = measure(Comparison("out", "forward", value, truth, torch.zeros_like(truth), budget, FP16))
    assert measured.max_ulp == 1.0
    assert measured.rms_ulp == pytest.approx(math.sqrt(0.5), rel=1e-15)


def test_relative_distance_of_an_enclosure_is_relative_to_its_terms():
    value, truth, radius, budget = (torch.tensor([[[[x]]]]).double() for x in (1.5, 1.0, 0.25, 1.0))
    magnitude = torch.full_like(truth, 8.0)
    measured = measure(Comparison("dq", "enclosure", value, truth, radius, budget, FP64, magnitude))
    assert measured.max_relative == 0.25 / 8.0
    nothing_there = measure(Comparison("dq", "enclosure", value, truth, radius, budget, FP64, torch.zeros_like(truth)))
    assert nothing_there.max_relative == 0.25 / FP64.smallest_normal  # there is no smaller unit to see an error against


def test_worst_element_of_a_tensor_of_four_dimensions():
    truth = torch.zeros(2, 3, 4, 5, dtype=torch.float64)
    value = truth.clone()
    value[1, 2, 0, 3] = -1.0
    measured = measure(Comparison("dv", "modular", value, truth, truth, torch.full_like(truth, 2.0), FP16))
    assert measured.worst.index == (1, 2, 0, 3)
    assert (measured.worst.value, measured.headroom) == (-1.0, 0.5)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (1, 2, 0, 4), (1, 2, 0)])
def test_an_empty_tensor_passes_with_no_element(shape):
    empty = torch.zeros(shape, dtype=torch.float64)
    measured = measure(Comparison("out", "forward", empty, empty, empty, empty, FP16))
    assert (measured.elements, measured.worst, measured.worst_ulp) == (0, None, None)
    assert judge([measured]) == (Verdict.PASS, "")


@pytest.mark.parametrize("name", ["truth", "radius", "budget", "magnitude"])
def test_tensors_that_would_broadcast_are_refused(name):
    tensors = dict.fromkeys(("value", "truth", "radius", "budget", "magnitude"), torch.zeros(1, 2, 3, 4).double())
    tensors[name] = torch.zeros(1, 1, 3, 4).double()
    with pytest.raises(ValueError, match=rf"{name} of out: got shape \(1, 1, 3, 4\), accepted is the value's, \(1, 2, 3, 4\)"):
        Comparison("out", "forward", format=FP16, **tensors)


def test_low_precision_values_are_compared_as_they_are():
    value = torch.full((1, 1, 1, 1), 0.1, dtype=torch.bfloat16)
    exact = value.double()
    assert judge([measure(Comparison("out", "forward", value, exact, 0 * exact, 0 * exact, FP16))])[0] is Verdict.PASS
    rounded = torch.full_like(exact, 0.1)
    assert judge([measure(Comparison("out", "forward", value, rounded, 0 * exact, 0 * exact, FP16))])[0] is Verdict.FAIL


def test_the_verdict_of_several_tensors_is_the_worst_of_them():
    passed = measure(compare(1.0, 1.0, 0.0, 1.0))
    unclear = measure(compare(1.0, 1.0, 2.0, 1.0, tensor="dk"))
    failed = measure(compare(9.0, 1.0, 0.0, 1.0, tensor="dq"))
    worse = measure(compare(NAN, 1.0, 0.0, 1.0, tensor="dv"))
    assert judge([passed, passed]) == (Verdict.PASS, "")
    assert judge([passed, unclear])[0] is Verdict.INCONCLUSIVE
    decided, reason = judge([passed, unclear, failed, worse])
    assert decided is Verdict.FAIL
    assert reason.startswith("dv (forward): 1 of 1 elements beyond the budget, worst inf times it at (0, 0, 0, 0): value nan")
    assert reason.endswith("; also dq (forward)")


def test_where_nothing_was_measured_nothing_passes():
    assert judge([]) == (Verdict.INCONCLUSIVE, "nothing was measured")
