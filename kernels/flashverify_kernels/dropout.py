"""Dropout: which pairs of a query and a key are dropped, a pure function of the generator's state and of absolute places.

Philox4x32-10 (Salmon et al., SC'11), its key the seed. The pair of query i and key j, of head h of batch entry b, takes

    word 2·(j div 8 mod 2) + (i div 8 mod 2) of the counter (c mod 2^32, c div 2^32, I, b·Hq + h)
    I = (i div 16)·8 + i mod 8,   J = (j div 16)·8 + j mod 8,   c = offset / 4 + J

and is dropped iff that is below t = round(p·2^32). No tile is in it: forward and backward passes, tiles of any size and devices
of any kind drop the same pairs. Queries i and i + 8 with keys j and j + 8 share a call of Philox, since tensor cores put those
into one thread, with keys in columns as with keys in rows (docs/adr/0016).

A softmax probability is never negative, so that its sign bit is free. `marked` puts the mask there: one tile is both.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from flashverify_kernels.launch import INTERPRETED, scale_bits

SIGNED_TILE: tl.constexpr = tl.constexpr(1)  # how a backward kernel keeps the mask: in the sign bits of P
SEPARATE_MASK: tl.constexpr = tl.constexpr(2)  # or in a tile of its own
PTX: tl.constexpr = tl.constexpr(not INTERPRETED and torch.version.hip is None)
ROUNDS: tl.constexpr = tl.constexpr(10)
MULTIPLIER_0: tl.constexpr = tl.constexpr(0xD2511F53)  # of Philox4x32, and what its keys grow by, as Random123 publishes them
MULTIPLIER_2: tl.constexpr = tl.constexpr(0xCD9E8D57)
KEY_STEP_0: tl.constexpr = tl.constexpr(0x9E3779B9)
KEY_STEP_1: tl.constexpr = tl.constexpr(0xBB67AE85)
WORDS = 2**32
"""Values of a random word."""


@dataclass(frozen=True)
class Dropout:
    """What kernels need to know of dropout.

    Attributes:
        state: int64 (2,), contiguous, on the tensors' device: bits of the generator's seed and offset, which counts words by
            fours.
        threshold: words below it drop their pair, from 1 to 2^32.
        separate: whether backward kernels keep the mask in a tile of its own, not in the sign bits of P; for measurements.
    """

    state: torch.Tensor
    threshold: int
    separate: bool = False

    @property
    def rescale(self) -> float:
        """What kept probabilities are multiplied by: one over the share of words that keep their pair, 0 if none does."""
        return WORDS / (WORDS - self.threshold) if self.threshold < WORDS else 0.0


def threshold_of(rate: float) -> int:
    """The threshold of a drop rate from 0 to 1: round(rate·2^32), which float64 holds exactly before it is rounded."""
    return round(rate * WORDS)


def dropout_of(rate: float, state: torch.Tensor | None) -> Dropout | None:
    """Dropout at a rate from 0 to 1, or None: no word drops a pair, or there is no state."""
    threshold = threshold_of(rate)
    return None if state is None or threshold == 0 else Dropout(state.contiguous(), threshold)


def words_used(keys: int) -> int:
    """How far a call with so many keys advances the generator's offset: the words of its longest row of counters."""
    return (keys + 15) // 16 * 32


def dropout_arguments(dropout: Dropout | None) -> tuple[torch.Tensor | int | None, ...]:
    """What kernels take of it: state, largest word that drops a pair, bits of the rescaling factor, how masks are kept."""
    if dropout is None:
        return None, None, None, 0
    largest = dropout.threshold - 1
    as_int32 = largest - WORDS if largest >= WORDS // 2 else largest
    kind = SEPARATE_MASK.value if dropout.separate else SIGNED_TILE.value
    return dropout.state, as_int32, scale_bits(dropout.rescale), kind


@triton.jit
def unpack_dropout(state_ptr, rescale_bits, ACCUMULATOR: tl.constexpr):
    """The seed, the offset's first call of Philox, and the rescaling factor."""
    rescale = tl.cast(rescale_bits, tl.int64).to(tl.float64, bitcast=True)
    seed = tl.load(state_ptr).to(tl.uint64, bitcast=True)
    offset = tl.load(state_ptr + 1).to(tl.uint64, bitcast=True)
    return seed, offset // 4, rescale.to(ACCUMULATOR)


