"""Statistics of masks: exact p-values, no false alarms with a good generator, and an alarm at each planted defect."""

import math

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch

from flashverify.checks.rates import CERTIFICATE_CASES, CERTIFICATE_RATE
from flashverify.dropout.mask import Stream, keep_tensor, words_used
from flashverify.dropout.samples import matchings, samples
from flashverify.dropout.statistics import concordance, describe, examine, independence, rates, repeated_tiles, two_sided

FALSE_ALARMS = CERTIFICATE_RATE / CERTIFICATE_CASES
SHAPE = (2, 2, 4, 256, 512)
RATE = 0.1


def good(seed=0, shape=SHAPE, rate=RATE):
    return torch.from_numpy(np.random.default_rng(seed).random(shape) >= rate)


def alarms(masks, rate=RATE):
    found = examine(masks, rate, FALSE_ALARMS)
    return {test.question for test in found if test.alarm}, describe(found)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.97])
def test_a_good_generator_raises_no_alarm(rate):
    assert alarms(good(rate=rate), rate) == (set(), "")


@pytest.mark.parametrize(("advance", "found"), [(1, set()), (0.5, {"independence"})])
def test_the_hosts_own_generator_raises_no_alarm_unless_calls_share_words(advance, found):
    calls = []
    for offset in (0, int(advance * words_used(SHAPE[4]))):
        entries, heads, rows, columns = (torch.arange(size) for size in SHAPE[1:])
        which = Stream(5, offset, RATE)
        calls.append(keep_tensor(which, 4, entries[:, None, None, None], heads[:, None, None], rows[:, None], columns))
    assert alarms(torch.stack(calls))[0] == found


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_nothing_and_everything_can_be_told(rate):
    assert alarms(good(rate=rate), rate) == (set(), "")
    one = good(rate=rate)
    one[0, 1, 2, 3, 4] ^= True
    assert alarms(one, rate)[0] == {"rate"}


def test_false_alarms_are_as_rare_as_promised():
    """With a rate of false alarms of 1 in 5, of 60 families: no more than a binomial distribution explains."""
    families, allowed = 60, 0.2
    found = 0
    for seed in range(families):
        masks = good(seed, (2, 2, 2, 40, 48), 0.25)
        for tests in (list(rates(masks, 0.25)), [*independence(masks), *repeated_tiles(masks, 0.25)]):
            found += any(test.p < allowed / 2 / len(tests) for test in tests)
    assert 0 < found < scipy.stats.binom(2 * families, allowed / 2).isf(CERTIFICATE_RATE)


def test_agreements_have_probability_one_half_whatever_the_rates_are():
    """Even if x and y have different ones: a rate that is off is no alarm of dependence."""
    x, y = good(1, (2**20,), 0.3), good(2, (2**20,), 0.8)
    agreements, quadruples = concordance(x, y)
    expected = 2**19 * (2 * 0.3 * 0.7) * (2 * 0.8 * 0.2)
    assert abs(quadruples - expected) < 8 * math.sqrt(expected)
    assert two_sided(np.array(agreements), quadruples, 0.5) > FALSE_ALARMS


def tail(trials, events, probability):
    """P(X >= events), by its terms: each one a rational multiple of that before."""
    p = mpmath.mpf(probability)
    log = mpmath.log(mpmath.binomial(trials, events)) + events * mpmath.log(p) + (trials - events) * mpmath.log(1 - p)
    term, total, k = mpmath.exp(log), mpmath.mpf(0), events
    while term > total * mpmath.eps:
        total += term
        term *= (trials - k) * p / ((k + 1) * (1 - p))
        k += 1
    return total


@pytest.mark.parametrize("trials", [10**6, 10**8])
@pytest.mark.parametrize("deviations", [-13, -7, 6, 12])
def test_p_values_are_right_far_out(trials, deviations):
    """Against sums in 30 digits, down to p-values of 1e-38."""
    events = round(trials * RATE + deviations * math.sqrt(trials * RATE * (1 - RATE)))
    with mpmath.workdps(30):
        rate = mpmath.mpf(RATE)
        exact = 2 * (tail(trials, events, rate) if deviations > 0 else tail(trials, trials - events, 1 - rate))
        assert abs(mpmath.log(float(two_sided(np.array(events), trials, RATE)) / exact)) < 2.0**-20


