"""Products: what is planted is what is reported, and what fits nothing stops with the models that were tried."""

import pytest
import torch

from flashverify.numerics.axioms import products, wide_products
from flashverify.numerics.axioms.arithmetic import BlockModel
from flashverify.numerics.axioms.products import Shape, any_order_headroom, draw
from flashverify.numerics.axioms.rounding import round_to
from flashverify.numerics.axioms.tensor_core import Treatment
from flashverify.numerics.axioms.wide_products import CHAINS
from flashverify.numerics.formats import FP16, FP32, TF32
from tests.numerics.axioms.fakes import HOPPER, FakeDevice

AMPERE = {"fp16": BlockModel(8, 1), "bf16": BlockModel(8, 1), "tf32": BlockModel(4, 1)}


@pytest.fixture(autouse=True)
def small_shapes(monkeypatch):
    monkeypatch.setattr(products, "SHAPES", (Shape(16, 16, 64, 4), Shape(16, 16, 64, 4, in_registers=True), Shape(8, 8, 16, 1)))
    monkeypatch.setattr(products, "GROUPS", 2)


def lines(found):
    return {line.name: line for line in found.observations}


@pytest.mark.parametrize("cores", [HOPPER, AMPERE], ids=["Hopper's", "Ampere's"])
def test_the_tensor_cores_of_a_device_are_found(cores):
    found = products.tensor_cores(FakeDevice(cores=cores))
    assert found.fields == {"tensor_cores": cores}
    assert all(line.fits for line in found.observations)
    told = lines(found)
    assert told["tensor core, fp16"].value == cores["fp16"].describe()
    assert "1 of 64 models" in told["tensor core, fp16"].text
    assert "an emulated instruction" in told["tensor core, fp16"].text
    assert told["tensor core, bf16, products of zeros"].value == "left out of the alignment"
    assert told["tensor core, tf32, subnormal operands"].value == "exact, aligned like the smallest normal number"


@pytest.mark.parametrize(
    ("treatment", "name", "value", "fits"),
    [
        (Treatment(zeros_align=True), "products of zeros", "aligned like others", False),
        (Treatment(subnormals="normalised"), "subnormal operands", "exact, aligned by their own size", True),
        (Treatment(subnormals="flushed"), "subnormal operands", "flushed to 0", False),
    ],
)
@pytest.mark.parametrize("operand", ["fp16", "bf16", "tf32"])
def test_zeros_and_subnormal_operands_are_told_apart(operand, treatment, name, value, fits):
    line = lines(products.tensor_cores(FakeDevice(treatment=treatment)))[f"tensor core, {operand}, {name}"]
    assert (line.value, line.fits) == (value, fits)


class RoundsEveryProduct(FakeDevice):
    """A tensor core that is one of IEEE operations."""

    def dot(self, left, right, accumulator, precision):
        return super().dot(left.float(), right.float(), accumulator, "ieee")


def test_a_tensor_core_that_fits_no_model_is_reported_with_the_models_tried():
    found = products.tensor_cores(RoundsEveryProduct())
    assert found.fields == {"tensor_cores": {}}
    line = lines(found)["tensor core, fp16"]
    assert (line.value, line.fits) == ("no known model", False)
    assert line.text.startswith("0 of 64 models give every bit; the nearest that does not: blocks of ")


def test_without_tensor_cores_any_order_is_enough():
    device = FakeDevice("interpreter")
    device.dot = lambda left, right, accumulator, precision: (
        left.float() @ right.float() + (0.0 if accumulator is None else accumulator)
    )
    assert all(line.fits for line in products.tensor_cores(device).observations)
    device.dot = lambda left, right, accumulator, precision: (left @ right).float()  # rounded to half precision
    assert not lines(products.tensor_cores(device))["products, fp16"].fits


@pytest.mark.parametrize("chain", CHAINS)
def test_the_order_of_float32_products_is_found(chain):
    found = wide_products.single(FakeDevice(chain=chain))
    assert found.fields == {"fp32_dot": chain}
    assert found.observations[0].fits


def test_float32_products_in_another_order_are_in_any_order():
    device = FakeDevice()
    device.dot = lambda left, right, accumulator, precision: (
        (left[:, :, ::2] @ right[:, ::2]) + (left[:, :, 1::2] @ right[:, 1::2] + (0.0 if accumulator is None else accumulator))
    )
    found = wide_products.single(device)
    assert found.fields == {"fp32_dot": "any-order"}
    assert found.observations[0].fits


class SecretlyTf32(FakeDevice):
    """It is asked for float32 and multiplies tf32 (triton-lang/triton issue 10176 tells of one such path)."""

    def dot(self, left, right, accumulator, precision):
        return super().dot(left, right, accumulator, "tf32" if precision == "ieee" else precision)


def test_float32_products_that_are_secretly_tf32_are_reported():
    found = wide_products.single(SecretlyTf32())
    assert found.fields == {"fp32_dot": ""}
    (line,) = found.observations
    assert not line.fits
    assert "operands rounded to tf32 (truncated) explain it" in line.text


