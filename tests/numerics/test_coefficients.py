"""The coefficients of the hard budget: casts, dot products and roundings against brute force."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from flashverify.numerics.coefficients import Coefficients
from flashverify.numerics.contract import ORACLE_FLOAT64, Contract
from flashverify.numerics.dots import AnyOrder, TensorCore
from flashverify.numerics.formats import BF16, FP16, FP32, TORCH_DTYPES, Format
from tests.numerics.contracts import contract_of
from tests.numerics.simulator import Options, tensor_core

HALF = contract_of("fp16", Options())


@pytest.mark.parametrize("fmt", [FP16, BF16], ids=lambda fmt: fmt.name)
def test_no_cast_exceeds_its_bound_and_one_attains_it(fmt: Format) -> None:
    random = np.random.default_rng(0)
    values = torch.from_numpy(random.standard_normal(100_000) * 2.0 ** random.integers(fmt.emin - 12, 3, 100_000))
    values = values.float().double()
    error = (values.to(TORCH_DTYPES[fmt.name]).double() - values).abs()
    bound = Coefficients(HALF).cast(fmt, values.abs())
    assert (error <= bound).all()
    assert (error / bound).max() > 0.99


def test_a_cast_to_the_accumulators_own_format_is_exact() -> None:
    assert Coefficients(HALF).cast(FP32, torch.ones(3, dtype=torch.float64)).eq(0).all()
    assert Coefficients(HALF).cast(None, torch.ones(3, dtype=torch.float64)).eq(0).all()


@pytest.mark.parametrize("signs", ["positive", "mixed"])
@pytest.mark.parametrize("length", [5, 16, 50, 600])
def test_the_tensor_core_stays_within_its_dot_product_lemma(length: int, signs: str) -> None:
    random = np.random.default_rng(length)
    a, b = (random.standard_normal(shape).astype(np.float16).astype(float) for shape in ((30, length), (length, 30)))
    if signs == "positive":
        a, b = abs(a), abs(b)
    error = abs(tensor_core(a, b, np.zeros((30, 30), np.float32), 16) - a @ b)
    coefficients = Coefficients(HALF)
    assert (error <= coefficients.plain_dot(length) * (abs(a) @ abs(b))).all()
    walked = coefficients.walked_dot(torch.tensor(float(length), dtype=torch.float64))
    assert walked >= coefficients.plain_dot(length)


@pytest.mark.parametrize("runs", [8, 64])
def test_short_runs_take_a_step_each(runs: int) -> None:
    """A group of query heads of one row each: every head's product is lost, since each comes in a step of its own."""
    products = np.full(runs, 1.98 * 2.0**-24)
    products[0] = 1.0
    total = np.zeros((1, 1), np.float32)
    for product in products:
        total = tensor_core(np.ones((1, 1)), product.reshape(1, 1), total, 16)
    lost = products.sum() - float(total[0, 0])
    assert lost > 1.9 * (runs - 1) * 2.0**-24
    length = torch.tensor(float(runs), dtype=torch.float64)
    assert lost <= Coefficients(HALF).walked_dot(length, runs=runs) * products.sum()
    if runs == 64:
        assert lost > Coefficients(HALF).walked_dot(length) * products.sum()


def test_a_run_touches_no_more_steps_than_counted() -> None:
    """Against all positions of a run among tiles that need not be multiples of a step."""
    for tile in (16, 24, 40):
        coefficients = Coefficients(dataclasses.replace(HALF, block_k=tile))
        for length in range(1, 130):
            touched = max(len({(i // tile, i % tile // 16) for i in range(start, start + length)}) for start in range(2 * tile))
            counted = coefficients.walked_dot(torch.tensor(float(length), dtype=torch.float64))
            needed = coefficients.growth(length * 0.5 + touched * 3.5)
            assert counted >= needed * (1 - 1e-9), (tile, length)


def test_growth_covers_every_product_of_roundings() -> None:
    for contract in (HALF, ORACLE_FLOAT64):
        coefficients = Coefficients(contract)
        for roundings in (1, 100, 10**6, 10**8):
            exact = np.expm1(roundings * np.log1p(np.longdouble(coefficients.unit)))
            assert coefficients.growth(roundings) >= exact * (1 - 1e-12)


@pytest.mark.parametrize(
    ("change", "attribute"),
    [
        ({"exp2_ulps": 4.0}, "exponential"),
        ({"division_ulps": 4.0}, "division"),
        ({"scale_roundings": 5}, "multiplier"),
        ({"prescaled": True}, "prescaling"),
        ({"operand": FP16}, "operand"),
    ],
)
def test_a_weaker_statement_gives_a_larger_coefficient(change: dict[str, object], attribute: str) -> None:
    weaker = dataclasses.replace(HALF, **change)
    assert getattr(Coefficients(weaker), attribute) > getattr(Coefficients(HALF), attribute)


def test_lemma_constants_of_hopper() -> None:
    assert TensorCore(16, 2).kappa(64) == 4 * 10.5
    assert TensorCore(8, 2).kappa(64) == 8 * 6.5
    assert AnyOrder().kappa(64) == 64


def test_the_contract_describes_every_parameter() -> None:
    described = HALF.describe()
    assert described["storage"] == "fp16"
    assert set(described) == {field.name for field in dataclasses.fields(Contract)}
