"""The host's Philox: the published known answers, and one generator in three forms."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashverify.dropout.philox import LOW, philox4x32, philox4x32_scalar, philox4x32_tensor

KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((LOW,) * 4, (LOW, LOW), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
"""Random123's file kat_vectors, philox4x32 with ten rounds: counter, key, words."""

words = st.integers(0, LOW)


def of_arrays(counter, key):
    return tuple(int(word[0]) for word in philox4x32(tuple(np.array([c], dtype=np.uint64) for c in counter), key))


def of_tensors(counter, key):
    return tuple(int(word) for word in philox4x32_tensor(tuple(torch.tensor(c) for c in counter), key))


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
@pytest.mark.parametrize("form", [philox4x32_scalar, of_arrays, of_tensors])
def test_the_published_answers(form, counter, key, answer):
    assert form(counter, key) == answer


@given(st.tuples(words, words, words, words), st.tuples(words, words))
def test_the_three_forms_agree(counter, key):
    expected = philox4x32_scalar(counter, key)
    assert of_arrays(counter, key) == expected
    assert of_tensors(counter, key) == expected


def test_words_broadcast_and_the_counter_is_left_as_it_was():
    rows, columns = np.arange(5, dtype=np.uint64)[:, None], np.arange(7, dtype=np.uint64)
    constant = np.array([9], dtype=np.uint64)
    counter = (columns, constant, rows, constant)
    before = [word.copy() for word in counter]
    found = philox4x32(counter, (1, 2))
    for word, kept in zip(counter, before, strict=True):
        assert (word == kept).all()
    for i in range(5):
        for j in range(7):
            expected = philox4x32_scalar((j, 9, i, 9), (1, 2))
            assert tuple(int(np.broadcast_to(word, (5, 7))[i, j]) for word in found) == expected
