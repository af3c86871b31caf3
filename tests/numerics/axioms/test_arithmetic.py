"""What a contract takes from a device that was measured: its constants, and never what the kernel states of its own."""

import dataclasses
import pickle

import pytest
import torch

from flashverify.adapters.contracts import flash_attention
from flashverify.numerics import published
from flashverify.numerics.axioms.arithmetic import Arithmetic, BlockModel, Observation
from flashverify.numerics.dots import AnyOrder, SplitProducts, TensorCore
from flashverify.numerics.formats import BF16, TF32

MEASURED = Arithmetic(
    device="a GPU",
    lane="gpu",
    tensor_cores={"fp16": BlockModel(32, 3), "bf16": BlockModel(8, 1), "tf32": BlockModel(4, 0, "nearest")},
    fp32_dot="fma-chain",
    exp2_max_ulps=2.0625,
    log2_max_ulps=0.75,
    log2_max_absolute=2.0**-23,
    division_max_ulps=1.25,
    exhaustive=("exp2", "log2"),
)


def contract(dtype, **stated):
    return flash_attention(dtype, torch.device("cpu"), block_q=None, block_k=64, **stated)


@pytest.mark.parametrize(("dtype", "core"), [("fp16", TensorCore(32, 3)), ("bf16", TensorCore(8, 1))])
def test_the_tensor_core_of_the_operands_format_is_taken(dtype, core):
    assert MEASURED.refine(contract(dtype, dot=TensorCore(16, 2))).dot == core


def test_steps_that_are_added_afterwards_are_covered():
    """Their three roundings a step need the bound of one extra bit: 1 + 2, not 0.5 + 2."""
    separate = BlockModel(16, 2, "truncate", "separate")
    assert separate.bound == TensorCore(16, 1)
    assert separate.bound.kappa(16) >= 16 * TensorCore(16, 2).truncation + 3.0
    assert BlockModel(16, 0, "nearest", "separate").bound == TensorCore(16, 0)
    assert BlockModel(16, 3).bound == TensorCore(16, 3)


def test_tf32_operands_take_the_core_of_tf32_and_their_truncation():
    stated = contract("fp32", dot=TensorCore(8, 2), operand=TF32)
    assert MEASURED.refine(stated).dot == TensorCore(4, 0)
    assert not MEASURED.refine(stated).operand_truncated
    assert dataclasses.replace(MEASURED, truncates_tf32=True).refine(stated).operand_truncated


def test_products_of_pieces_take_the_core_of_their_pieces():
    stated = contract("fp32", dot=SplitProducts(TensorCore(16, 2), BF16, 3))
    assert MEASURED.refine(stated).dot == SplitProducts(TensorCore(8, 1), BF16, 3)
    truncating = dataclasses.replace(MEASURED, truncates_tf32=True)
    refined = truncating.refine(contract("fp32", dot=SplitProducts(TensorCore(8, 2), TF32, 2)))
    assert refined.dot == SplitProducts(TensorCore(4, 0), TF32, 2)
    assert not refined.operand_truncated  # the bound of the pieces covers it


def test_products_in_any_order_stay_so_and_a_format_that_was_not_measured_keeps_its_core():
    assert MEASURED.refine(contract("bf16")).dot == AnyOrder()
    without = dataclasses.replace(MEASURED, tensor_cores={})
    assert without.refine(contract("bf16", dot=TensorCore(16, 2))).dot == TensorCore(16, 2)


def test_every_input_tried_tightens_and_a_sample_only_widens():
    refined = MEASURED.refine(contract("bf16"))
    assert (refined.exp2_ulps, refined.log2_ulps, refined.log2_absolute) == (2.0625, 0.75, 2.0**-23)
    assert refined.division_ulps == published.DIVISION_ULPS  # 1.25 was seen in a sample
    worse = dataclasses.replace(MEASURED, division_max_ulps=2.5, exp2_max_ulps=3.0)
    assert worse.refine(contract("bf16")).division_ulps == 2.5
    assert worse.refine(contract("bf16")).exp2_ulps == 3.0


def test_what_a_kernel_states_of_its_own_is_kept():
    refined = MEASURED.refine(contract("bf16", exp2_ulps=7.0, division_ulps=0.5))
    assert (refined.exp2_ulps, refined.division_ulps) == (7.0, 0.5)


def test_what_was_not_measured_is_kept_and_float64_is_left_alone():
    stated = contract("bf16")
    assert Arithmetic(device="?", lane="gpu").refine(stated) == stated
    double = contract("fp64")
    assert MEASURED.refine(double) == double


def test_it_crosses_to_other_processes_and_names_what_fits_nothing():
    odd = Observation("exp2", "40 ulp", "tried: within 2.5 ulp", 1000, fits=False)
    found = dataclasses.replace(MEASURED, observations=(Observation("log2", "1 ulp"), odd))
    assert repr(pickle.loads(pickle.dumps(found))) == repr(found)  # NaN is no equal of itself
    assert found.unexplained == (odd,)
    assert MEASURED.unexplained == ()


def test_a_model_says_what_it_is():
    assert BlockModel(16, 2).describe() == "blocks of 16, 2 extra bits, truncated"
    separate = BlockModel(4, 0, "nearest", "separate")
    assert separate.describe() == "blocks of 4, 0 extra bits, rounded to nearest, then added to the accumulator"
