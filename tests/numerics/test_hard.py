"""The hard budget's own properties: its terms against their definitions, edge cases, monotony, range, the oracle's bound."""

from __future__ import annotations

import dataclasses

import mpmath
import numpy as np
import pytest
import torch

from flashverify.cases.case import AttentionCase
from flashverify.cases.tensors import Inputs, Outputs
from flashverify.numerics import hard_forward
from flashverify.numerics.coefficients import Coefficients
from flashverify.numerics.contract import ORACLE_FLOAT64, Contract
from flashverify.numerics.formats import FP16
from flashverify.numerics.hard import backward_budget, forward_budget, range_violation
from flashverify.numerics.tiles import Lanes, by_lane
from flashverify.oracles import dense
from tests.numerics.contracts import as_inputs, contract_of
from tests.numerics.inputs import make
from tests.numerics.simulator import Options

CASE = AttentionCase(
    dtype="bf16", batch=2, heads_q=4, heads_kv=2, seqlen_q=9, seqlen_k=37, head_dim=16, mask="causal", lse_grad=True
)
BF16_KERNEL = contract_of("bf16", Options())


def problem(case: AttentionCase = CASE, kind: str = "normal") -> tuple[Inputs, Outputs]:
    inputs = as_inputs(make(case, kind))
    return inputs, dense.attention(case, inputs)


def budgets(case: AttentionCase, inputs: Inputs, truth: Outputs, contract: Contract, **options: int) -> Outputs:
    forward = forward_budget(case, inputs, truth.out, truth.lse, contract, **options)
    gradients = backward_budget(case, inputs, truth.out, truth.lse, contract, forward, **options)
    return Outputs(forward.out, forward.lse, *gradients)


@pytest.mark.parametrize("kind", ["normal", "value-offset", "cancelling-values", "sink", "large", "wide-values"])
def test_the_quotient_term_covers_the_exact_centred_sum_and_is_close_to_it(kind: str) -> None:
    inputs, truth = problem(kind=kind)
    (tile,) = Lanes.of(CASE, inputs).tiles(2**24)
    lse, out = (tile.place.take(by_lane(CASE, x)) for x in (truth.lse, truth.out))
    rows = hard_forward._Rows.of(tile, Coefficients(BF16_KERNEL), lse[..., None])
    term = hard_forward._quotient_term(rows, out)
    distance = (tile.v[:, None] - out[:, :, None]).abs()  # (c, r, n, d)
    exact = (rows.weights.excess[..., None] * distance).sum(2) / rows.retained
    assert (term >= exact * (1 - 1e-9)).all()
    print((term / exact).median(), (term / exact).max())
    assert (term / exact).median() < 1.9


def test_the_quotient_term_vanishes_where_all_values_are_equal() -> None:
    inputs, _ = problem()
    inputs.v = torch.full_like(inputs.v, 1.5)
    truth = dense.attention(CASE, inputs)
    (tile,) = Lanes.of(CASE, inputs).tiles(2**24)
    rows = hard_forward._Rows.of(tile, Coefficients(BF16_KERNEL), tile.place.take(by_lane(CASE, truth.lse))[..., None])
    assert hard_forward._quotient_term(rows, tile.place.take(by_lane(CASE, truth.out))).max() < 1e-12


@pytest.mark.parametrize("tile_elements", [1, 37, 500, 2000])
def test_the_budget_does_not_depend_on_its_tiles(tile_elements: int) -> None:
    inputs, truth = problem()
    whole = budgets(CASE, inputs, truth, BF16_KERNEL)
    tiled = budgets(CASE, inputs, truth, BF16_KERNEL, tile_elements=tile_elements)
    for (name, x), (_, y) in zip(whole.items(), tiled.items(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=0, msg=name)


@pytest.mark.parametrize(
    "change",
    [
        {"exp2_ulps": 20.0},
        {"exponent": "scaled", "scale_roundings": 40},
        {"prescaled": True},
        {"storage": FP16, "probability": None, "score_gradient": None},
        {"group_partials": True},
        {"block_k_exact": False},
        {"block_k": 16, "block_k_exact": False},
        {"operand": FP16},
        {"operand": FP16, "operand_truncated": True},
    ],
    ids=str,
)
def test_a_weaker_contract_has_a_larger_budget(change: dict[str, object]) -> None:
    inputs, truth = problem()
    weaker = dataclasses.replace(BF16_KERNEL, **change)
    larger, smaller = (budgets(CASE, inputs, truth, contract) for contract in (weaker, BF16_KERNEL))
    if "storage" in change:  # a finer format
        larger, smaller = smaller, larger
    for (_, x), (_, y) in zip(larger.items(), smaller.items(), strict=True):
        assert (x >= y).all()
    assert any((x > y).any() for (_, x), (_, y) in zip(larger.items(), smaller.items(), strict=True))


def test_modular_budgets_are_at_most_end_to_end_budgets() -> None:
    inputs, truth = problem()
    forward = forward_budget(CASE, inputs, truth.out, truth.lse, BF16_KERNEL)
    modular, whole = (backward_budget(CASE, inputs, truth.out, truth.lse, BF16_KERNEL, f) for f in (None, forward))
    assert all((x <= y).all() for x, y in zip(modular, whole, strict=True))


def test_rows_that_see_no_key_must_be_exact() -> None:
    case = CASE.replace(seqlen_q=40, seqlen_k=30)  # bottom-right: the first 10 rows see nothing
    inputs, truth = problem(case)
    allowed = budgets(case, inputs, truth, BF16_KERNEL)
    assert all(torch.isfinite(x).all() for _, x in allowed.items())
    assert allowed.out[:, :, :10].eq(0).all()
    assert allowed.lse[:, :, :10].eq(0).all()
    assert allowed.dq[:, :, :10].eq(0).all()
    assert allowed.dq[:, :, 10:].gt(0).all()


@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(0, 5), (5, 0), (0, 0)])
def test_empty_problems_have_empty_or_zero_budgets(seqlen_q: int, seqlen_k: int) -> None:
    case = CASE.replace(seqlen_q=seqlen_q, seqlen_k=seqlen_k)
    inputs, truth = problem(case)
    for (_, x), (_, y) in zip(budgets(case, inputs, truth, BF16_KERNEL).items(), truth.items(), strict=True):
        assert x.shape == y.shape
        assert x.eq(0).all()
    assert range_violation(case, inputs, truth, budgets(case, inputs, truth, BF16_KERNEL), BF16_KERNEL) is None


