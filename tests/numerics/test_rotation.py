"""What a kernel's rotary embedding may change: no less than its arithmetic does, and not much more."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from flashverify.cases import rotary
from flashverify.cases.case import ROTARIES, AttentionCase
from flashverify.cases.regimes import draw
from flashverify.cases.sampling import torch_dtype
from flashverify.cases.tensors import Inputs, Outputs
from flashverify.numerics.coefficients import Coefficients
from flashverify.numerics.contract import ORACLE_FLOAT64, Contract
from flashverify.numerics.formats import FORMATS, FP32, FP64
from flashverify.numerics.hard import forward_budget, range_violation
from flashverify.numerics.rotation import Turning, turning_error
from flashverify.numerics.sharp import inapplicable
from flashverify.numerics.tiles import TILE_ELEMENTS, Lanes
from flashverify.oracles import tiled
from tests.numerics.contracts import contract_of
from tests.numerics.simulator import Options

CASE = AttentionCase(
    dtype="bf16",
    batch=2,
    heads_q=4,
    heads_kv=2,
    seqlen_q=9,
    seqlen_k=30,
    head_dim=40,
    mask="causal",
    cache="contiguous",
    rotary="half",
)


USED = 0.5
"""Share of its budget that some element of a few hundred uses at least, where rounding to storage is most of it."""

USED_OF_OUTPUTS = 2.0**-6
"""The same of outputs, whose errors are sums of independent ones, and their budgets sums of magnitudes."""


def exact_but_for_turning(dtype: str) -> Contract:
    """A kernel that rounds turned rows as ours does, to storage, and does all else in float64."""
    return dataclasses.replace(ORACLE_FLOAT64, storage=FORMATS[dtype], output=FP64)


def stored(case: AttentionCase, inputs: Inputs) -> Inputs:
    """Inputs with rows that were turned in the accumulator's format, operation by operation, and rounded to storage."""
    wide = torch.float64 if case.dtype == "fp64" else torch.float32
    places = rotary.query_position, rotary.key_position
    found = []
    for x, place in zip((inputs.q, inputs.k), places, strict=True):
        turned = x.to(wide).clone()
        for b in range(case.batch):
            for row in range(x.shape[2]):
                position = place(case, b, row)
                if position is None:
                    continue
                cos, sin = (torch.tensor(values, dtype=wide) for values in rotary.angles(case, position))
                first, second = rotary.pairs(case)
                one, other = x[b, :, row, first].to(wide), x[b, :, row, second].to(wide)
                turned[b, :, row, first] = one * cos - other * sin
                turned[b, :, row, second] = other * cos + one * sin
        found.append(turned.to(torch_dtype(case.dtype)))
    return dataclasses.replace(inputs, q=found[0], k=found[1])


@pytest.mark.parametrize("kind", ROTARIES)
@pytest.mark.parametrize("regime", ["normal", "large", "tiny"])
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32", "fp64"])
def test_rows_are_within_their_budget_and_some_use_much_of_it(dtype: str, regime: str, kind: str) -> None:
    case = CASE.replace(dtype=dtype, regime=regime, rotary=kind)
    inputs = draw(case)
    kernel, contract = stored(case, inputs), contract_of(dtype, Options(block_k=16))
    for exact, x in zip(rotary.turned(case, inputs), (kernel.q, kernel.k), strict=True):
        allowed, radius = (turning_error(exact.values, exact.terms, Coefficients(one)) for one in (contract, ORACLE_FLOAT64))
        error = (x.double() - exact.values).abs()
        assert (error <= allowed + radius).all()
        assert torch.equal(allowed == 0.0, exact.terms == 0.0)
        if dtype in {"fp16", "bf16"} and regime != "tiny":
            assert (error[allowed > 0.0] / allowed[allowed > 0.0]).max() > USED


def plain(case: AttentionCase, kernel: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to rows as a kernel has stored them."""
    return tiled.forward(case.replace(rotary=None), kernel)


@pytest.mark.parametrize(
    "changes", [{}, {"left_pad": True}, {"mask": "full", "softcap": 2.0}, {"regime": "large", "alibi": "heads"}]
)
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_outputs_are_within_what_turning_alone_may_do(dtype: str, changes: dict[str, object]) -> None:
    case = CASE.replace(dtype=dtype, **changes)
    inputs = draw(case)
    out, lse = tiled.forward(case, inputs)
    budget = forward_budget(case, inputs, out, lse, exact_but_for_turning(dtype))
    of_rows = plain(case, stored(case, inputs))
    for found, true, allowed in zip(of_rows, (out, lse), (budget.out, budget.lse), strict=True):
        error = torch.where(found == true, 0.0, (found - true).abs())
        assert (error <= allowed).all()
        assert error.max() > USED_OF_OUTPUTS * allowed.max()


def test_errors_that_all_add_up_use_nearly_all_of_a_scores_budget() -> None:
    """Each element is moved as far as its rounding may, in the direction that raises the score of one query and one key."""
    case = CASE.replace(batch=1, heads_q=1, heads_kv=1, seqlen_q=1, seqlen_k=1, head_dim=32)
    inputs, contract = draw(case), exact_but_for_turning("bf16")
    q, k = (x.values[0, 0, 0] for x in rotary.turned(case, inputs))
    u = contract.storage.unit_roundoff
    moved = ((q * (1.0 + u * (q * k).sign())) @ (k * (1.0 + u * (q * k).sign())) - q @ k).abs().item()
    (tile,) = Lanes.of(case, inputs).tiles(TILE_ELEMENTS)
    turning = Turning.of(tile, Coefficients(contract))
    assert turning is not None
    assert moved <= turning.moved.item() <= (1.0 + 8.0 * u) * moved


def test_tiles_of_few_rows_give_the_same_budgets() -> None:
    case = CASE.replace(left_pad=True)
    inputs = draw(case)
    out, lse = tiled.forward(case, inputs)
    contract = contract_of("bf16", Options(block_k=16))
    whole, parts = (forward_budget(case, inputs, out, lse, contract, elements) for elements in (TILE_ELEMENTS, 40))
    torch.testing.assert_close(parts.out, whole.out, rtol=2.0**-40, atol=0.0)
    torch.testing.assert_close(parts.lse, whole.lse, rtol=2.0**-40, atol=0.0)


def test_a_turned_row_beyond_storage_is_out_of_range() -> None:
    case = CASE.replace(dtype="fp16", seqlen_q=2, seed=0)
    inputs = draw(case)
    inputs.q[:], inputs.k[:] = 60000.0, 0.0
    out, lse = tiled.forward(case, inputs)
    contract = dataclasses.replace(contract_of("fp16", Options(block_k=16)), accumulator=FP32)
    budget = forward_budget(case, inputs, out, lse, contract)
    reason = range_violation(case, inputs, Outputs(out, lse), Outputs(budget.out, budget.lse), contract)
    assert reason is not None
    assert reason.startswith("range: a turned q may reach ")


def test_the_sharp_model_says_nothing_of_turned_rows() -> None:
    reason = inapplicable(CASE, draw(CASE), contract_of("bf16", Options(block_k=16)))
    assert reason == "queries and appended keys are turned and rounded before the product: one error for all keys of a row"
