"""exp2, log2 and division: exact ones are within half an ulp, and planted ones are reported with what they do."""

import math

import pytest
import torch

from flashverify.numerics import published
from flashverify.numerics.axioms import functions
from flashverify.numerics.axioms.finding import REFERENCE_ULPS, Errors, bits_of, float32_patterns
from flashverify.numerics.formats import FP32
from tests.numerics.axioms.fakes import FakeDevice


def device(**broken):
    """A device of which a sample of inputs is tried, with some operations replaced."""
    made = FakeDevice("interpreter")
    for name, operation in broken.items():
        setattr(made, name, operation)
    return made


def lines(found):
    return {line.name: line for line in found.observations}


def test_correctly_rounded_functions_err_by_half_an_ulp():
    exact = device()
    largest_of = {functions.exp2: "exp2_max_ulps", functions.log2: "log2_max_ulps", functions.division: "division_max_ulps"}
    for step, largest in largest_of.items():
        found = step(exact)
        assert 0.49 < found.fields[largest] <= 0.5 + REFERENCE_ULPS
        assert all(line.fits for line in found.observations)
    rms = math.sqrt(1.0 / 12.0)
    assert abs(functions.division(exact).fields["division_rms_ulps"] - rms) < 1.0 / math.sqrt(functions.SAMPLE)


def cubic(x):
    """FlashAttention-4 has a polynomial of degree 3 in the place of some exponentials; it is no exp2 to float32."""
    whole = torch.floor(x)
    fraction = (x - whole).double()
    ln2 = math.log(2.0)
    value = 1.0 + fraction * (ln2 + fraction * (ln2**2 / 2 + fraction * (1.0 - ln2 - ln2**2 / 2)))
    return (value * torch.exp2(whole.double())).float()


def test_a_cubic_polynomial_is_no_exponential():
    found = functions.exp2(device(exp2=cubic))
    line = lines(found)["exp2 on [-150, 0], largest error"]
    assert not line.fits
    assert found.fields["exp2_max_ulps"] > 1000.0
    assert f"published: {published.EXP2_ULPS} ulp" in line.text


def test_a_bias_has_its_sign():
    shrunk = functions.exp2(device(exp2=lambda x: torch.exp2(x.double()).float() * (1.0 - 2.0**-23)))
    assert shrunk.fields["exp2_mean_ulps"] < -0.5
    grown = functions.exp2(device(exp2=lambda x: torch.exp2(x.double()).float() * (1.0 + 2.0**-23)))
    assert grown.fields["exp2_mean_ulps"] > 0.5


def test_exp2_of_zero_has_to_be_one():
    off = functions.exp2(device(exp2=lambda x: torch.where(x == 0, 1.0 - 2.0**-24, torch.exp2(x))))
    assert not lines(off)["exp2(0) and exp2(-0)"].fits


def test_underflow_is_told_from_flushing():
    gradual = functions.exp2(device())
    assert gradual.fields["exp2_flushes_below"] == FP32.smallest_subnormal
    flushing = functions.exp2(device(exp2=lambda x: torch.where(x < -126.0, 0.0, torch.exp2(x.double()).float())))
    assert flushing.fields["exp2_flushes_below"] == FP32.smallest_normal
    assert lines(flushing)["exp2, smallest result but 0"].text.startswith("results below the smallest normal number")


def test_nan_is_an_infinite_error():
    found = functions.exp2(device(exp2=lambda x: torch.where(x == -3.0, torch.nan, torch.exp2(x))))
    assert found.fields["exp2_max_ulps"] == math.inf
    assert not lines(found)["exp2 on [-150, 0], largest error"].fits


def test_a_logarithm_that_is_off_near_one_is_reported():
    """2^-20 beside a result of 2^-24 is beyond the published absolute error."""
    near = functions.log2(
        device(log2=lambda x: torch.log2(x.double()).float() + torch.where((x - 1).abs() < 0.25, 2.0**-20, 0.0))
    )
    assert not near.observations[0].fits
    assert near.fields["log2_max_absolute"] > published.LOG2_ABSOLUTE


def test_a_division_by_a_rough_reciprocal_is_reported():
    rough = functions.division(device(divide=lambda x, y: x * (1.0 / y) * (1.0 + 2.0**-22)))
    assert not all(line.fits for line in rough.observations)
    by_reciprocal = functions.division(device(divide=lambda x, y: x * (1.0 / y)))
    assert 0.5 < by_reciprocal.fields["division_max_ulps"] < published.DIVISION_ULPS


def test_a_range_is_tried_as_a_whole_on_a_gpu_and_evenly_elsewhere():
    first, last = bits_of(1.0), bits_of(1.0) + 10_000
    whole = torch.cat(list(float32_patterns(first, last, 100, FakeDevice("gpu"))))
    assert torch.equal(whole.view(torch.int32), torch.arange(first, last + 1, dtype=torch.int32))
    sample = torch.cat(list(float32_patterns(first, last, 100, FakeDevice("interpreter"))))
    assert 99 <= sample.numel() <= 101
    negative = next(float32_patterns(bits_of(-0.0), bits_of(-0.0) + 1, 9, FakeDevice("gpu")))
    assert torch.signbit(negative).all()
    assert negative.tolist() == [0.0, -FP32.smallest_subnormal]


def test_statistics_of_parts_are_those_of_the_whole():
    errors = torch.linspace(-1.0, 2.0, 101, dtype=torch.float64)
    whole, parts = Errors(), Errors()
    whole.add(errors)
    for part in errors.split(40):
        other = Errors()
        other.add(part)
        parts.merge(other)
    assert (whole.largest, whole.count) == (parts.largest, parts.count) == (2.0, 101)
    assert parts.mean == pytest.approx(0.5, rel=1e-15)
    assert parts.rms == pytest.approx(whole.rms, rel=1e-15)
    assert math.isnan(Errors().mean)
