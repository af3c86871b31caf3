"""The hard budget's own properties: its terms against their definitions, edge cases, monotony, range, the oracle's bound."""

from __future__ import annotations

import dataclasses
import math

import mpmath
import numpy as np
import pytest
import torch

from flashverify.cases.case import AttentionCase
from flashverify.cases.tensors import Inputs, Outputs
from flashverify.dropout.of_case import rescale
from flashverify.numerics import hard_forward
from flashverify.numerics.coefficients import Coefficients
from flashverify.numerics.contract import ORACLE_FLOAT64, Contract
from flashverify.numerics.exponents import perturbed_weights
from flashverify.numerics.formats import FP16
from flashverify.numerics.hard import backward_budget, forward_budget, range_violation
from flashverify.numerics.tiles import Lanes, by_lane
from flashverify.oracles import dense
from tests.numerics.contracts import as_inputs, contract_of, ratios
from tests.numerics.inputs import make
from tests.numerics.simulator import Options, simulate, tensor_core

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
@pytest.mark.parametrize("dropout", [None, 0.1, 0.9])
def test_the_quotient_term_covers_the_exact_centred_sum_and_is_close_to_it(kind: str, dropout: float | None) -> None:
    case = CASE.replace(dropout=dropout)
    inputs, truth = problem(case, kind)
    (tile,) = Lanes.of(case, inputs).tiles(2**24)
    lse, out = (tile.place.take(by_lane(case, x)) for x in (truth.lse, truth.out / rescale(case)))
    rows = hard_forward._Rows.of(tile, Coefficients(BF16_KERNEL), lse[..., None])
    term = hard_forward._quotient_term(rows, out)
    kept = torch.ones_like(tile.seen) if tile.kept is None else tile.kept
    distance = (kept[..., None] * tile.v[:, None] - out[:, :, None]).abs()  # (c, r, n, d)
    exact = (rows.weights.excess[..., None] * distance).sum(2) / rows.retained
    assert (term >= exact * (1 - 1e-9)).all()
    found = (term / exact)[exact > 0.0]
    print(found.median(), found.max())
    assert found.median() < 1.9


def test_the_quotient_term_vanishes_where_all_values_are_equal() -> None:
    inputs, _ = problem()
    inputs.v = torch.full_like(inputs.v, 1.5)
    truth = dense.attention(CASE, inputs)
    (tile,) = Lanes.of(CASE, inputs).tiles(2**24)
    rows = hard_forward._Rows.of(tile, Coefficients(BF16_KERNEL), tile.place.take(by_lane(CASE, truth.lse))[..., None])
    assert hard_forward._quotient_term(rows, tile.place.take(by_lane(CASE, truth.out))).max() < 1e-12


@pytest.mark.parametrize("tile_elements", [1, 37, 500, 2000])
@pytest.mark.parametrize("dropout", [None, 0.3])
def test_the_budget_does_not_depend_on_its_tiles(tile_elements: int, dropout: float | None) -> None:
    case = CASE.replace(dropout=dropout)
    inputs, truth = problem(case)
    whole = budgets(case, inputs, truth, BF16_KERNEL)
    tiled = budgets(case, inputs, truth, BF16_KERNEL, tile_elements=tile_elements)
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


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_a_factor_that_is_folded_into_weights_costs_a_rounding_of_each(dropout: float) -> None:
    """Of out and dv, and no more than the two roundings of the factor and of its product, but for floors."""
    case = CASE.replace(dropout=dropout, dtype="fp32")
    inputs, truth = problem(case)
    contract = contract_of("fp32", Options(dot="any-order"))
    after = budgets(case, inputs, truth, contract)
    folded = budgets(case, inputs, truth, dataclasses.replace(contract, rescale="folded"))
    weights = budgets(case.replace(dropout=0.0), inputs, truth, contract)
    assert all(x.isfinite().all() for _, x in folded.items())
    for name in ("out", "dv"):
        more, less = getattr(folded, name), getattr(after, name)
        assert (more >= less * (1 - 2.0**-20)).all(), name
    assert (folded.out > after.out).any()
    assert torch.equal(folded.lse, after.lse)
    assert torch.equal(weights.lse, after.lse)


@pytest.mark.parametrize("contract", [BF16_KERNEL, dataclasses.replace(BF16_KERNEL, rescale="folded")], ids=["after", "folded"])
def test_a_rate_of_zero_has_the_budget_of_no_dropout(contract: Contract) -> None:
    inputs, truth = problem()
    dropping, plain = (budgets(case, inputs, truth, contract) for case in (CASE.replace(dropout=0.0), CASE))
    for (name, x), (_, y) in zip(dropping.items(), plain.items(), strict=True):
        assert torch.equal(x, y), name


