"""The whole measurement: of this machine, of a device made up to be right, and of ones with a primitive that is broken."""

import math
import time

import pytest
import torch

from flashverify.numerics import published
from flashverify.numerics.axioms import casts, functions, measure, sums, wide_products
from flashverify.numerics.axioms.arithmetic import BlockModel
from flashverify.numerics.axioms.wide_products import ANY_ORDER
from tests.numerics.axioms.fakes import FakeDevice
from tests.numerics.axioms.test_functions import cubic

SECONDS = {"interpreter": 10.0, "gpu": 60.0}
"""Processor time that a measurement may take, all threads together."""


@pytest.fixture(scope="module")
def measured(device):
    started = time.process_time()  # of this process: the machine may be shared
    found = measure.measure(device)
    assert time.process_time() - started < SECONDS[found.lane]
    return found


def test_the_arithmetic_of_this_machine_is_understood(measured):
    assert measured.unexplained == ()
    assert measured.exp2_max_ulps <= published.EXP2_ULPS
    assert measured.division_max_ulps <= published.DIVISION_ULPS
    assert measured.casts_round_to_nearest["fp16"]
    assert measured.sum_order == "tree"
    numbers = ("exp2_mean_ulps", "exp2_rms_ulps", "log2_max_ulps", "log2_max_absolute", "division_rms_ulps")
    assert all(math.isfinite(getattr(measured, name)) for name in numbers)
    names = [line.name for line in measured.observations]
    assert len(names) == len(set(names))


def test_it_is_measured_once_in_a_process(measured, device):
    assert measure.measure(device) is measured


def test_the_interpreter_has_numpys_arithmetic(measured):
    if measured.lane != "interpreter":
        assert measured.lane == "gpu"
        return
    assert (measured.tensor_cores, measured.exhaustive) == ({}, ())
    assert (measured.fp32_dot, measured.fp64_dot) == (ANY_ORDER, ANY_ORDER)
    assert not measured.fuses
    assert not measured.casts_round_to_nearest["bf16"]
    assert measured.exp2_flushes_below == 2.0**-149


@pytest.mark.gpu
def test_every_input_is_tried_on_a_gpu(measured):
    assert measured.exhaustive == ("exp2", "log2")
    tried = {line.name: line.inputs for line in measured.observations if line.exhaustive}
    assert tried["exp2, smallest result but 0"] > 0x43160001  # every pattern of [-150, -0], and the integers
    assert tried["cast to fp16"] == tried["cast to bf16"] == 2**32
    assert measured.casts_round_to_nearest == {"fp16": True, "bf16": True}
    assert measured.default_dot_precision == "tf32"


@pytest.mark.gpu
def test_the_tensor_core_of_hopper_is_the_published_one(measured):
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a GPU of compute capability 9.0")
    assert measured.tensor_cores == {"fp16": BlockModel(16, 2), "bf16": BlockModel(16, 2), "tf32": BlockModel(8, 2)}
    assert measured.fp32_dot == measured.fp64_dot == "fma-chain"


STEPS = (
    wide_products.single,
    wide_products.default_precision,
    functions.exp2,
    functions.division,
    casts.casts,
    sums.contraction,
    sums.row_sum,
)


def with_broken(**operations):
    device = FakeDevice("interpreter")
    device.multiply_add = lambda a, b, c, contraction: (a * b + c, a * b - c)
    for name, operation in operations.items():
        setattr(device, name, operation)
    return measure.examine(device, STEPS)


def test_a_device_that_is_right_is_understood():
    found = with_broken()
    assert found.unexplained == ()
    assert found.fp32_dot == ANY_ORDER
    assert (found.device, found.lane) == ("fake", "interpreter")


@pytest.mark.parametrize(
    ("broken", "name"),
    [
        ({"exp2": cubic}, "exp2 on [-150, 0], largest error"),
        ({"cast": lambda x, dtype: (x * (1.0 - 2.0**-12)).to(dtype)}, "cast to fp16"),
        ({"divide": lambda x, y: (x.half() / y.half()).float()}, "division, random pairs, largest error"),
        ({"row_sums": lambda x: x.bfloat16().float().sum(1)}, "tl.sum of 32 terms"),
    ],
    ids=["exp2 by a cubic", "a cast that shrinks", "division in half precision", "sums in bfloat16"],
)
def test_a_broken_primitive_is_named(broken, name):
    assert name in [line.name for line in with_broken(**broken).unexplained]


def test_float32_products_that_are_secretly_tf32_are_named():
    found = measure.examine(SecretlyTf32("interpreter"), STEPS)
    assert 'fp32 products, "ieee"' in [line.name for line in found.unexplained]
    assert found.fp32_dot == ""


class SecretlyTf32(FakeDevice):
    """It is asked for float32 and multiplies tf32."""

    def dot(self, left, right, accumulator, precision):
        return super().dot(left, right, accumulator, "tf32")


def test_a_step_that_crashes_is_a_finding_and_the_others_go_on():
    def crash(x):
        raise RuntimeError("shared memory exhausted\nand a second line")

    found = with_broken(exp2=crash)
    (line,) = found.unexplained
    assert (line.name, line.value, line.text) == ("exp2", "crashed", "RuntimeError: shared memory exhausted")
    assert math.isnan(found.exp2_max_ulps)
    assert found.division_max_ulps > 0.0
