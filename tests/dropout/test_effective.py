"""The effective rate: the factor that rows show, the rates that a mask may have, and kernels that rescale by another."""

import math

import pytest
import scipy.stats
import torch

from flashverify.checks.rates import CERTIFICATE_RATE
from flashverify.dropout.effective import EffectiveRate, Interval, confidence, known, rescaling
from flashverify.dropout.mask import Stream

ROUNDOFF = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24}
ROWS, KEYS, RATE = 2048, 1024, 0.1


def rows(rate, factor, dtype=torch.float16):
    """How many pairs rows keep, and what they give with v = 1, rounded once."""
    counts = scipy.stats.binom(KEYS, 1.0 - rate).rvs(ROWS, random_state=0)
    kept = torch.from_numpy(counts)
    pairs = torch.full_like(kept, KEYS)
    return kept, pairs, (factor * kept.double() / pairs).to(dtype)


def effective(rate, factor, dtype=torch.float16):
    kept, pairs, out = rows(rate, factor, dtype)
    mask = confidence(int((pairs - kept).sum()), int(pairs.sum()), CERTIFICATE_RATE)
    return EffectiveRate(mask, rescaling(out, kept, pairs, 1.0, ROUNDOFF[dtype]))


@pytest.mark.parametrize("dtype", ROUNDOFF)
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_the_right_factor_agrees(dtype, rate):
    found = effective(rate, 1.0 / (1.0 - rate), dtype)
    assert found.agrees, found.describe()
    assert found.rescale.low <= 1.0 / (1.0 - rate) <= found.rescale.high


def test_a_rate_in_eight_bits_that_is_rescaled_as_asked_for_does_not():
    """FlashAttention keeps 230 of 256 at a rate of 0.1, and rescales by 1 / 0.9."""
    found = effective(26 / 256, 1.0 / 0.9)
    assert not found.agrees
    assert "assumes a rate from 0.1" in found.describe() or "assumes a rate from 0.09" in found.describe()
    assert effective(26 / 256, 256 / 230).agrees


@pytest.mark.parametrize("factor", [1.0, 1.0 / RATE, 1.0 - RATE, 0.0, -1.0])
def test_other_factors_do_not(factor):
    assert not effective(RATE, factor).agrees


def test_rows_with_different_factors_have_none_in_common():
    kept, pairs, out = rows(RATE, 1.0 / 0.9)
    out[5] *= 1.01
    found = EffectiveRate(known(RATE), rescaling(out, kept, pairs, 1.0, ROUNDOFF[torch.float16]))
    assert found.rescale.is_empty
    assert found.assumed.is_empty
    assert not found.agrees
    assert found.describe() == "no one factor explains every row"


def test_a_known_rate_is_one_number():
    rate = Stream(0, 0, RATE).effective_rate
    kept, pairs, out = rows(rate, Stream(0, 0, RATE).rescale, torch.float32)
    found = EffectiveRate(known(rate), rescaling(out, kept, pairs, 1.0, ROUNDOFF[torch.float32]))
    assert found.agrees
    assert found.rescale.high - found.rescale.low < 2.0**-23


def test_each_row_may_have_its_own_error():
    kept, pairs, out = rows(RATE, 1.0 / 0.9)
    out[5] *= 1.01
    errors = torch.full(kept.shape, ROUNDOFF[torch.float16], dtype=torch.float64)
    errors[5] = 0.02
    assert not rescaling(out, kept, pairs, 1.0, errors).is_empty


def test_nan_explains_nothing():
    kept, pairs, out = rows(RATE, 1.0 / 0.9)
    out[7] = math.nan
    assert rescaling(out, kept, pairs, 1.0, ROUNDOFF[torch.float16]).is_empty


def test_rows_that_keep_nothing_say_nothing():
    kept, pairs, out = rows(RATE, 1.0 / 0.9)
    assert rescaling(0 * out, 0 * kept, pairs, 1.0, 0.5) == Interval(-math.inf, math.inf)
    assert rescaling(out[:0], kept[:0], pairs[:0], 1.0, 0.5) == Interval(-math.inf, math.inf)


@pytest.mark.parametrize("rate", [0.02, 0.5])
def test_the_interval_misses_the_rate_as_seldom_as_promised(rate):
    """Exactly, by the probability of every count that misses it."""
    pairs, allowed = 200, 0.05
    counts = scipy.stats.binom(pairs, rate)
    missed = 0.0
    for dropped in range(pairs + 1):
        interval = confidence(dropped, pairs, allowed)
        if not interval.low <= rate <= interval.high:
            missed += counts.pmf(dropped)
    assert 0.0 < missed <= allowed


def test_nothing_or_everything_dropped():
    assert confidence(0, 100, 0.05).low == 0.0
    assert confidence(100, 100, 0.05).high == 1.0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: confidence(3, 2, 0.1), "dropped: got 3 of 2"),
        (lambda: confidence(0, 0, 0.1), "dropped: got 0 of 0"),
        (lambda: confidence(1, 2, 0.0), "false_alarms: got 0.0"),
        (lambda: known(1.5), "rate: got 1.5"),
        (lambda: rescaling(torch.ones(1), torch.ones(1), torch.ones(1), 0.0, 0.1), "value: got 0.0"),
        (lambda: rescaling(torch.ones(1), torch.ones(1), torch.ones(1), 1.0, 1.0), "error: got 1.0"),
    ],
)
def test_what_says_nothing_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