def test_what_keeps_nothing_must_be_exact() -> None:
    """Rows of out whose seen keys are all dropped, and dv of keys that all rows drop; not lse, nor dq, for dlse."""
    case = CASE.replace(dropout=0.9)
    inputs, truth = problem(case)
    allowed = budgets(case, inputs, truth, BF16_KERNEL)
    (tile,) = Lanes.of(case, inputs).tiles(2**24)
    rows = (tile.lengths_kept == 0).reshape(truth.lse.shape)
    columns = (tile.rows_that_keep == 0).reshape(case.batch, case.heads_kv, case.seqlen_k)
    assert 0 < int(rows.sum()) < rows.numel()
    assert 0 < int(columns.sum()) < columns.numel()
    assert torch.equal(allowed.out.eq(0).all(-1), rows)
    assert torch.equal(allowed.dv.eq(0).all(-1), columns)
    assert truth.out[rows].eq(0).all()
    assert allowed.lse.gt(0).all()
    assert allowed.dq.gt(0).all()
    nothing = CASE.replace(dropout=1.0)
    allowed = budgets(nothing, inputs, dense.attention(nothing, inputs), BF16_KERNEL)
    assert allowed.out.eq(0).all()
    assert allowed.dv.eq(0).all()
    assert all(x.isfinite().all() for _, x in allowed.items())


def test_zeros_between_terms_touch_the_steps_of_the_whole_stretch() -> None:
    """Every 16th of many keys is kept: a tensor core's step each."""
    keys = 16 * 64
    case = AttentionCase(dtype="bf16", seqlen_q=1, seqlen_k=keys, head_dim=16)
    length, span = (torch.tensor(float(n), dtype=torch.float64) for n in (64, keys))
    coefficients = Coefficients(contract_of(case.dtype, Options()))
    weights = np.zeros((1, keys))
    weights[0, ::16] = 1.98 * 2.0**-24
    weights[0, 0] = 1.0
    lost = weights.sum() - float(tensor_core(weights, np.ones((keys, 1)), np.zeros((1, 1), np.float32), 16)[0, 0])
    assert lost > coefficients.walked_dot(length) * weights.sum()
    assert lost <= coefficients.walked_dot(length, span) * weights.sum()


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


def one_row(dtype: str, k: list[float], v: list[float], dout: float, scale: float) -> tuple[AttentionCase, Inputs]:
    """One query, q = 1, head size 1."""
    tensors = [torch.tensor(x, dtype=torch.float64).reshape(1, 1, -1, 1) for x in ([1.0], k, v, [dout])]
    return AttentionCase(dtype=dtype, seqlen_q=1, seqlen_k=len(k), head_dim=1, scale=scale), Inputs(*tensors, dlse=None)


SHIFTED = Options(exponent="shifted", cut=True, dot="any-order")


@pytest.mark.parametrize(
    ("k", "v", "dout", "scale", "name"),
    [
        ([2.0**127, -(2.0**127)], [1.0, 2.0], 1.0, 2.0**-126, "the distance of two scores"),
        ([1.0, 0.0], [2.0**63, -(2.0**63)], 1.25 * 2.0**64, 4.0, "dP - delta"),
    ],
)
def test_differences_may_overflow_where_their_terms_do_not(
    k: list[float], v: list[float], dout: float, scale: float, name: str
) -> None:
    case, inputs = one_row("bf16", k, v, dout, scale)
    contract = contract_of("bf16", SHIFTED)
    truth = dense.attention(case, inputs)
    assert all(x.isfinite().all() for _, x in truth.items())
    with np.errstate(over="ignore", invalid="ignore"):
        arrays = {name: None if x is None else x.numpy() for name, x in dataclasses.asdict(inputs).items()}
        got = simulate(case, arrays, SHIFTED)
    assert any(abs(got[n] - getattr(truth, n).numpy()).max() > 0 or not np.isfinite(got[n]).all() for n in ("out", "dq"))
    reason = range_violation(case, inputs, truth, budgets(case, inputs, truth, contract), contract)
    assert reason is not None
    assert reason.startswith(f"range: {name} may reach")


@pytest.mark.parametrize("scale", [1e4, 1e5, -1e6])
def test_a_kernel_that_shifts_and_cuts_has_a_budget_for_very_large_logits(scale: float) -> None:
    case = CASE.replace(scale=scale)
    contract = contract_of("bf16", SHIFTED)
    arrays = make(case, "normal")
    inputs, truth = problem(case)
    budget = budgets(case, inputs, truth, contract)
    assert range_violation(case, inputs, truth, budget, contract) is None
    assert (budget.dv <= 1.1 * (truth.dv.abs() + _grouped(case, inputs.dout.abs().sum(2, keepdim=True)))).all()
    found = ratios(case, arrays, simulate(case, arrays, SHIFTED), contract)
    assert all(ratio <= 1.0 for ratio in found.values()), found


@pytest.mark.parametrize("scale", [-1e9, 1e12, 1e30])
def test_beyond_them_the_range_says_that_lse_tells_nothing_of_weights(scale: float) -> None:
    case = CASE.replace(scale=scale)
    contract = contract_of("bf16", SHIFTED)
    inputs, truth = problem(case)
    reason = range_violation(case, inputs, truth, budgets(case, inputs, truth, contract), contract)
    assert reason is not None
    assert reason.startswith("range: a weight recomputed from lse may reach")


