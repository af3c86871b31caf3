"""The statistics check: masks of a kernel's own generator, over seeds and calls."""

import dataclasses

import pytest

from flashverify.checks.examination import Examination
from flashverify.checks.registry import all_checks
from flashverify.dropout.mask import Stream, words_used
from flashverify.records.measurement import Verdict
from tests.checks import dropping
from tests.checks.dropping import Dropping, everywhere, indices, of
from tests.checks.test_mask import CASE

LARGE = CASE.replace(mask="full", heads_kv=4, seqlen_q=192, seqlen_k=256, head_dim=64, dropout=0.1)


def check(kernel, case=LARGE):
    return all_checks()["statistics"](Examination(kernel, case))


class Generator(Dropping):
    """Has a generator that goes on from call to call."""

    def __init__(self, advances=True, mask=dropping.predicted):
        self._calls, self._advances, self._mask = 0, advances, mask
        super().__init__(forward=self._drawn, predictable=False)

    def _drawn(self, case):
        if not self._calls:
            return self._mask(case)
        words = words_used(case.seqlen_k) * self._calls
        return of(case, lambda stream: dataclasses.replace(stream, offset=stream.offset + words), *indices(case))

    def run(self, case, inputs):
        self._calls = 0
        return super().run(case, inputs)

    def run_again(self, case, inputs):
        self._calls += self._advances
        return super().run(case, inputs) if self._calls == 0 else Dropping.run(self, case, inputs)


def test_independent_bits_of_the_right_rate_pass():
    result = check(Generator())
    assert result.verdict is Verdict.PASS, result.reason
    assert [one.question for one in result.statistics] == ["rate", "independence"]
    for one in result.statistics:
        assert one.bits == 4 * 2 * 4 * 192 * 256
        assert one.tests > 1
        assert one.p >= one.allowed > 0.0


def constant_stream(case):
    """Whatever the case's seed: it shows between the two seeds of the check."""
    return of(case, lambda stream: Stream(0x1BF58, 0x1D4B49 * 4, stream.rate), *indices(case))


@pytest.mark.parametrize("mask", [dropping.no_heads, dropping.no_entries, constant_stream, dropping.tiles_of_rows])
def test_bits_that_depend_on_each_other_fail(mask):
    result = check(Generator(mask=mask))
    assert result.verdict is Verdict.FAIL
    assert "independence" in result.reason


def test_a_generator_that_does_not_advance_fails():
    result = check(Generator(advances=False))
    assert result.verdict is Verdict.FAIL
    assert "independence, calls, round" in result.reason


def test_a_rate_that_is_off_fails():
    case = LARGE.replace(batch=8)
    result = check(everywhere(dropping.eight_bits, predictable=False), case)
    assert result.verdict is Verdict.FAIL
    assert result.reason.startswith("rate, ")


def test_where_it_says_nothing():
    assert check(Dropping(), LARGE) is None
    assert check(Generator(), LARGE.replace(dropout=None)) is None
    assert "too few bits" in check(Generator(), LARGE.replace(seqlen_q=8)).reason
    assert check(Generator(), LARGE.replace(mask="causal", seqlen_q=256)).reason == "not every pair's bit can be told"