def test_no_bit_occurs_twice_in_a_sample():
    for shape in ((3, 2, 3, 20, 37), (2, 4, 1, 33, 16), (1, 1, 1, 9, 9)):
        numbered = torch.arange(math.prod(shape)).reshape(shape)
        names = []
        for sample in samples(numbered):
            assert sample.x.shape == sample.y.shape, sample.name
            both = torch.cat([sample.x.reshape(-1), sample.y.reshape(-1)])
            assert both.unique().numel() == both.numel(), sample.name
            names.append(sample.name)
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("size", range(9))
def test_over_the_rounds_every_two_indices_meet_once(size):
    rounds = list(matchings(size))
    assert all(len({i for pair in pairs for i in pair}) == 2 * len(pairs) for pairs in rounds)
    met = [frozenset(pair) for pairs in rounds for pair in pairs]
    assert len(set(met)) == len(met) == size * (size - 1) // 2


def eight_bits(masks):
    """FlashAttention's threshold: kept iff a byte is at most floor(0.9·255), for 0.8984 instead of 0.9."""
    drawn = np.random.default_rng(3).integers(0, 256, masks.shape)
    masks.copy_(torch.from_numpy(drawn <= math.floor((1 - RATE) * 255)))


def no_heads(masks):
    masks.copy_(masks[:, :, :1].expand(masks.shape))


def two_heads(masks):
    masks[:, :, 2] = masks[:, :, 1]


def groups(masks):
    masks[:, :, 1::2] = masks[:, :, ::2]


def no_entries(masks):
    masks.copy_(masks[:, :1].expand(masks.shape))


def entry_plus_head(masks):
    masks[:, 1, :-1] = masks[:, 0, 1:]


def same_call(masks):
    masks[1] = masks[0]


def too_small_an_advance(masks):
    masks[1, ..., :-4] = masks[0, ..., 4:]


def one_word_for_four_keys(masks):
    masks.copy_(masks[..., ::4].repeat_interleave(4, -1))


def half_a_row_twice(masks):
    masks[..., 256:] = masks[..., :256]


def one_row_for_all(masks):
    masks.copy_(masks[..., :1, :].expand(masks.shape))


def rows_that_overlap(masks):
    """The row is added to the counter instead of having a word of its own: each row begins four keys later."""
    for i in range(1, masks.shape[-2]):
        masks[..., i, :-4] = masks[..., i - 1, 4:]


def tile_counter(masks):
    """Words are counted within tiles of 64 x 64, each of which begins anew."""
    masks.copy_(masks[..., :64, :64].repeat(1, 1, 1, 4, 8))


def one_tile_twice(masks):
    masks[1, 0, 3, 128:192, 320:384] = masks[0, 1, 2, 192:256, 64:128]


def transposed_call(masks):
    masks[1, ..., :256, :256] = masks[0, ..., :256, :256].transpose(-2, -1).clone()


def symmetric(masks):
    square = masks[..., :256, :256]
    square.copy_(torch.where(torch.ones(256, 256, dtype=torch.bool).tril(), square, square.transpose(-2, -1).clone()))


def last_keys_kept(masks):
    masks[..., 504:] = True


DEPENDENT = (
    *(no_heads, two_heads, groups, no_entries, entry_plus_head, same_call, too_small_an_advance, one_word_for_four_keys),
    *(half_a_row_twice, one_row_for_all, rows_that_overlap, tile_counter, one_tile_twice, transposed_call, symmetric),
)


@pytest.mark.parametrize("defect", DEPENDENT, ids=lambda defect: defect.__name__)
def test_bits_that_depend_on_each_other_are_caught(defect):
    masks = good()
    defect(masks)
    assert "independence" in alarms(masks)[0]


@pytest.mark.parametrize("defect", [eight_bits, last_keys_kept], ids=lambda defect: defect.__name__)
def test_a_rate_that_is_off_is_caught_as_that(defect):
    masks = good()
    defect(masks)
    questions, words = alarms(masks)
    assert questions == {"rate"}
    assert "expected" in words


@pytest.mark.parametrize(
    ("masks", "rate", "error", "words"),
    [
        (torch.ones(1, 1, 9, 9), 0.1, TypeError, "masks: got torch.float32, accepted is torch.bool"),
        (torch.ones(9, 9, dtype=torch.bool), 0.1, ValueError, "masks: got 2 dimensions"),
        (torch.ones(1, 1, 9, 9, dtype=torch.bool), 0.1, ValueError, "masks: got 81 bits, accepted are at least 1000000"),
        (torch.ones(1, 1, 9, 9, dtype=torch.bool), 2.0, ValueError, "rate: got 2.0"),
    ],
)
def test_what_says_nothing_is_refused(masks, rate, error, words):
    with pytest.raises(error, match=words):
        examine(masks, rate, FALSE_ALARMS)