def _grouped(case: AttentionCase, by_query_head: torch.Tensor) -> torch.Tensor:
    """Summed over the query heads of each group."""
    return by_query_head.unflatten(1, (case.heads_kv, case.group_size)).sum(2)


def test_the_budget_of_a_cut_weight_covers_every_exponent_within_omega() -> None:
    inputs, truth = problem()
    (tile,) = Lanes.of(CASE, inputs).tiles(2**24)
    lse = tile.place.take(by_lane(CASE, truth.lse))[..., None]
    for size in (1e-9, 0.1, 3.0, 1e3):
        omega = torch.full_like(tile.score, size)
        weights = perturbed_weights(tile, lse, omega, ceiling=1.0)
        assert not weights.unbounded.any()
        for moved in (-size, -size / 2, size / 2, size):
            computed = torch.exp((tile.logit - lse + moved).clamp(max=0.0))
            error = torch.where(tile.seen, (computed - weights.p).abs(), 0.0)
            assert (error <= weights.excess * (1 + 1e-9) + 1e-15).all()
        assert (weights.excess <= perturbed_weights(tile, lse, omega).excess).all()
        assert weights.excess.max() <= 1.0


def test_the_lse_budget_counts_conversions_where_the_sum_cancels() -> None:
    """-ln n + ln n: the product of log2(n) and ln 2, and that constant, round relative to ln n and not to lse = 0."""
    keys, u = 32, 2.0**-24
    case, inputs = one_row("fp32", [-1.0] * keys, [1.0] * keys, 1.0, math.log(keys))
    contract = dataclasses.replace(contract_of("fp32", SHIFTED), block_k=None, scale_roundings=0)
    truth = dense.attention(case, inputs)
    assert abs(float(truth.lse)) < 1e-15
    maximum, logarithm, row_sum = 2 * math.log(keys), (4 + 2) * math.log(keys), keys
    dot = math.log(keys)  # of one product
    budget = float(forward_budget(case, inputs, truth.out, truth.lse, contract).lse)
    exponentials = 2 * contract.exp2_ulps
    assert budget >= (maximum + logarithm + row_sum + dot + exponentials) * u
    assert budget <= 1.5 * (maximum + logarithm + row_sum + dot + exponentials) * u


def test_a_tiny_normal_scale_is_no_underflow() -> None:
    case, inputs = one_row("bf16", [2.0**123, -(2.0**123)], [1.0, 2.0], 1.0, 2.0**-123)
    truth = dense.attention(case, inputs)
    assert float(budgets(case, inputs, truth, contract_of("bf16", SHIFTED)).out) < 0.02


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


@pytest.mark.parametrize(
    ("dtype", "rescale", "rate", "name"),
    [
        ("bf16", "after", 1 - 2.0**-20, "dP"),
        ("fp16", "folded", 1 - 2.0**-20, "an unnormalised weight"),
        ("bf16", "after", 0.5, None),
        ("fp16", "folded", 0.5, None),
    ],
)
def test_dropouts_factor_may_take_numbers_out_of_range(dtype: str, rescale: str, rate: float, name: str | None) -> None:
    """1 / (1 - rate) is 2^20: dP overflows in float32 where dO·V does not, and a weight in fp16 if the factor is folded in."""
    case = CASE.replace(dtype=dtype, lse_grad=False, dropout=rate)
    contract = dataclasses.replace(contract_of(dtype, Options()), rescale=rescale)
    inputs, _ = problem(case)
    if dtype == "bf16":
        inputs.v, inputs.dout = inputs.v * 2.0**100, inputs.dout * 2.0**7
    truth = dense.attention(case, inputs)
    reason = range_violation(case, inputs, truth, budgets(case, inputs, truth, contract), contract)
    assert (reason is None) == (name is None)
    assert reason is None or reason.startswith(f"range: {name} may reach")


@pytest.mark.parametrize("name", ["q", "k", "v", "dO"])
def test_numbers_whose_pieces_underflow_are_out_of_range(name: str) -> None:
    case = AttentionCase(dtype="fp32", seqlen_q=3, seqlen_k=4, head_dim=5)
    contract = contract_of("fp32", Options(dot="bf16x6"))
    plain = contract_of("fp32", Options(dot="any-order"))
    inputs, truth = problem(case)
    assert range_violation(case, inputs, truth, budgets(case, inputs, truth, contract), contract) is None
    getattr(inputs, "dout" if name == "dO" else name)[0, 0, 1, 2] = 1e-32
    reason = range_violation(case, inputs, truth, budgets(case, inputs, truth, contract), contract)
    assert reason == f"range: {name} has 1e-32, whose pieces underflow in bf16 below 1.97e-31"
    assert range_violation(case, inputs, truth, budgets(case, inputs, truth, plain), plain) is None


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
