"""The definition of the dropout mask: one in three forms, at every carry and threshold; and what a stream accepts."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashverify.cases.case import AttentionCase
from flashverify.dropout import mask
from flashverify.dropout.mask import Stream, keep, keep_scalar, keep_tensor, stream_of
from flashverify.dropout.philox import philox4x32_scalar

ALL = 2**32

seeds = st.integers(-(2**63), 2**64 - 1)
near_a_carry = st.builds(lambda carry, back: 4 * (carry * ALL - back), st.integers(1, 2**30), st.integers(1, 8))
offsets = st.one_of(st.just(0), near_a_carry, st.integers(0, 2**62 - 1).map(lambda blocks: 4 * blocks))
rates = st.one_of(st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0**-33, 2.0**-32, 1 - 2.0**-32, 1 - 2.0**-34]), st.floats(0.0, 1.0))
streams = st.builds(Stream, seeds, offsets, rates)


@given(
    streams,
    st.tuples(st.integers(1, 9), st.integers(0, 2**20), st.data()),
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4),
    st.one_of(st.lists(st.integers(0, 2**31), min_size=1, max_size=8), st.just(list(range(40)))),
)
@settings(deadline=None)
def test_the_three_forms_agree(which, place, rows, columns):
    heads_q, batch, data = place
    head = data.draw(st.integers(0, heads_q - 1))
    scalar = [[keep_scalar(which, heads_q, batch, head, i, j) for j in columns] for i in rows]
    assert keep(which, heads_q, batch, head, np.array(rows), np.array(columns)).tolist() == scalar
    of_rows = (torch.tensor([batch]), torch.tensor([head]), torch.tensor(rows)[:, None])
    assert keep_tensor(which, heads_q, *of_rows, torch.tensor(columns)).tolist() == scalar


@pytest.mark.parametrize("offset", [0, 4 * (ALL - 3), 2**64 - 4])
def test_blocks_leave_no_seam(monkeypatch, offset):
    """Whatever the blocks are, and wherever the low word overflows, the mask is the same."""
    which = Stream(seed=77, offset=offset, rate=0.3)
    rows, columns = np.arange(23), np.arange(70)
    whole = keep(which, 2, 1, 1, rows, columns)
    monkeypatch.setattr(mask, "BLOCK", 5)
    assert (keep(which, 2, 1, 1, rows, columns) == whole).all()
    assert whole.tolist() == [[keep_scalar(which, 2, 1, 1, i, j) for j in columns.tolist()] for i in rows.tolist()]


def test_the_words_are_those_of_the_decision_record():
    """docs/adr/0016, spelled out: nothing here is taken from the module but the generator."""
    seed, offset, heads_q, batch, head = 0x0123456789ABCDEF, 4 * (5 * ALL - 1), 6, 3, 4
    for i, j, row, column, place in (
        (0, 0, 0, 0, 0), (7, 3, 7, 3, 0), (8, 3, 0, 3, 1), (15, 9, 7, 1, 3), (16, 15, 8, 7, 2), (31, 16, 15, 8, 1),
        (2**31, 2**31 + 8, 2**30, 2**30, 2), (2**32 - 1, 40, 2**31 - 1, 16, 3),
    ):  # fmt: skip
        c = offset // 4 + column
        counter = (c % ALL, c // ALL, row, batch * heads_q + head)
        word = philox4x32_scalar(counter, (seed % ALL, seed // ALL))[place]
        for threshold in (word, word + 1):  # dropped iff the word is below
            which = Stream(seed, offset, threshold / ALL)
            assert keep_scalar(which, heads_q, batch, head, i, j) is (threshold == word)


def test_a_mask_of_four_dimensions():
    which = Stream(1, 0, 0.5)
    found = keep_tensor(
        which,
        3,
        torch.arange(2)[:, None, None, None],
        torch.arange(3)[:, None, None],
        torch.arange(5)[:, None],
        torch.arange(9),
    )
    assert found.shape == (2, 3, 5, 9)
    for b in range(2):
        for h in range(3):
            assert (found[b, h].numpy() == keep(which, 3, b, h, np.arange(5), np.arange(9))).all()


def test_no_rows_or_no_columns():
    which, none, some = Stream(1, 0, 0.5), np.arange(0), np.arange(3)
    assert keep(which, 1, 0, 0, none, some).shape == (0, 3)
    assert keep(which, 1, 0, 0, some, none).shape == (3, 0)
    zero = torch.zeros(1, dtype=torch.int64)
    assert keep_tensor(which, 1, zero, zero, torch.arange(3)[:, None], torch.arange(0)).shape == (3, 0)


@given(st.floats(0.0, 1.0))
def test_the_threshold_is_the_nearest(rate):
    which = Stream(0, 0, rate)
    assert abs(which.threshold - Fraction(rate) * ALL) <= Fraction(1, 2)
    assert Fraction(which.effective_rate) == Fraction(which.threshold, ALL)


def test_ties_go_to_even():
    assert [Stream(0, 0, halves / 2 / ALL).threshold for halves in (1, 3, 5)] == [0, 2, 2]


def test_nothing_and_everything():
    rows = columns = np.arange(64)
    assert keep(Stream(3, 0, 0.0), 1, 0, 0, rows, columns).all()
    assert not keep(Stream(3, 0, 1.0), 1, 0, 0, rows, columns).any()
    assert (Stream(3, 0, 0.0).rescale, Stream(3, 0, 0.5).rescale, Stream(3, 0, 1.0).rescale) == (1.0, 2.0, 0.0)


@given(seeds, offsets, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
@settings(deadline=None)
def test_a_mask_is_contained_in_that_of_a_larger_rate(seed, offset, one, other):
    few, many = (keep(Stream(seed, offset, rate), 1, 0, 0, np.arange(9), np.arange(9)) for rate in sorted((one, other)))
    assert (few | ~many).all()


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"seed": 2**64}, ValueError, "seed: got 18446744073709551616"),
        ({"seed": 1.0}, TypeError, "seed: got 1.0, accepted are integers"),
        ({"offset": 2}, ValueError, "offset: got 2, accepted are multiples of 4"),
        ({"offset": -4}, ValueError, "offset: got -4"),
        ({"offset": 2**64}, ValueError, "offset: got 18446744073709551616"),
        ({"rate": 1.5}, ValueError, "rate: got 1.5, accepted are numbers from 0 to 1"),
        ({"rate": float("nan")}, ValueError, "rate: got nan"),
        ({"rate": True}, TypeError, "rate: got True"),
    ],
)
def test_a_bad_stream_is_refused(fields, error, words):
    with pytest.raises(error, match=words):
        Stream(**({"seed": 0, "offset": 0, "rate": 0.1} | fields))


def test_a_negative_seed_is_its_bit_pattern():
    assert Stream(-1, 0, 0.1) == Stream(2**64 - 1, 0, 0.1)
    assert Stream(-1, 0, 0.1).key == (ALL - 1, ALL - 1)


@pytest.mark.parametrize(
    ("batch", "head", "words"), [(0, 2, "head: got 2"), (-1, 0, "batch: got -1"), (2**31, 1, "batch: got")]
)
def test_a_head_or_entry_out_of_range_is_refused(batch, head, words):
    with pytest.raises(ValueError, match=words):
        keep_scalar(Stream(0, 0, 0.1), 2, batch, head, 0, 0)


def test_streams_of_seeds_are_stable_and_reach_every_kind_of_offset():
    case = AttentionCase(dtype="fp16", seqlen_q=4, seqlen_k=4, head_dim=16, dropout=0.25)
    drawn = [stream_of(case.replace(seed=seed)) for seed in range(400)]
    assert drawn[0] == stream_of(case.replace(seqlen_k=9, dtype="fp64"))
    assert stream_of(case.replace(dropout=None)) is None
    assert {which.rate for which in drawn} == {0.25}
    assert len({which.seed for which in drawn}) == len(drawn)
    carries = [which for which in drawn if (which.offset // 4 + 16) // ALL > which.offset // 4 // ALL]
    assert len(drawn) // 3 < len(carries) < 2 * len(drawn) // 3
    assert any(which.offset < 2**20 for which in drawn)
    assert any(which.offset > 2**61 for which in drawn)
    assert all(which.offset < 2**63 for which in drawn)
