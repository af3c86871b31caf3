"""Philox4x32-10, the host's own: written from the paper, for Python integers, numpy arrays and torch tensors.

One round takes the counter (c0, c1, c2, c3) and the key (k0, k1), words of 32 bits, to

    c0 <- high(M1·c2) ^ c1 ^ k0,   c1 <- low(M1·c2),   c2 <- high(M0·c0) ^ c3 ^ k1,   c3 <- low(M0·c0)

where high and low are the halves of a product of 64 bits; after each round the key grows by (W0, W1) modulo 2^32. Ten rounds.
Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11; the constants are those of its
section 4.3. Words are held in integers of 64 bits, and words of arrays broadcast: as long as a word depends on the row or on
the column of a matrix alone, so do its products.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Words: TypeAlias = npt.NDArray[np.uint64]
Key: TypeAlias = tuple[int, int]

ROUNDS = 10
WORD_BITS = 32
LOW = 2**WORD_BITS - 1
"""Selects the low word."""

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
"""What the key grows by: the golden ratio, and the square root of 3, less 1, as fractions of 2^32."""


def round_keys(key: Key) -> Iterator[Key]:
    """The key of each round."""
    for index in range(ROUNDS):
        yield (key[0] + index * WEYL[0]) & LOW, (key[1] + index * WEYL[1]) & LOW


def philox4x32_scalar(counter: tuple[int, int, int, int], key: Key) -> tuple[int, int, int, int]:
    """Four random words of a counter (scalar form); all are integers of 32 bits."""
    c0, c1, c2, c3 = counter
    for k0, k1 in round_keys(key):
        product0, product1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1 = (product1 >> WORD_BITS) ^ c1 ^ k0, product1 & LOW
        c2, c3 = (product0 >> WORD_BITS) ^ c3 ^ k1, product0 & LOW
    return c0, c1, c2, c3


def philox4x32(counter: tuple[Words, Words, Words, Words], key: Key) -> tuple[Words, Words, Words, Words]:
    """Four random words of each counter (vectorised form).

    Args:
        counter: four uint64 arrays of words below 2^32, of at least one dimension each, which broadcast.
        key: two words.

    Returns:
        Four uint64 arrays of words below 2^32; the broadcast shape, once both rows and columns have reached a word.
    """
    m0, m1, low, shift = (np.uint64(number) for number in (*MULTIPLIERS, LOW, WORD_BITS))
    c0, c1, c2, c3 = counter
    for k0, k1 in round_keys(key):
        product0, product1 = m0 * c0, m1 * c2
        c0, c2 = _mixed(product1 >> shift, c1, np.uint64(k0)), _mixed(product0 >> shift, c3, np.uint64(k1))
        c1, c3 = np.bitwise_and(product1, low, out=product1), np.bitwise_and(product0, low, out=product0)
    return c0, c1, c2, c3


def _mixed(high: Words, word: Words, key: np.uint64) -> Words:
    """The exclusive or of all three, in the memory of `high` where the result has its shape."""
    if high.shape != np.broadcast_shapes(high.shape, word.shape):
        return high ^ (word ^ key)
    high ^= word
    high ^= key
    return high


Tensors: TypeAlias = "tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]"


def philox4x32_tensor(counter: Tensors, key: Key) -> Tensors:
    """Four random words of each counter, on the device of the tensors (vectorised form).

    A product of 64 bits may be negative as an int64: its two's complement has the same bits, and the sign that a shift to the
    right brings in is cut off.

    Args:
        counter: four int64 tensors of words below 2^32, which broadcast; all on one device.
        key: two words.

    Returns:
        Four int64 tensors of words below 2^32.
    """
    c0, c1, c2, c3 = counter
    for k0, k1 in round_keys(key):
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c2 = ((product1 >> WORD_BITS) & LOW) ^ (c1 ^ k0), ((product0 >> WORD_BITS) & LOW) ^ (c3 ^ k1)
        c1, c3 = product1 & LOW, product0 & LOW
    return c0, c1, c2, c3
