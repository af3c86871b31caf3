"""The effective-rate check: kernels that rescale by the rate that their mask has, and by another."""

import pytest
import torch

from flashverify.checks.examination import Examination
from flashverify.checks.registry import all_checks
from flashverify.dropout.mask import stream_of
from flashverify.records.measurement import Verdict
from tests.checks import dropping
from tests.checks.dropping import Dropping, everywhere
from tests.checks.test_mask import CASE

LARGE = CASE.replace(mask="full", heads_kv=4, seqlen_q=128, seqlen_k=256)


def check(kernel, case=CASE):
    return all_checks()["effective_rate"](Examination(kernel, case))


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32", "fp64"])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"mask": "full"},
        {"sink": True},
        {"bias": "hidden"},
        {"window_left": 3},
        {"lengths": "ragged", "batch": 5},
        *({"dropout": rate} for rate in (0.0, 2.0**-32, 0.5, 0.999, 1.0)),
    ],
    ids=str,
)
def test_the_right_factor_passes(dtype, change):
    case = CASE.replace(dtype=dtype, **change)
    result = check(Dropping(), case)
    assert result.verdict is Verdict.PASS, result.reason
    rate = stream_of(case).effective_rate
    assert (result.rates.mask_low, result.rates.mask_high) == (rate, rate)
    assert rate == 1.0 or result.rates.assumed_low <= rate <= result.rates.assumed_high


def inverse(factor):
    return 1.0 / factor


FACTORS = {"missing": lambda r: 1.0, "1 - rate": inverse, "rate": lambda r: 1.0 - 1.0 / r, "8 bits": lambda r: 256 / 206}


@pytest.mark.parametrize("factor", FACTORS.values(), ids=FACTORS)
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32", "fp64"])
def test_another_factor_fails(dtype, factor):
    result = check(Dropping(factor=factor), LARGE.replace(dtype=dtype))
    assert result.verdict is Verdict.FAIL
    assert "assumes a rate" in result.reason or "no one factor" in result.reason


def test_a_mask_of_its_own_with_the_right_rate_passes():
    kernel = everywhere(dropping.constant_seed, predictable=False)
    result = check(kernel, LARGE)
    assert result.verdict is Verdict.PASS
    assert result.rates.mask_low < LARGE.dropout < result.rates.mask_high


def test_a_rate_in_eight_bits_fails_if_it_is_rescaled_as_asked_for():
    """FlashAttention's: 26 of 256 instead of 0.1, rescaled by 1 / 0.9."""
    case = LARGE.replace(dropout=0.1, dtype="fp16", batch=8, seqlen_q=384)
    kernel = everywhere(dropping.eight_bits, predictable=False)
    assert check(kernel, case).verdict is Verdict.FAIL
    assert check(everywhere(dropping.eight_bits, predictable=False, factor=lambda r: 256 / 230), case).verdict is Verdict.PASS


def test_where_weights_are_not_all_one_it_does_not_apply():
    assert check(Dropping(), CASE.replace(alibi="heads")) is None
    assert check(Dropping(), CASE.replace(dropout=None)) is None
    assert check(Dropping(), CASE.replace(seqlen_k=0)) is None
    beyond = CASE.replace(mask="full", seqlen_k=16 * 20)
    assert check(Dropping(predictable=False), beyond).reason == "not every pair's bit can be told"
    assert check(Dropping(), beyond).rates.mask_low == stream_of(beyond).effective_rate


def test_a_factor_in_the_format_of_p_is_that_of_another_rate():
    """1 / 0.9 in bfloat16 is 1.109375."""
    case = LARGE.replace(dtype="bf16", dropout=0.1)
    assert check(Dropping(factor=lambda r: float(torch.tensor(r, dtype=torch.bfloat16))), case).verdict is Verdict.FAIL
    assert check(Dropping(), case).verdict is Verdict.PASS
