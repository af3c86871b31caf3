"""The emulator against sums done by hand, and the search: every planted model is found, and told from all others."""

import pytest
import torch

from flashverify.numerics.axioms.arithmetic import BlockModel
from flashverify.numerics.axioms.products import Shape, drawn
from flashverify.numerics.axioms.tensor_core import MODELS, Probe, Treatment, emulate, search
from flashverify.numerics.formats import BF16, FP16, TF32
from tests.numerics.axioms.fakes import FakeDevice


def one(products, accumulator, model, operand=FP16, treatment=None):
    """One element: pairs of operands, and the value that they are added to."""
    left = torch.tensor([[[a for a, _ in products]]], dtype=torch.float64)
    right = torch.tensor([[[b] for _, b in products]], dtype=torch.float64)
    start = None if accumulator is None else torch.tensor([[[accumulator]]], dtype=torch.float32)
    return emulate(left, right, start, model, operand, treatment).item()


BIT = 2.0**-23


@pytest.mark.parametrize(
    ("extra", "rounding", "expected"),
    [
        (0, "truncate", 1.0),  # three quarter bits, each truncated away
        (1, "truncate", 1.0),
        (2, "truncate", 1.0),  # 1 + 0.75 bit: the sum is truncated
        (2, "nearest", 1.0 + BIT),
        (3, "nearest", 1.0 + BIT),
        (1, "nearest", 1.0),
    ],
)
def test_terms_are_truncated_below_the_extra_bits_and_the_sum_is_rounded(extra, rounding, expected):
    quarter = (2.0**-12, 2.0**-13)
    assert one([quarter] * 3, 1.0, BlockModel(4, extra, rounding)) == expected


def test_four_quarter_bits_make_one_only_if_they_are_summed_before_they_are_rounded():
    quarter = (2.0**-12, 2.0**-13)
    assert one([quarter] * 4, 1.0, BlockModel(4, 2)) == 1.0 + BIT
    assert one([quarter] * 4, 1.0, BlockModel(4, 1)) == 1.0
    assert one([quarter] * 8, 1.0, BlockModel(8, 2)) == 1.0 + 2 * BIT
    assert one([quarter] * 3 + [(0.0, 1.0)] + [quarter], 1.0, BlockModel(4, 2)) == 1.0  # the block ends after three


def test_magnitudes_are_truncated_whatever_the_sign():
    half_of_a_quarter = (-(2.0**-13), 2.0**-13)
    assert one([half_of_a_quarter] * 4, 1.0, BlockModel(4, 2)) == 1.0
    assert one([half_of_a_quarter] * 4, 1.0, BlockModel(4, 3)) == 1.0 - BIT / 2


def test_a_product_counts_with_the_sum_of_its_operands_exponents():
    """1.5·1.5 = 2.25 is aligned as if it were below 2."""
    tiny = (2.0**-12, 2.0**-13)
    assert one([(1.5, 1.5), tiny, tiny, tiny], 0.0, BlockModel(4, 2, "nearest")) == 2.25
    assert one([(2.0, 1.125), *[tiny] * 3], 0.0, BlockModel(4, 2, "nearest")) == 2.25
    assert one([(1.5, 1.5), *[tiny] * 7], 0.0, BlockModel(8, 2)) == 2.25
    assert one([(1.5, 1.5), *[tiny] * 8], 0.0, BlockModel(16, 2)) == 2.25 + 2 * BIT
    assert one([(2.0, 1.125), *[tiny] * 8], 0.0, BlockModel(16, 2)) == 2.25


def test_a_separate_step_is_added_to_the_accumulator_to_nearest():
    small = (2.0**-12, 2.0**-12)  # half a bit of 1
    assert one([small, small], 1.0 + BIT, BlockModel(4, 0, "truncate", "separate")) == 1.0 + 2 * BIT
    assert one([small], 1.0 + BIT, BlockModel(4, 0, "truncate", "separate")) == 1.0 + 2 * BIT  # a tie, to even
    assert one([small], 1.0 + BIT, BlockModel(4, 0)) == 1.0 + BIT


def test_zeros_and_subnormal_operands():
    model = BlockModel(4, 0)
    assert one([(0.0, 2.0**15), (1.0, 1.0)], BIT, model) == 1.0 + BIT
    assert one([(0.0, 2.0**15), (1.0, 1.0)], BIT, model, treatment=Treatment(zeros_align=True)) == 1.0
    subnormal = (2.0**-24, 1.0)
    below = 2.0**-24 * BIT
    assert one([subnormal], below, model) == 2.0**-24  # aligned as if it were 2^-14
    assert one([subnormal], below, model, treatment=Treatment(subnormals="normalised")) == 2.0**-24 + below
    assert one([subnormal], below, model, treatment=Treatment(subnormals="flushed")) == below


SMALL = (Shape(16, 8, 64, 4), Shape(8, 8, 16, 1))


def probes(model, operand, groups=1):
    device = FakeDevice(cores={operand.name: model})
    return [probe for shape in SMALL for probe in drawn(device, operand, shape, groups)]


@pytest.mark.parametrize("model", MODELS, ids=BlockModel.describe)
def test_every_planted_model_is_found_and_no_other_fits(model):
    found = search(probes(model, FP16), FP16)
    assert found.fitting == (model,)
    assert found.nearest is not None
    assert found.nearest_wrong > 0


@pytest.mark.parametrize("operand", [BF16, TF32], ids=lambda operand: operand.name)
@pytest.mark.parametrize("model", [BlockModel(16, 2), BlockModel(8, 1), BlockModel(4, 0), BlockModel(8, 2, "nearest")])
def test_models_are_found_in_every_format(model, operand):
    assert search(probes(model, operand, groups=4), operand).fitting == (model,)


def test_correctly_rounded_products_fit_no_model():
    (first, *others) = probes(BlockModel(16, 2), FP16)
    start = 0.0 if first.accumulator is None else first.accumulator.double()
    rounded = (first.left @ first.right + start).float()
    found = search([Probe(first.left, first.right, first.accumulator, rounded), *others], FP16)
    assert found.fitting == ()


def test_one_wrong_result_of_the_last_probe_is_enough():
    given = probes(BlockModel(16, 2), FP16)
    last = given[-1]
    off = last.result.clone()
    off[0, 0, 0] = torch.nextafter(off[0, 0, 0], torch.tensor(torch.inf))
    found = search([*given[:-1], Probe(last.left, last.right, last.accumulator, off)], FP16)
    assert found.fitting == ()
    assert (found.nearest, found.nearest_wrong) == (BlockModel(16, 2), 1)
