"""The sign bit as a dropout bit: every pattern of the 16-bit formats, drawn ones of the wider, and what values lose."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashverify.dropout.signbit import INTEGERS, decode, encode, is_probability, lost_by_value

HALVES = (torch.float16, torch.bfloat16)


def every_pattern(dtype):
    """All 65,536 numbers of a 16-bit format, by pattern: those without a sign first."""
    return torch.cat([torch.arange(2**15), torch.arange(-(2**15), 0)]).to(torch.int16).view(dtype)


def pattern_of_one(dtype):
    return int(torch.ones((), dtype=dtype).view(INTEGERS[dtype]))


def same_bits(one, other):
    return torch.equal(one.view(INTEGERS[one.dtype]), other.view(INTEGERS[other.dtype]))


def probabilities():
    """A number of any format whose pattern lies from that of +0 to that of 1, as its dtype and integer."""
    return st.sampled_from(list(INTEGERS)).flatmap(
        lambda dtype: st.tuples(st.just(dtype), st.integers(0, pattern_of_one(dtype)))
    )


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kept", [True, False])
def test_every_pattern_without_a_sign_goes_there_and_back(dtype, kept):
    """Probabilities, and beyond them numbers above 1, infinity and every NaN: bit for bit."""
    values = every_pattern(dtype)[: 2**15]
    signed = encode(values, torch.tensor(kept))
    assert bool((torch.signbit(signed) != kept).all())
    probability, keep = decode(signed)
    assert same_bits(probability, values)
    assert bool((keep == kept).all())


@pytest.mark.parametrize("dtype", HALVES)
def test_every_pattern_goes_back_and_there(dtype):
    signed = every_pattern(dtype)
    assert same_bits(encode(*decode(signed)), signed)


@pytest.mark.parametrize(("dtype", "count"), [(torch.float16, 15361), (torch.bfloat16, 16257)])
def test_which_patterns_are_probabilities(dtype, count):
    values = every_pattern(dtype)
    found = is_probability(values)
    wide = values.double()
    assert torch.equal(found, (wide >= 0) & (wide <= 1) & ~torch.signbit(values))
    assert int(found.sum()) == count
    assert torch.equal(decode(encode(values[found], torch.tensor(False)))[0], values[found])


@given(probabilities(), st.booleans())
def test_a_probability_of_any_format_goes_there_and_back(number, kept):
    dtype, pattern = number
    value = torch.tensor([pattern], dtype=INTEGERS[dtype]).view(dtype)
    assert bool(is_probability(value))
    probability, keep = decode(encode(value, torch.tensor([kept])))
    assert same_bits(probability, value)
    assert keep.tolist() == [kept]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_what_underflows_keeps_its_bit(dtype):
    """Cast after encoding, -tiny becomes -0.0; decoded by value it would count as kept, which is the defect to be counted."""
    tiny = torch.full((3, 4), torch.finfo(torch.float64).tiny, dtype=torch.float64)
    keep = torch.tensor([True, False, False, True])
    signed = (encode(tiny, keep) / 2**60).to(dtype)
    assert signed.count_nonzero() == 0
    assert torch.equal(decode(signed)[1], keep.expand(3, 4))
    assert lost_by_value(signed) == 6
    assert lost_by_value(encode(torch.full((3, 4), 0.25, dtype=dtype), keep)) == 0


@pytest.mark.parametrize("dtype", INTEGERS)
def test_a_kept_nan_is_lost_by_value(dtype):
    nan = torch.full((5,), torch.nan, dtype=dtype)
    keep = torch.tensor([True, True, False, True, False])
    nan = decode(nan)[0]
    assert torch.equal(decode(encode(nan, keep))[1], keep)
    assert lost_by_value(encode(nan, keep)) == 3


def test_strides_do_not_matter():
    values = torch.rand(6, 4, 8, dtype=torch.float64).half().transpose(0, 2)[::2]
    keep = torch.rand(values.shape) < 0.5
    probability, back = decode(encode(values, keep))
    assert torch.equal(probability, values)
    assert torch.equal(back, keep)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_a_sign_that_is_there_already_is_refused(dtype):
    with pytest.raises(ValueError, match="probability: got numbers with a sign"):
        encode(torch.tensor([0.5, -0.0], dtype=dtype), torch.tensor(True))


def test_other_dtypes_are_refused():
    with pytest.raises(TypeError, match=r"keep: got torch.int64, accepted is torch.bool"):
        encode(torch.zeros(1), torch.ones(1, dtype=torch.int64))
    for function in (decode, lost_by_value, is_probability):
        with pytest.raises(TypeError, match=r"got torch.int32, accepted are torch.float16, torch.bfloat16, torch.float32"):
            function(torch.zeros(1, dtype=torch.int32))
