"""Predicted moments of single operations against many of them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from flashverify.numerics.contract import LOG2E
from flashverify.numerics.formats import BF16, FORMATS, FP16, FP32
from flashverify.numerics.moments import INVERSE_SIGNIFICAND, INVERSE_SIGNIFICAND_SQUARED, ROUNDING, UNIFORM, Moments
from tests.numerics.simulated import HONEST, sharp_contract_of
from tests.numerics.simulator import cast, tensor_core

RANDOM = np.random.default_rng(7)
SIGNIFICANDS = 2.0 ** RANDOM.random(200_000)

TENSOR_CORE = Moments(sharp_contract_of("fp16", HONEST["fp16"]))
ANY_ORDER = Moments(sharp_contract_of("fp32", HONEST["fp32"]))


def test_moments_of_a_log_uniform_significand() -> None:
    assert np.mean(1 / SIGNIFICANDS) == pytest.approx(INVERSE_SIGNIFICAND, rel=5e-3)
    assert np.mean(SIGNIFICANDS**-2) == pytest.approx(INVERSE_SIGNIFICAND_SQUARED, rel=5e-3)
    relative = (cast(SIGNIFICANDS, "bf16") - SIGNIFICANDS) / SIGNIFICANDS
    assert np.mean(relative**2) == pytest.approx(ROUNDING * BF16.unit_roundoff**2, rel=1e-2)


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_a_cast_has_the_variance_of_its_spacing_down_to_what_vanishes(name: str) -> None:
    moments, target = Moments(sharp_contract_of(name, HONEST[name])), FORMATS[name]
    for size in (1.0, target.smallest_normal, 8.0 * target.smallest_subnormal):
        values = np.float32(size) * SIGNIFICANDS.astype(np.float32)
        error = cast(values, name).astype(np.float64) - values
        predicted = moments.cast(target, torch.from_numpy(values.astype(np.float64)))
        assert np.mean(error**2) == pytest.approx(float(predicted.mean()), rel=2e-2)
        assert not moments.vanishing(target, torch.from_numpy(values)).any()


def test_what_is_below_half_a_spacing_vanishes() -> None:
    """Then the error is the value itself, toward 0: no variance says that."""
    spacing = FP16.smallest_subnormal
    values = torch.tensor([0.49 * spacing, 0.51 * spacing, 0.0], dtype=torch.float64)
    assert TENSOR_CORE.vanishing(FP16, values).tolist() == [True, False, True]
    assert TENSOR_CORE.vanishing(FP16, values, 4.0).tolist() == [False, False, True]
    assert (values.half() == 0).tolist() == [True, False, True]
    assert not ANY_ORDER.vanishing(None, values).any()
    assert not ANY_ORDER.vanishing(FP32, values).any()


def products(length: int, sign: str, dtype: str, size: int = 24) -> tuple[np.ndarray, np.ndarray]:
    a, b = RANDOM.standard_normal((size, length)), RANDOM.standard_normal((length, size))
    if sign == "positive":
        a, b = np.abs(a), np.abs(b)
    return cast(a, dtype), cast(b, dtype)


def moments_of(a: np.ndarray, b: np.ndarray, moments: Moments) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exact value, predicted deviation, predicted bias."""
    exact = (a.astype(np.longdouble) @ b.astype(np.longdouble)).astype(np.float64)
    value, length = torch.from_numpy(exact), float(a.shape[1])
    variance = moments.dot(torch.from_numpy((a**2) @ (b**2)), value, length)
    return exact, variance.sqrt().numpy(), moments.dot_bias(value.abs(), length).numpy()


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("length", [16, 64, 256, 1024, 4096])
def test_truncated_chains_err_as_predicted(length: int, dtype: str) -> None:
    """Every step shrinks the partial sum, so errors follow the walk of partial sums: they were once taken for independent.

    A chain of 256 steps then erred 3.5 times as much as predicted (64 features of S hide it, 65,536 keys of P·V do not).
    """
    a, b = products(length, "normal", dtype)
    exact, deviation, bias = moments_of(a, b, TENSOR_CORE)
    error = tensor_core(a, b, np.zeros(exact.shape, np.float32), 16).astype(np.float64) - exact
    shrinkage = np.sum(error * exact) / np.sum(exact**2)  # what is proportional to the result, dot_bias counts
    scatter = math.sqrt(np.mean((error - shrinkage * exact) ** 2))
    predicted = math.sqrt(np.mean(deviation**2))
    assert scatter <= predicted * 1.1
    assert scatter >= predicted / 4.0
    assert shrinkage <= 0.0
    assert np.abs(shrinkage * exact).mean() <= bias.mean()


