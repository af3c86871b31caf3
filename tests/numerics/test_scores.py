"""Row statistics against scipy's, and the false-alarm arithmetic of a certificate."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from flashverify.checks.rates import CERTIFICATE_CASES, CERTIFICATE_RATE, SHARE, TESTS_OF_A_CASE
from flashverify.numerics.formats import BF16, FP16
from flashverify.numerics.scores import Clustered, by_row, quantile, residual
from flashverify.numerics.spread import factor


def test_t_is_that_of_the_rows_means() -> None:
    values = torch.from_numpy(np.random.default_rng(1).normal(0.1, 1.0, (100, 64)))
    found = Clustered.of(values, torch.ones_like(values, dtype=torch.bool))
    expected = stats.ttest_1samp(values.mean(1).numpy(), 0.0)
    assert found.t == pytest.approx(expected.statistic)
    assert found.rows == 100


def test_elements_that_are_not_present_do_not_count() -> None:
    values = torch.tensor([[1.0, math.nan], [3.0, 5.0], [math.nan, math.nan]], dtype=torch.float64)
    found = Clustered.of(values, ~values.isnan())
    assert found.mean == pytest.approx((1.0 + 4.0) / 2.0)
    assert found.rows == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_no_number_makes_the_statistics_none(bad: float) -> None:
    values = torch.ones(70, 64, dtype=torch.float64)
    values[3, 4] = bad
    found = Clustered.of(values, torch.ones_like(values, dtype=torch.bool))
    assert not math.isfinite(found.mean)
    assert not abs(found.t) <= 1e300


def test_no_rows_and_one_row_have_no_t() -> None:
    nothing = torch.zeros(0, 4, dtype=torch.float64)
    assert math.isnan(Clustered.of(nothing, nothing.bool()).t)
    one = torch.ones(1, 4, dtype=torch.float64)
    assert math.isnan(Clustered.of(one, one.bool()).t)


def test_rows_without_scatter_are_0_or_infinitely_far() -> None:
    rows = torch.zeros(5, 4, dtype=torch.float64)
    assert Clustered.of(rows, rows == 0.0).t == 0.0
    assert Clustered.of(rows - 1.0, rows == 0.0).t == -math.inf


@pytest.mark.parametrize("rows", [64, 128, 4096])
@pytest.mark.parametrize("rate", [0.05, 1e-3, SHARE])
def test_a_quantile_is_exceeded_at_its_rate(rows: int, rate: float) -> None:
    assert 2.0 * stats.t.sf(quantile(rows, rate), rows - 1) == pytest.approx(rate, rel=1e-6)


def test_a_certificate_has_one_false_alarm_in_a_million() -> None:
    """Bonferroni: all tests of all cases together, whatever their dependence."""
    of_scores = 3 * 2.0 * stats.t.sf(quantile(256, SHARE), 255)  # rms, t, t_sign
    elements = 4 * 4096 * 128
    of_elements = elements * 2.0 * math.exp(-(factor(elements, SHARE) ** 2) / 2.0)
    a_tensor = of_scores + of_elements
    tensors = 5 + 4  # out, lse and three gradients; all but lse once more before the final rounding
    assert 4 * tensors <= TESTS_OF_A_CASE
    assert CERTIFICATE_CASES * tensors * a_tensor <= CERTIFICATE_RATE


def test_t_of_faultless_scores_stays_below_the_quantile() -> None:
    """Row means of uniform errors, which are not Gaussian: as many excesses as the rate says, at a rate that can be seen."""
    random = np.random.default_rng(5)
    rows, draws, rate = 64, 2000, 1e-2
    excesses = 0
    for _ in range(draws):
        values = torch.from_numpy(random.uniform(-1.0, 1.0, (rows, 16)))
        excesses += abs(Clustered.of(values, torch.ones_like(values, dtype=torch.bool)).t) > quantile(rows, rate)
    assert stats.binomtest(excesses, draws, rate, alternative="greater").pvalue > 1e-4


def test_rows_are_heads_and_queries() -> None:
    assert by_row(torch.zeros(2, 3, 5, 7)).shape == (30, 7)
    assert by_row(torch.zeros(2, 3, 5)).shape == (30, 1)


@pytest.mark.parametrize("stored", [FP16, BF16])
def test_a_residual_is_the_rounding_error_in_spacings(stored) -> None:
    truth = torch.from_numpy(np.random.default_rng(3).normal(size=1000))
    rounded = truth.to({FP16: torch.float16, BF16: torch.bfloat16}[stored]).double()
    assert torch.allclose(residual(truth, stored), (rounded - truth) / stored.ulp(truth), atol=1e-9)
    assert (residual(rounded, stored) == 0.0).all()
