"""Casts and special values: what a device does is named, and a cast that does not round to nearest even is reported."""

import pytest
import torch

from flashverify.numerics.axioms import casts
from flashverify.numerics.axioms.rounding import round_to
from flashverify.numerics.formats import BF16, FP16, FP32
from tests.numerics.axioms.fakes import FakeDevice

FORMATS = {torch.float16: FP16, torch.bfloat16: BF16}


class Sampled(FakeDevice):
    """A device that is no interpreter, of which every 16,381st pattern is tried."""


@pytest.fixture(autouse=True)
def sampled(monkeypatch):
    monkeypatch.setattr("flashverify.numerics.axioms.finding.is_complete", lambda device: False)


def lines(found):
    return {line.name: line for line in found.observations}


def test_casts_to_nearest_even():
    found = casts.casts(FakeDevice())
    assert found.fields == {"casts_round_to_nearest": {"fp16": True, "bf16": True}}
    assert all(line.fits for line in found.observations)
    assert lines(found)["cast to fp16"].value == "nearest even"
    assert lines(found)["cast to fp16, sign of results that are 0"].value == "kept"


@pytest.mark.parametrize("mode", ["truncated", "nearest away"])
def test_another_rounding_is_reported_with_what_was_tried(mode):
    device = FakeDevice()
    device.cast = lambda x, dtype: round_to(x.double(), FORMATS[dtype], mode).to(dtype)
    found = casts.casts(device)
    line = lines(found)["cast to bf16"]
    assert not line.fits
    assert not found.fields["casts_round_to_nearest"]["bf16"]
    if mode == "truncated":  # ties are too rare in a sample to tell the two roundings to nearest apart
        assert line.value == "truncated, or nearly"
        assert "nearest even: 0." in line.text


def test_the_interpreters_truncation_of_bfloat16_is_known():
    device = FakeDevice("interpreter")
    device.cast = lambda x, dtype: (
        round_to(x.double(), FORMATS[dtype], "truncated").to(dtype) if dtype == torch.bfloat16 else x.to(dtype)
    )
    found = casts.casts(device)
    assert found.fields == {"casts_round_to_nearest": {"fp16": True, "bf16": False}}
    assert all(line.fits for line in found.observations)


def test_what_becomes_of_nan_and_of_the_sign_of_zero():
    def positive_nan(x, dtype):
        return torch.where(x.isnan(), torch.full_like(x, torch.nan).abs(), x).to(dtype)

    device = FakeDevice()
    device.cast = positive_nan
    assert lines(casts.casts(device))["cast to fp16, NaN"].value == "stays NaN, sign lost"
    device.cast = lambda x, dtype: x.nan_to_num(0.0).to(dtype)
    gone = lines(casts.casts(device))["cast to fp16, NaN"]
    assert (gone.value, gone.fits) == ("does not always stay NaN, sign kept", False)
    device.cast = lambda x, dtype: x.to(dtype) + torch.zeros((), dtype=dtype)
    assert lines(casts.casts(device))["cast to fp16, sign of results that are 0"].value.startswith("lost")


def test_a_nan_that_is_not_chosen_must_not_leak():
    assert all(line.fits for line in casts.special_values(FakeDevice()).observations)
    leaking = FakeDevice()
    leaking.select = lambda x, y: (x <= y).float() * x + (x > y).float() * y
    assert not all(line.fits for line in casts.special_values(leaking).observations)
    assert FP32.name == "fp32"