@triton.jit
def wide_product(a, b):
    """The upper and the lower half of a 32-bit product, by one instruction: compilers tend to split it into two slower ones."""
    return tl.inline_asm_elementwise(
        "{ .reg .b64 product; mul.wide.u32 product, $2, $3; mov.b64 {$1, $0}, product; }",
        "=r,=r,r,r",
        [a, b],
        dtype=(tl.uint32, tl.uint32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def philox(seed, c0, c1, c2, c3):
    """Four random words of each counter; counters that are a row and a column of a tile stay so for two rounds' products."""
    if PTX:
        k0 = seed.to(tl.uint32)
        k1 = (seed >> 32).to(tl.uint32)
        for _ in tl.static_range(ROUNDS):
            upper0, lower0 = wide_product(c0, MULTIPLIER_0)
            upper2, lower2 = wide_product(c2, MULTIPLIER_2)
            c0 = upper2 ^ c1 ^ k0
            c1 = lower2
            c2 = upper0 ^ c3 ^ k1
            c3 = lower0
            k0 += KEY_STEP_0
            k1 += KEY_STEP_1
        return c0, c1, c2, c3
    else:
        return tl.philox(seed, c0, c1, c2, c3, ROUNDS)  # Triton's own, which is as it is meant but for those products


@triton.jit
def dropped_pairs(
    seed,
    first_call,
    head,
    first_query,
    first_key,
    largest_dropped,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    KEYS_FIRST: tl.constexpr,
):
    """Whether each pair of a tile of queries and keys is dropped.

    Args:
        seed: of the generator.
        first_call: that of the offset.
        head: b·Hq + h.
        first_query: the tile's first query, a multiple of 16.
        first_key: its first key, a multiple of 16.
        largest_dropped: the largest word that drops its pair, as bits of an int32.
        QUERIES: how many queries the tile has, a multiple of 16.
        KEYS: how many keys, a multiple of 16.
        KEYS_FIRST: whether keys are its rows.

    Returns:
        bool (QUERIES, KEYS), or its transpose.
    """
    calls = first_call + (first_key // 2 + tl.arange(0, KEYS // 2)).to(tl.uint64)
    low = calls.to(tl.uint32)
    high = (calls >> 32).to(tl.uint32)
    rows = (first_query // 2 + tl.arange(0, QUERIES // 2)).to(tl.uint32)
    largest = tl.cast(largest_dropped, tl.int32).to(tl.uint32, bitcast=True)
    # join appends an axis: words (.., key's half, query's half), which then move to the eights that they are of.
    if KEYS_FIRST:
        w0, w1, w2, w3 = philox(seed, low[:, None], high[:, None], rows[None, :], head.to(tl.uint32))
        words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (KEYS // 16, 8, QUERIES // 16, 8, 2, 2))
        return tl.reshape(tl.trans(words, (0, 4, 1, 2, 5, 3)), (KEYS, QUERIES)) <= largest
    else:
        w0, w1, w2, w3 = philox(seed, low[None, :], high[None, :], rows[:, None], head.to(tl.uint32))
        words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (QUERIES // 16, 8, KEYS // 16, 8, 2, 2))
        return tl.reshape(tl.trans(words, (0, 5, 1, 2, 4, 3)), (QUERIES, KEYS)) <= largest


@triton.jit
def has_sign(p):
    """Whether the sign bit of each is set, of zeros too."""
    if p.dtype == tl.float64:
        return p.to(tl.int64, bitcast=True) < 0
    else:
        return p.to(tl.int32, bitcast=True) < 0


@triton.jit
def marked(p, dropped, DROPOUT: tl.constexpr):
    """P with the sign bit set where a pair is dropped, or as it is where the mask is kept beside it."""
    if DROPOUT == SEPARATE_MASK:
        return p
    else:
        return tl.where(dropped, p * -1.0, p)  # 0·-1 is -0, while Triton's -p is 0 - p


@triton.jit
def kept(p, dropped, DROPOUT: tl.constexpr):
    """What `marked` returned, with 0 where a pair is dropped; not yet rescaled."""
    if DROPOUT == SEPARATE_MASK:
        return tl.where(dropped, 0.0, p)
    else:
        return tl.maximum(p, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def score_gradient(p, dropped, dp, delta, rescale, DROPOUT: tl.constexpr):
    """P·(dP·rescale - delta), dP being 0 where a pair is dropped; p is what `marked` returned."""
    if DROPOUT == SEPARATE_MASK:
        return p * tl.fma(tl.where(dropped, 0.0, dp), rescale, -delta)
    else:
        return tl.abs(p) * tl.fma(tl.where(has_sign(p), 0.0, dp), rescale, -delta)