@pytest.mark.parametrize("scale", [0.0, -0.5, 1e4, 1e6, 1e9, 1e30])
def test_extreme_scales_never_give_nan(scale: float) -> None:
    case = CASE.replace(scale=scale)
    inputs, truth = problem(case)
    for name, allowed in budgets(case, inputs, truth, BF16_KERNEL).items():
        assert not allowed.isnan().any(), name
        assert (allowed >= 0).all(), name
    if abs(scale) <= 1e6:  # out stays in the hull of v, however wrong the logits are
        assert budgets(case, inputs, truth, BF16_KERNEL).out.max() < 4 * inputs.v.abs().max()


def test_a_non_finite_masked_key_leaves_other_rows_budgets_alone() -> None:
    inputs, truth = problem()
    before = budgets(CASE, inputs, truth, BF16_KERNEL)
    inputs.k[..., -1, :], inputs.v[..., -1, :] = torch.inf, torch.nan  # seen by the last row alone
    after = budgets(CASE, inputs, dense.attention(CASE, inputs), BF16_KERNEL)
    torch.testing.assert_close(before.lse[..., :-1], after.lse[..., :-1], rtol=1e-9, atol=0)
    assert torch.isfinite(after.out[:, :, :-1]).all()
    assert torch.isfinite(after.dq[:, :, :-1]).all()


def test_range_is_declared_by_name() -> None:
    case = CASE.replace(dtype="fp16", lse_grad=False)
    contract = contract_of("fp16", Options())
    inputs, truth = problem(case)
    assert range_violation(case, inputs, truth, budgets(case, inputs, truth, contract), contract) is None
    inputs.dout, inputs.v = inputs.dout * 2.0**12, inputs.v * 2.0**6
    truth = dense.attention(case, inputs)
    reason = range_violation(case, inputs, truth, budgets(case, inputs, truth, contract), contract)
    assert reason is not None
    assert reason.startswith("range: d")
    assert "fp16" in reason
    inputs, _ = problem(case)
    inputs.q, inputs.k = inputs.q * 1e20, inputs.k * 1e20
    truth = dense.attention(case, inputs)
    reason = range_violation(case, inputs, truth, budgets(case, inputs, truth, contract), contract)
    assert reason is not None
    assert "fp32" in reason


def test_the_float64_oracle_holds_its_own_bound_and_the_bound_is_sharp() -> None:
    case = AttentionCase(dtype="fp64", seqlen_q=3, seqlen_k=24, head_dim=8)
    inputs, truth = problem(case)
    radius = budgets(case, inputs, truth, ORACLE_FLOAT64)
    with mpmath.workdps(40):
        exact = _exact(case, inputs)
        for (name, value), (_, allowed) in zip(truth.items(), radius.items(), strict=True):
            flat = [mpmath.mpf(x) for x in value.flatten().tolist()]
            errors = [abs(x - y) for x, y in zip(flat, exact[name], strict=True)]
            assert all(error <= bound for error, bound in zip(errors, allowed.flatten().tolist(), strict=True)), name
            assert (allowed.max() / value.abs().max()) < 1e-12, name


def _exact(case: AttentionCase, inputs: Inputs) -> dict[str, list[mpmath.mpf]]:
    """The definition in mpmath, one head, no mask."""
    q, k, v, dout = (mpmath.matrix(x[0, 0].tolist()) for x in (inputs.q, inputs.k, inputs.v, inputs.dout))
    scale = mpmath.mpf(case.softmax_scale)
    x = scale * (q * k.T)
    lse = [mpmath.log(mpmath.fsum(mpmath.exp(x[i, j]) for j in range(x.cols))) for i in range(x.rows)]
    p = mpmath.matrix(x.rows, x.cols)
    for i in range(x.rows):
        for j in range(x.cols):
            p[i, j] = mpmath.exp(x[i, j] - lse[i])
    out = p * v
    dp, ds = dout * v.T, mpmath.matrix(x.rows, x.cols)
    for i in range(x.rows):
        delta = mpmath.fsum(dout[i, d] * out[i, d] for d in range(out.cols))
        for j in range(x.cols):
            ds[i, j] = p[i, j] * (dp[i, j] - delta)
    return {
        "out": list(out),
        "lse": lse,
        "dq": list(scale * ds * k),
        "dk": list(scale * ds.T * q),
        "dv": list(p.T * dout),
    }


def test_the_error_budget_of_a_long_sum_grows_without_a_hidden_remainder() -> None:
    lengths = torch.tensor([1e3, 1e6, 1e9], dtype=torch.float64)
    grown = Coefficients(contract_of("fp32", Options(dot="any-order"))).walked_dot(lengths)
    assert np.allclose(grown.numpy(), np.expm1(lengths.numpy() * 2.0**-24))