def test_the_default_precision_and_bfloat16_made_float32():
    found = wide_products.default_precision(FakeDevice())
    assert found.fields == {"default_dot_precision": "tf32"}
    upcast = 'bf16 made float32 in the kernel, "ieee"'
    assert lines(found)[upcast].value == "fma-chain"
    through_core = lines(wide_products.default_precision(SecretlyTf32()))[upcast]
    assert through_core.value == f"a tensor core: {HOPPER['tf32'].describe()}"
    neither = FakeDevice()
    neither.dot = lambda left, right, accumulator, precision: (left @ right) * (1.0 if precision else 1.5)
    found = wide_products.default_precision(neither)
    assert found.fields == {"default_dot_precision": ""}
    assert not found.observations[0].fits


@pytest.mark.parametrize("mode", ["nearest even", "nearest away", "truncated"])
def test_the_rounding_of_operands_to_tf32_is_found(mode):
    device = FakeDevice()
    device.dot = lambda left, right, accumulator, precision: (
        round_to(left.double(), TF32, mode) @ round_to(right.double(), TF32, mode)
    ).float()
    found = wide_products.tf32_operands(device)
    assert found.fields == {"truncates_tf32": mode == "truncated"}
    assert {line.value for line in found.observations} == {mode}
    device.dot = lambda left, right, accumulator, precision: left @ right
    assert not any(line.fits for line in wide_products.tf32_operands(device).observations)


def fused_in_float64(left, right, total):
    import math

    rows = [[0.0] * right.shape[2] for _ in range(left.shape[1])]
    for i, a in enumerate(left[0].tolist()):
        for j, b in enumerate(right[0].mT.tolist()):
            rows[i][j] = wide_products.DOUBLE_CHAINS["fma-chain"](a, b, total[0, i, j].item())
            assert math.isfinite(rows[i][j])
    return torch.tensor([rows], dtype=torch.float64)


def test_float64_products_are_a_chain_any_order_or_reported():
    device = FakeDevice()
    device.double_dot = fused_in_float64
    assert wide_products.double(device).fields == {"fp64_dot": "fma-chain"}
    device.double_dot = lambda left, right, total: (left[..., 1::2] @ right[:, 1::2] + total) + left[..., ::2] @ right[:, ::2]
    assert wide_products.double(device).fields == {"fp64_dot": "any-order"}
    device.double_dot = lambda left, right, total: (left.float() @ right.float()).double() + total
    found = wide_products.double(device)
    assert found.fields == {"fp64_dot": ""}
    assert not found.observations[0].fits


def test_any_order_covers_products_of_float32_and_not_of_half_precision():
    left, right = draw((2, 16, 64), FP32, 1), draw((2, 64, 16), FP32, 2)
    assert any_order_headroom(left, right, None, left.float() @ right.float(), FP32) <= 1.0
    halves = round_to(left, FP16, "nearest even").float() @ right.float()
    assert any_order_headroom(left, right, None, halves, FP32) > 1.0
    halves[0, 0, 0] = torch.nan
    assert any_order_headroom(left, right, None, halves, FP32) == torch.inf


def test_products_of_pieces_are_measured_beside_float32():
    lines = wide_products.split_products(FakeDevice()).observations
    assert [line.name for line in lines] == ['fp32 products, "tf32x3"', 'fp32 products, "bf16x6"']
    assert all(float(line.value) < 32 and line.fits for line in lines)
    assert wide_products.split_products(FakeDevice(lane="interpreter")).observations == ()


def test_a_compiler_that_takes_pieces_for_a_shorter_format_is_seen():
    class Short(FakeDevice):
        def dot(self, left, right, accumulator, precision):
            return super().dot(left, right, accumulator, "tf32" if precision == "bf16x6" else precision)

    lines = wide_products.split_products(Short()).observations
    assert [line.fits for line in lines] == [True, False]


PAIRS = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0)]
LEFT_OUT = {"x2y2": [(1, 1)], "x3y1": [(2, 0)], "x1y3": [(0, 2)], "x2y1": [(1, 0)], "bf16x3": [(1, 1), (0, 2), (2, 0)]}


@pytest.mark.parametrize("name", ["nothing", *LEFT_OUT])
def test_every_product_of_pieces_that_is_left_out_is_seen(name):
    """bf16x3 in the place of bf16x6: random numbers let it through."""
    kept = [pair for pair in PAIRS if pair not in LEFT_OUT.get(name, [])]

    class Fewer(FakeDevice):
        def dot(self, left, right, accumulator, precision):
            if precision != "bf16x6":
                return super().dot(left, right, accumulator, precision)
            a, b = pieces(left), pieces(right)
            return sum(a[i] @ b[j] for i, j in kept).float()

    lines = {line.name: line.fits for line in wide_products.split_products(Fewer()).observations}
    assert lines == {'fp32 products, "tf32x3"': True, 'fp32 products, "bf16x6"': name == "nothing"}


def pieces(x):
    found, rest = [], x.float()
    for _ in range(3):
        found.append(rest.bfloat16().double())
        rest = rest - found[-1].float()
    return found
