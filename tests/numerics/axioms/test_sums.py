"""The tree behind a sum is read off it, whatever the tree is; and contraction is told from two roundings."""

import random

import pytest

from flashverify.numerics.axioms import sums
from flashverify.numerics.axioms.rounding import fused_multiply_add
from flashverify.numerics.axioms.sums import add_up, depth, is_sequential, reveal, shown
from tests.numerics.axioms.fakes import FakeDevice


def summing(operation):
    device = FakeDevice()
    device.row_sums = operation
    return device


def sequential(x):
    total = x[:, 0]
    for column in range(1, x.shape[1]):
        total = total + x[:, column]
    return total


def random_tree(terms, generator):
    if len(terms) == 1:
        return terms[0]
    generator.shuffle(terms)
    cut = generator.randrange(1, len(terms))
    return random_tree(terms[:cut], generator), random_tree(terms[cut:], generator)


def normal(tree):
    """The same tree with the smaller first term first: addition commutes."""
    if isinstance(tree, int):
        return tree, tree
    (left, first), (right, second) = normal(tree[0]), normal(tree[1])
    return ((left, right), first) if first < second else ((right, left), second)


@pytest.mark.parametrize("seed", range(5))
def test_any_tree_is_revealed(seed):
    tree = random_tree(list(range(16)), random.Random(seed))
    found = reveal(summing(lambda x: add_up(tree, x)), 16)
    assert normal(found) == normal(tree)


def test_halves_are_a_tree_and_a_running_sum_is_sequential():
    halves = sums.row_sum(FakeDevice())
    assert halves.fields == {"sum_order": "tree"}
    assert halves.observations[0].value == "tree, depth 5"
    running = sums.row_sum(summing(sequential))
    assert running.fields == {"sum_order": "sequential"}
    assert running.observations[1].value == "sequential, depth 127"
    assert all(line.fits for line in (*halves.observations, *running.observations))


def test_depth_and_words():
    chain = (((0, 1), 2), 3)
    assert (depth(chain), is_sequential(chain)) == (3, True)
    assert not is_sequential(((0, 1), (2, 3)))
    assert not is_sequential((((1, 0), 2), 3))
    assert shown(((0, 2), (1, 3)), levels=1) == "(0, 2) + (1, 3)"
    assert shown((((0, 2), 4), ((1, 3), 5)), levels=1) == "(0..4 by 2) + (1..5 by 2)"


def test_a_sum_that_is_no_tree_is_in_any_order_if_it_is_as_good():
    found = sums.row_sum(summing(lambda x: x.double().sum(1).float()))
    assert found.fields == {"sum_order": "unknown: any order"}
    assert all(line.fits for line in found.observations)


def test_a_sum_in_half_precision_is_reported():
    found = sums.row_sum(summing(lambda x: x.half().float().sum(1)))
    assert found.fields == {"sum_order": "unknown: any order"}
    assert not any(line.fits for line in found.observations)
    assert "no tree of additions fits" in found.observations[0].text


def test_contraction_is_told_from_two_roundings():
    found = sums.contraction(FakeDevice())
    assert found.fields == {"fuses": True}
    assert [line.value for line in found.observations] == [sums.ONCE, sums.ONCE, sums.TWICE]
    assert all(line.fits for line in found.observations)
    never = FakeDevice()
    never.multiply_add = lambda a, b, c, contraction: (a * b + c, a * b - c)
    found = sums.contraction(never)
    assert found.fields == {"fuses": False}
    assert all(line.fits for line in found.observations)


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(lambda a, b, c, contraction: (a * b + c, fused_multiply_add(a, b, -c)), id="fused by half"),
        pytest.param(lambda a, b, c, contraction: ((a.half() * b.half()).float() + c, a * b - c), id="in half precision"),
        pytest.param(
            lambda a, b, c, contraction: (fused_multiply_add(a, b, c), fused_multiply_add(a, b, -c)),
            id="fused though it is forbidden",
        ),
    ],
)
def test_a_contraction_that_is_neither_or_not_to_be_had_is_reported(broken):
    device = FakeDevice()
    device.multiply_add = broken
    assert not all(line.fits for line in sums.contraction(device).observations)
