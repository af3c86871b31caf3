"""The sharp budget of an element, and the size of its error."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from flashverify.numerics.formats import BF16, FP16, FP32, TORCH_DTYPES, Format
from flashverify.numerics.spread import Spread, factor


def spread(bias: float, deviation: float, shape: tuple[int, ...] = ()) -> Spread:
    return Spread(torch.full(shape, bias, dtype=torch.float64), torch.full(shape, deviation, dtype=torch.float64))


@pytest.mark.parametrize("stored", [FP16, BF16])
@pytest.mark.parametrize("truth", [1.0, 1.0 - 2.0**-12, 2.0**-14, 3 * 2.0**-24, 0.0, -2.0])
def test_rounding_what_is_within_reach_stays_allowed(truth: float, stored: Format) -> None:
    """Also across a binade, where the spacing doubles on the way, and among subnormal numbers."""
    random = np.random.default_rng(1)
    for size in (0.0, 2.0**-26, 2.0**-13, 2.0**-7, 0.3):
        allowed = float(spread(size, 0.0).allowed(torch.tensor(truth, dtype=torch.float64), stored, 5.0))
        before = torch.from_numpy(truth + size * np.append(random.uniform(-1.0, 1.0, 4000), [-1.0, 1.0]))
        after = before.to(TORCH_DTYPES[stored.name]).double()
        assert float((after - truth).abs().max()) <= allowed
        assert allowed <= size + 0.5 * float(stored.ulp(torch.tensor(abs(truth) + size, dtype=torch.float64)))


def test_deviations_count_lambda_times_and_biases_once() -> None:
    truth = torch.tensor(1.0, dtype=torch.float64)
    assert float(spread(0.0, 2.0**-6).allowed(truth, FP32, 3.0)) == pytest.approx(3 * 2.0**-6, rel=1e-5)
    assert float(spread(2.0**-6, 0.0).allowed(truth, FP32, 3.0)) == pytest.approx(2.0**-6, rel=1e-5)


@pytest.mark.parametrize("size", [math.inf, math.nan])
def test_what_the_model_gives_no_number_for_has_an_infinite_budget(size: float) -> None:
    truth = torch.tensor(1.0, dtype=torch.float64)
    assert math.isinf(float(spread(size, 0.0).allowed(truth, BF16, 5.0)))
    assert math.isinf(float(spread(0.0, size).allowed(truth, BF16, 5.0)))


@pytest.mark.parametrize("truth", [math.inf, -math.inf, math.nan])
def test_a_truth_that_is_no_number_leaves_the_budget_one(truth: float) -> None:
    allowed = float(spread(0.0, 1.0).allowed(torch.tensor(truth, dtype=torch.float64), BF16, 5.0))
    assert allowed == pytest.approx(5.0, rel=1e-2)


def test_the_size_of_an_error_has_the_final_rounding() -> None:
    truth = torch.tensor([1.0, 1.5, 2.0**-30], dtype=torch.float64)
    assert spread(0.0, 0.0, (3,)).size(truth, FP16).tolist() == pytest.approx(
        [2.0**-10 / math.sqrt(12.0), 2.0**-10 / math.sqrt(12.0), 2.0**-24 / math.sqrt(12.0)]
    )
    assert float(spread(9.0, 3.0, (3,)).size(truth, FP16)[0]) == pytest.approx(3.0)  # a bias is no size


@pytest.mark.parametrize(("elements", "rate"), [(1, 0.5), (10_000, 1e-3), (10**8, 1e-11)])
def test_lambda_is_hoeffdings(elements: int, rate: float) -> None:
    assert elements * 2.0 * math.exp(-(factor(elements, rate) ** 2) / 2.0) == pytest.approx(rate)
    assert factor(0, rate) == factor(1, rate)


@pytest.mark.parametrize("rate", [0.0, 1.0, -1.0, math.nan])
def test_rates_that_are_none(rate: float) -> None:
    with pytest.raises(ValueError, match="rate: got"):
        factor(10, rate)


def test_sums_of_uniform_errors_stay_within_lambda() -> None:
    """A uniform error is strictly sub-Gaussian: its tail is below a Gaussian's of the same variance."""
    random = np.random.default_rng(2)
    for terms in (1, 2, 30):
        sums = random.uniform(-0.5, 0.5, (200_000, terms)).sum(1) / math.sqrt(terms / 12.0)
        for level in (1.0, 2.0, 3.0):
            assert np.mean(np.abs(sums) > level) <= 2.0 * math.exp(-(level**2) / 2.0)