@pytest.mark.parametrize("length", [16, 128, 1024])
def test_truncation_shrinks_sums_of_one_sign_by_no_more_than_predicted(length: int) -> None:
    a, b = products(length, "positive", "fp16")
    exact, deviation, bias = moments_of(a, b, TENSOR_CORE)
    error = tensor_core(a, b, np.zeros(exact.shape, np.float32), 16).astype(np.float64) - exact
    assert -bias.mean() <= error.mean() < 0.0
    assert (np.abs(error) <= bias + 6.0 * deviation).all()


@pytest.mark.parametrize("sign", ["normal", "positive"])
@pytest.mark.parametrize("length", [1, 2, 5, 64, 1024])
def test_chains_in_float32_err_as_predicted(length: int, sign: str) -> None:
    a, b = products(length, sign, "fp32", 64)
    exact, deviation, bias = moments_of(a, b, ANY_ORDER)
    total = np.zeros(exact.shape, np.float32)
    for term in range(length):
        product = a[:, term, None].astype(np.float32) * b[None, term].astype(np.float32)
        total = total + product
    z = (total.astype(np.float64) - exact) / deviation
    assert (bias == 0.0).all()
    assert math.sqrt(np.mean(z**2)) <= 1.1
    assert math.sqrt(np.mean(z**2)) >= 0.5
    assert np.abs(z).max() <= 7.0


@pytest.mark.parametrize("moments", [TENSOR_CORE, ANY_ORDER])
def test_an_empty_dot_product_is_exact(moments: Moments) -> None:
    nothing = torch.zeros(3, 1, dtype=torch.float64)
    assert (moments.dot(nothing, nothing, nothing) == 0.0).all()
    assert (moments.dot_bias(nothing, nothing) == 0.0).all()


def test_the_exponential_takes_measured_moments_or_its_largest_error() -> None:
    contract = ANY_ORDER.contract
    unit = FP32.unit_roundoff
    relative = 0.7 / SIGNIFICANDS * 2.0 * unit  # 0.7 ulp of results whose significands are log-uniform
    known = Moments(dataclasses.replace(contract, exp2_rms_ulps=0.7, exp2_mean_ulps=-0.7))
    assert known.exponential == pytest.approx(np.mean(relative**2), rel=1e-2)
    assert known.exponential_mean == pytest.approx(np.mean(relative), rel=1e-2)
    unknown = Moments(dataclasses.replace(contract, exp2_rms_ulps=None, exp2_mean_ulps=None))
    assert unknown.exponential > known.exponential
    assert unknown.exponential_mean > known.exponential_mean


def test_a_division_to_nearest_is_one_rounding() -> None:
    assert Moments(dataclasses.replace(ANY_ORDER.contract, division_ulps=0.5)).division == pytest.approx(ANY_ORDER.rounding)
    assert pytest.approx(np.var(RANDOM.random(100_000)), rel=1e-2) == UNIFORM


def test_the_constant_of_the_conversion_is_off_by_its_own_rounding() -> None:
    assert ANY_ORDER.conversion == pytest.approx(abs(float(np.float32(LOG2E)) / LOG2E - 1.0))
    assert 0.0 < ANY_ORDER.conversion <= ANY_ORDER.unit
