"""Budgets under biases, masks and sinks: they cover honest arithmetic, grow with its terms, and see planted defects."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
import torch

from flashverify.cases import dense_bias
from flashverify.cases.case import BIASES, AttentionCase
from flashverify.cases.lengths import PACKINGS
from flashverify.cases.matrices import matrix
from flashverify.cases.regimes import draw
from flashverify.cases.semantics import alibi_bias, alibi_slope_tensor, visible_mask
from flashverify.cases.tensors import OF_FEATURES, Inputs, Outputs
from flashverify.dropout.of_case import kept, rescale
from flashverify.numerics.formats import FP64, TORCH_DTYPES
from flashverify.numerics.hard import backward_budget, feature_budget, forward_budget
from flashverify.oracles import tiled
from tests.numerics.contracts import contract_of
from tests.numerics.simulator import Options

WHOLE_ROWS = Options(dot="any-order", block_k=None)

DTYPES = ("fp16", "fp32")


def several(dtype: str) -> list[AttentionCase]:
    """The smoke matrix's cases, and larger ones with every bias, lengths, several seeds, caps, linear biases and windows."""
    plain = AttentionCase(dtype=dtype, batch=2, heads_q=4, heads_kv=2, seqlen_q=40, seqlen_k=70, head_dim=32, lse_grad=True)
    changes = (
        {},
        {"softcap": 2.0, "mask": "causal"},
        {"alibi": "heads", "softcap": 15.0, "window_left": 20},
        {"regime": "large", "scale": -0.5},
    )
    more = [
        plain.replace(bias=bias, sink=(index + turn) % 2 == 0 or bias is None, seed=index, **change)
        for index, bias in enumerate((*BIASES, None))
        for turn, change in enumerate(changes[index % 2 :: 2])
    ]
    more += [
        plain.replace(batch=6, lengths=kind, sink=index == 1, seed=index, **change)
        for index, kind in enumerate(PACKINGS)
        for change in changes
    ]
    more += [
        plain.replace(bias=bias, sink=bias is None or index % 2 == 0, dropout=rate, seed=index, **changes[index % 4])
        for index, (bias, rate) in enumerate(zip((*BIASES, None, "full"), (0.1, 0.5, 0.9, 0.17, 1.0, 0.2, 0.0), strict=True))
    ]
    return [c for c in matrix("smoke") if c.dtype == dtype and (c.bias is not None or c.sink)] + more


CASES = [case for dtype in DTYPES for case in several(dtype)]

by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


def honest(case: AttentionCase, inputs: Inputs, *, bias_factor: float = 1.0, without_sink: bool = False) -> Outputs:
    """Attention in float32, step by step, with P, dS and results rounded to the case's dtype; or with a defect."""
    stored = TORCH_DTYPES[case.dtype]
    group = case.group_size
    q, dout = inputs.q.float(), inputs.dout.float()
    k, v = (x.float().repeat_interleave(group, 1) for x in (inputs.k, inputs.v))
    rows, columns = torch.arange(case.seqlen_q), torch.arange(case.seqlen_k)
    entries = torch.arange(case.batch)[:, None, None, None]
    seen, bias = visible_mask(case, entries, rows, columns), dense_bias.expanded(case, inputs)
    x = q @ k.mT * case.softmax_scale
    tanh = None if case.softcap is None else torch.tanh(x / case.softcap)
    s = x if tanh is None else case.softcap * tanh
    if case.alibi is not None:
        s = s + alibi_bias(case, entries, alibi_slope_tensor(case)[..., None, None], rows, columns).float()
    if bias is not None:
        seen, s = seen & dense_bias.shown(bias), s + bias_factor * dense_bias.added(bias).float()
    s = s.masked_fill(~seen, -torch.inf)
    sink = inputs.sink
    used = None if without_sink else sink
    top = s.amax(-1) if used is None else torch.maximum(s.amax(-1), used)
    top = torch.where(top.isinf(), 0.0, top)
    weights = torch.exp(s - top[..., None])
    total = weights.sum(-1)
    total = total if used is None else total + torch.exp(used - top)
    keeps = kept(case, entries, torch.arange(case.heads_q)[:, None, None], rows[:, None], columns)
    keeps = torch.ones_like(weights, dtype=torch.bool) if keeps is None else keeps
    factor = torch.tensor(rescale(case)).float()
    out = _cast(weights * keeps, stored) @ v / torch.where(total == 0, 1.0, total)[..., None]
    out = (out * factor).to(stored)
    lse = top + torch.log(total)

    p = torch.where(seen & ~lse.isinf()[..., None], torch.exp(s - lse[..., None]), 0.0)
    rest = (dout * out.float()).sum(-1)
    rest = rest if inputs.dlse is None else rest - inputs.dlse
    of_logit = p * (dout @ v.mT * keeps * factor - rest[..., None])
    ds = _cast(of_logit if tanh is None else of_logit * (1.0 - tanh * tanh), stored)
    dq, dk = ds @ k * case.softmax_scale, ds.mT @ q * case.softmax_scale
    dv = _cast(p * keeps, stored).mT @ dout * factor
    dk, dv = (x.unflatten(1, (case.heads_kv, group)).sum(2) for x in (dk, dv))
    dbias = dsink = None
    if bias is not None and bias.dtype != torch.bool:
        dbias = dense_bias.summed(case, of_logit).to(stored)
    if sink is not None:
        shares = torch.where(lse.isinf(), 0.0, torch.exp(sink - lse))
        dsink = (shares * -rest).sum((0, 2))[None, :, None]
    return Outputs(out, lse, dq.to(stored), dk.to(stored), dv.to(stored), dbias, dsink)


