"""Products of pieces: what pieces leave out; emulated sums stay within their lemma, and without one product they do not."""

import math

import numpy as np
import pytest
import torch

from flashverify.numerics.axioms import wide_products
from flashverify.numerics.coefficients import Coefficients
from flashverify.numerics.dots import SplitProducts, TensorCore
from flashverify.numerics.formats import BF16, TF32
from tests.numerics.contracts import contract_of
from tests.numerics.simulator import SPLITS, Options, pieces_of, round_tf32, split_dot

KINDS = {"bf16x6": SplitProducts(TensorCore(16, 2), BF16, 3), "tf32x3": SplitProducts(TensorCore(8, 2), TF32, 2)}
UNIT = 2.0**-24


def floats(count, seed=0):
    """float32 numbers with random bits and exponents, and those whose pieces are at their largest."""
    random = np.random.default_rng(seed)
    mantissas = random.integers(2**23, 2**24, count).astype(np.float64)
    edges = [2**23 + 2**14 + i for i in range(-40, 41)] + [2**23 + 2**11 + i for i in range(-40, 41)]
    mantissas[: len(edges)] = edges
    signs = random.choice([-1.0, 1.0], count)
    return (signs * mantissas * np.exp2(random.integers(-20, 20, count))).astype(np.float32)


def kept(kind, x):
    bits, parts, _ = SPLITS[kind]
    pieces = pieces_of(x, bits, parts)
    if kind == "tf32x3":
        pieces[-1] = round_tf32((x - pieces[0]).astype(np.float32), truncate=True).astype(np.float64)
    return pieces


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_lose_no_more_than_is_said_and_some_number_loses_nearly_that(kind):
    x = floats(200_000)
    loss = abs(x.astype(np.float64) - sum(kept(kind, x))) / abs(x)
    assert loss.max() <= KINDS[kind].lost
    assert loss.max() > 0.9 * KINDS[kind].lost if KINDS[kind].lost else loss.max() == 0.0


def test_three_pieces_of_bfloat16_are_a_float32_and_two_are_not():
    assert KINDS["bf16x6"].lost == 0.0
    two = SplitProducts(TensorCore(16, 2), BF16, 2)
    x = floats(200_000)
    loss = abs(x.astype(np.float64) - sum(pieces_of(x, 8, 2))) / abs(x)
    assert 0.9 * 2.0**-17 < loss.max() <= two.lost < 2.0**-16


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_no_larger_than_is_said(kind):
    x = floats(200_000).astype(np.float64)
    bits, parts, _ = SPLITS[kind]
    sizes = [1.0, *(2.0 ** (1 - part * (bits + 1)) for part in range(1, parts))]
    for piece, size in zip(pieces_of(x, bits, parts), sizes, strict=True):
        assert (abs(piece) / abs(x)).max() <= size * (1.0 + 2.0**-bits)


def bound(kind, length):
    dot = KINDS[kind]
    return Coefficients(contract_of("fp32", Options(dot=kind))).plain_dot(length), dot


@pytest.mark.parametrize("signs", ["positive", "mixed"])
@pytest.mark.parametrize("length", [1, 5, 16, 50, 400])
@pytest.mark.parametrize("kind", KINDS)
def test_sums_of_products_of_pieces_stay_within_their_lemma(kind, length, signs):
    random = np.random.default_rng(length)
    a, b = (random.standard_normal(shape).astype(np.float32) for shape in ((30, length), (length, 30)))
    if signs == "positive":
        a, b = abs(a), abs(b)
    c = np.zeros((30, 30), np.float32)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    magnitudes = abs(a).astype(np.float64) @ abs(b).astype(np.float64)
    largest, _ = bound(kind, length)
    assert (abs(split_dot(a, b, c, kind) - exact) <= largest * magnitudes).all()
    walked = Coefficients(contract_of("fp32", Options(dot=kind))).walked_dot(torch.tensor(float(length), dtype=torch.float64))
    assert walked >= largest


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_product_is_beyond_the_lemma(kind):
    """Each product of second pieces, or of a first and a second one, is worth more than all that the lemma allows."""
    length = 8
    x = (1.0 + 0.4 * np.exp2(-KINDS[kind].pieces.precision) * np.linspace(1.0, 2.0, length)).astype(np.float32)
    a, b, c = x[None, :], x[:, None], np.zeros((1, 1), np.float32)
    exact = float(a.astype(np.float64)[0] @ b.astype(np.float64)[:, 0])
    largest, _ = bound(kind, length)
    assert abs(split_dot(a, b, c, kind)[0, 0] - exact) <= largest * exact
    missing = [(0, 1), (1, 0)] + ([(1, 1)] if kind == "bf16x6" else [])
    for pair in missing:
        assert abs(split_dot(a, b, c, kind, without=pair)[0, 0] - exact) > largest * exact, pair


def test_every_product_of_pieces_that_is_left_out_is_beyond_the_lemma_where_pieces_are_full():
    x = np.full(8, wide_products.FULL_PIECES[0], np.float32)
    a, b, c = x[None, :], x[:, None], np.zeros((1, 1), np.float32)
    exact = float(a.astype(np.float64)[0] @ b.astype(np.float64)[:, 0])
    largest, _ = bound("bf16x6", 8)
    assert abs(split_dot(a, b, c, "bf16x6")[0, 0] - exact) <= largest * exact
    for pair in ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0)):
        assert abs(split_dot(a, b, c, "bf16x6", without=pair)[0, 0] - exact) > largest * exact, pair


def test_the_lemma_is_near_float32s_own_for_the_usual_head_sizes():
    """So that a certificate in pieces says as much: for 64 products half of what 64 roundings in any order may do."""
    for kind in KINDS:
        largest, dot = bound(kind, 64)
        assert dot.omission <= 8.1 * UNIT
        assert largest < math.expm1(64 * UNIT)