def _cast(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return values.to(dtype).to(values.dtype)


@dataclasses.dataclass
class Judged:
    """A case's inputs, its truth, and the budgets of the contract that honest arithmetic keeps."""

    case: AttentionCase
    inputs: Inputs
    truth: Outputs
    budget: Outputs


@cache
def judged(case: AttentionCase) -> Judged:
    inputs, contract = draw(case), contract_of(case.dtype, WHOLE_ROWS)
    truth = tiled.attention(case, inputs)
    forward = forward_budget(case, inputs, truth.out, truth.lse, contract)
    gradients = backward_budget(case, inputs, truth.out, truth.lse, contract, forward)
    features = feature_budget(case, inputs, truth.out, truth.lse, contract, forward)
    return Judged(case, inputs, truth, Outputs(forward.out, forward.lse, *gradients, *features))


def beyond(found: Outputs, truth: Outputs, budget: Outputs) -> dict[str, float]:
    """Largest error / budget of each tensor that the budget allows less than."""
    ratios = {}
    for name, value in found.items():
        true, allowed = getattr(truth, name), getattr(budget, name)
        assert value.shape == true.shape == allowed.shape, name
        assert allowed.isfinite().all(), name
        assert (allowed >= 0).all(), name
        error = torch.where(value.double() == true, 0.0, (value.double() - true).abs() * (1 - 1e-9))
        ratio = torch.where(error == 0, 0.0, error / allowed).nan_to_num(nan=torch.inf)
        if ratio.numel() and ratio.max() > 1:
            ratios[name] = ratio.max().item()
    return ratios


@by_case
def test_honest_arithmetic_keeps_its_budgets(case: AttentionCase) -> None:
    """End to end and, of gradients, for the out and lse that it saved."""
    it = judged(case)
    found = honest(case, it.inputs)
    assert {name for name, _ in found.items()} == {name for name, _ in it.truth.items()}
    assert beyond(found, it.truth, it.budget) == {}
    contract, own = contract_of(case.dtype, WHOLE_ROWS), (found.out, found.lse)
    gradients = tiled.backward(case, it.inputs, *own), tiled.feature_gradients(case, it.inputs, *own)
    budgets = backward_budget(case, it.inputs, *own, contract, None), feature_budget(case, it.inputs, *own, contract, None)
    true, allowed = (Outputs(it.truth.out, it.truth.lse, *a, *b) for a, b in (gradients, budgets))
    allowed.out, allowed.lse = it.budget.out, it.budget.lse
    assert beyond(found, true, allowed) == {}


@by_case
def test_budgets_see_planted_defects_of_gradients(case: AttentionCase) -> None:
    it = judged(case)
    found = honest(case, it.inputs)
    for name in OF_FEATURES:
        right = getattr(found, name)
        if right is not None:
            for factor in (2.0, -1.0, 0.0):
                wrong = dataclasses.replace(found, **{name: factor * right})
                assert set(beyond(wrong, it.truth, it.budget)) == {name}, (name, factor)


@by_case
def test_budgets_see_a_bias_that_is_halved_and_a_sink_that_is_left_out(case: AttentionCase) -> None:
    it = judged(case)
    if case.bias not in {None, "mask"}:
        assert {"out", "lse"} <= set(beyond(honest(case, it.inputs, bias_factor=0.5), it.truth, it.budget))
    if case.sink and (case.regime != "large" or case.mask != "full"):  # beside large logits, a sink's share is below roundoff
        assert "lse" in beyond(honest(case, it.inputs, without_sink=True), it.truth, it.budget)


@by_case
def test_budgets_of_features_grow_with_the_cotangents(case: AttentionCase) -> None:
    it, contract = judged(case), contract_of(case.dtype, WHOLE_ROWS)
    larger = dataclasses.replace(
        it.inputs, dout=4 * it.inputs.dout, dlse=None if it.inputs.dlse is None else 4 * it.inputs.dlse
    )
    forward = forward_budget(case, it.inputs, it.truth.out, it.truth.lse, contract)
    grown = feature_budget(case, larger, it.truth.out, it.truth.lse, contract, forward)
    for name, budget in zip(OF_FEATURES, grown, strict=True):
        before = getattr(it.budget, name)
        assert (budget is None) == (before is None)
        if budget is not None:
            assert (budget >= before).all()
            assert (budget > 3 * before)[before > 1e-5].all()
            assert (before > 0).any()


@by_case
def test_modular_budgets_of_features_are_at_most_end_to_end_budgets(case: AttentionCase) -> None:
    it, contract = judged(case), contract_of(case.dtype, WHOLE_ROWS)
    modular = feature_budget(case, it.inputs, it.truth.out, it.truth.lse, contract, None)
    for name, budget in zip(OF_FEATURES, modular, strict=True):
        assert budget is None or (budget <= getattr(it.budget, name)).all(), name


@pytest.mark.parametrize("tile_elements", [1, 37, 333])
@pytest.mark.parametrize("bias", ["full", "batch", "hidden"])
def test_budgets_of_features_do_not_depend_on_tiles(bias: str, tile_elements: int) -> None:
    case = AttentionCase(
        dtype="fp16", batch=2, heads_q=4, heads_kv=2, seqlen_q=7, seqlen_k=9, head_dim=8, bias=bias, sink=True, lse_grad=True
    )
    it, contract = judged(case), contract_of(case.dtype, WHOLE_ROWS)
    forward = forward_budget(case, it.inputs, it.truth.out, it.truth.lse, contract)
    found = feature_budget(case, it.inputs, it.truth.out, it.truth.lse, contract, forward, tile_elements)
    roundings = 2 * case.batch * case.heads_q * case.seqlen_q  # of the same float64 sums in another order
    for name, budget in zip(OF_FEATURES, found, strict=True):
        torch.testing.assert_close(budget, getattr(it.budget, name), rtol=roundings * FP64.unit_roundoff, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sink", [False, True])
def test_nothing_is_allowed_where_nothing_is_seen(dtype: str, sink: bool) -> None:
    """Gradients of pairs that are hidden: no more than underflow in the accumulator, which is nothing beside other budgets."""
    case = AttentionCase(
        dtype=dtype, heads_q=2, seqlen_q=9, seqlen_k=12, head_dim=8, mask="causal", bias="hidden", sink=sink, lse_grad=True
    )
    it = judged(case)
    seen = visible_mask(case, torch.tensor(0), torch.arange(9), torch.arange(12)) & dense_bias.shown(it.inputs.bias)
    hidden = ~seen
    assert hidden[:, :, 0].all()
    assert it.budget.dbias is not None
    assert it.truth.dbias[hidden].eq(0).all()
    assert it.budget.dbias[hidden].max() <= 16 * torch.finfo(torch.float32).smallest_normal
    assert it.budget.dbias[seen.expand_as(hidden)].min() >= 0
    assert (it.budget.dbias[seen & (it.truth.dbias != 0)] > 1e-12).any()
    rows = hidden.all(-1).expand(1, 2, 9)
    for name in ("out", "dq"):  # with a sink, the row sees a key of zeros
        allowed = getattr(it.budget, name)[rows].max()
        assert allowed <= 1e3 * torch.finfo(torch.float32).smallest_normal if sink else allowed == 0, name
