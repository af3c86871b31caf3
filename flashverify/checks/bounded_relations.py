"""Relations that hold in real numbers, and of a kernel within the sum of its hard budgets B.

    <dq, q> = <dk, k>       sum of dS∘S, by entry and group                  |.| <= <B_dq, |q|> + <B_dk, |k|>
    <dv, v> = <dout, out>   sum of dout∘P∘v                                  |.| <= <B_dv, |v|> + <B_out, |dout|>
    sum_j dv_j = sum_i dout_i                                                |.| <= sum_j B_dv
    sum_j dk_j = scale sum_i dlse_i q_i        for sum_j dS_ij = dlse_i      |.| <= sum_j B_dk
    sum dbias + sum dsink = sum_i dlse_i       the same, of all logits       |.| <= sum B_dbias + sum B_dsink
    v = 1  =>  out = 1, dq = dk = 0            rows of P sum to 1            |.| <= B_out, B_dq, B_dk
    f(keys in another order) = f               but for dk and dv, in that order   |.| <= B + B'

Rows i are those that see a key. Sums of n numbers are formed in float64, within (n + 1) 2^-52 times the sum of sizes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator

import torch

from flashverify.cases.case import AttentionCase
from flashverify.cases.semantics import limited
from flashverify.cases.tensors import Inputs
from flashverify.checks.examination import Examination
from flashverify.checks.related import Claim, bounded, close, on, seen_pairs
from flashverify.numerics.formats import FP64
from flashverify.records.relations import Relation


def dq_and_dk(examination: Examination) -> Iterator[Relation]:
    """<dq, q> = <dk, k> of each entry and group: both are the sum of dS times what a softcap has of S inside."""
    of, budget = _doubles(examination), bounded(examination)
    if budget is None:
        return
    rows, row_bound = _inner(examination.case, of["dq"], of["q"], budget.dq)
    keys, key_bound = _inner(examination.case, of["dk"], of["k"], budget.dk)
    yield close(DQ_AND_DK, "dq, dk", rows, keys, row_bound + key_bound)


def dv_and_out(examination: Examination) -> Iterator[Relation]:
    """<dv, v> = <dout, out> of each entry and group."""
    of, budget = _doubles(examination), bounded(examination)
    if budget is None:
        return
    keys, key_bound = _inner(examination.case, of["dv"], of["v"], budget.dv)
    rows, row_bound = _inner(examination.case, of["out"], of["dout"], budget.out)
    yield close(DV_AND_OUT, "dv, out", keys, rows, key_bound + row_bound)


def dv_summed(examination: Examination) -> Iterator[Relation]:
    """Sum of dv over keys = sum of dout over the rows that see a key: weights of a row sum to 1."""
    of, budget, case = _doubles(examination), bounded(examination), examination.case
    if budget is None or budget.dv is None:
        return
    expected, slack = _summed(_by_group(case, of["dout"] * _sighted(examination)[..., None]), 2)
    total, own = _summed(of["dv"], 2)
    yield close(DV_SUMMED, "dv", total, expected, budget.dv.sum(2) + slack + own)


def dk_summed(examination: Examination) -> Iterator[Relation]:
    """Sum of dk over keys = scale times the sum of dlse_i q_i: dS of a row sums to dlse_i."""
    of, budget, case = _doubles(examination), bounded(examination), examination.case
    if budget is None or budget.dk is None:
        return
    terms = torch.zeros_like(of["q"])
    if examination.inputs.dlse is not None:
        terms = case.softmax_scale * (examination.inputs.dlse.double() * _sighted(examination))[..., None] * of["q"]
    expected, slack = _summed(_by_group(case, terms), 2)
    total, own = _summed(of["dk"], 2)
    yield close(DK_SUMMED, "dk", total, expected, budget.dk.sum(2) + slack + own)


def dbias_summed(examination: Examination) -> Iterator[Relation]:
    """Sum of dbias, and of dsink, = sum of dlse over the rows that have a logit."""
    outputs, budget, drawn = examination.outputs, bounded(examination), examination.inputs
    if budget is None or budget.dbias is None or outputs.dbias is None:
        return
    total, slack = _summed(outputs.dbias.double().flatten(), 0)
    bound = budget.dbias.sum() + slack
    if outputs.dsink is not None and budget.dsink is not None:
        more, own = _summed(outputs.dsink.double().flatten(), 0)
        total, bound = total + more, bound + budget.dsink.sum() + own
    has_logit = _sighted(examination) | (drawn.sink is not None)
    expected = torch.zeros_like(total)
    if drawn.dlse is not None:
        expected, own = _summed((drawn.dlse.double() * has_logit).flatten(), 0)
        bound = bound + own
    yield close(DBIAS_SUMMED, "dbias, dsink", total, expected, bound)


def ones(examination: Examination) -> Iterator[Relation]:
    """Values of 1: out is 1, or 0 in a row that sees no key; without dlse, dq and dk are 0."""
    case, drawn = examination.case, examination.inputs
    other = on(examination, dataclasses.replace(drawn, v=torch.ones_like(drawn.v)))
    budget = bounded(other)
    if budget is None:
        return
    out = other.outputs.out
    yield close(ONES, "out", out, _sighted(examination)[..., None].double().expand_as(out), budget.out)
    if case.forward_only or drawn.dlse is not None:
        return
    for tensor in ("dq", "dk"):
        value = getattr(other.outputs, tensor)
        yield close(ONES, tensor, value, torch.zeros_like(value), getattr(budget, tensor))


def permuted_keys(examination: Examination) -> Iterator[Relation]:
    """Keys and values in another order, where every row sees all of them."""
    case, drawn = examination.case, examination.inputs
    digest = hashlib.sha256(f"keys/{case.id}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
    order = torch.randperm(case.seqlen_k, generator=generator).to(drawn.k.device)
    other = on(examination, dataclasses.replace(drawn, k=drawn.k[:, :, order], v=drawn.v[:, :, order]))
    mine, theirs = bounded(examination), bounded(other)
    if mine is None or theirs is None:
        return
    for tensor in ("out", "lse", "dq", "dk", "dv"):
        value, before, bound = (getattr(x, tensor) for x in (other.outputs, examination.outputs, mine))
        if value is None or (tensor == "lse" and not examination.kernel.returns_lse):
            continue
        if tensor in {"dk", "dv"}:
            before, bound = before[:, :, order], bound[:, :, order]
        yield close(KEYS_PERMUTED, tensor, value, before, bound + getattr(theirs, tensor))


def _doubles(examination: Examination) -> dict[str, torch.Tensor]:
    """Inputs and outputs that there are, in float64."""
    inputs: Inputs = examination.inputs
    found = {name: getattr(inputs, name) for name in ("q", "k", "v", "dout")} | dict(examination.outputs.items())
    return {name: x.double() for name, x in found.items()}


def _by_group(case: AttentionCase, x: torch.Tensor) -> torch.Tensor:
    """A tensor with a row for each query row, (batch, heads_kv, rows of the group, d)."""
    return x.reshape(case.batch, case.heads_kv, -1, x.shape[-1])


def _inner(
    case: AttentionCase, value: torch.Tensor, factor: torch.Tensor, budget: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inner products by entry and group, (batch, heads_kv), and how far off they may be."""
    assert budget is not None  # of an output that there is
    shape = (case.batch, case.heads_kv, -1)
    total, slack = _summed((value * factor).reshape(shape), 2)
    return total, (budget * factor.abs()).reshape(shape).sum(2) + slack


def _summed(terms: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A sum in float64, and its rounding error at most: 2^-52 of the sum of sizes a term, the term's own rounding included."""
    return terms.sum(axis), 2.0 * FP64.unit_roundoff * (terms.shape[axis] + 1) * terms.abs().sum(axis)


def _sighted(examination: Examination) -> torch.Tensor:
    """Which rows see a key, bool (batch, heads_q, seqlen_q)."""
    return seen_pairs(examination.case, examination.inputs).any(-1)


DQ_AND_DK = "dq with q, dk with k"
DV_AND_OUT = "dv with v, out with dout"
DV_SUMMED = "dv summed over keys"
DK_SUMMED = "dk summed over keys"
DBIAS_SUMMED = "dbias summed"
ONES = "values of 1"
KEYS_PERMUTED = "keys in another order"

BOUNDED_CLAIMS = (
    Claim(DQ_AND_DK, "<dq, q> = <dk, k>", lambda case: not case.forward_only, dq_and_dk, costs=False),
    Claim(DV_AND_OUT, "<dv, v> = <dout, out>", lambda case: not case.forward_only, dv_and_out, costs=False),
    Claim(
        DV_SUMMED,
        "sum_j dv_j = sum_i dout_i",
        lambda case: not (case.forward_only or case.sink or case.dropout is not None),
        dv_summed,
        costs=False,
    ),
    Claim(
        DK_SUMMED,
        "sum_j dk_j = scale sum_i dlse_i q_i",
        lambda case: not (case.forward_only or case.sink or case.softcap is not None),
        dk_summed,
        costs=False,
    ),
    Claim(
        DBIAS_SUMMED,
        "sum dbias + sum dsink = sum_i dlse_i",
        lambda case: case.bias not in {None, "mask"},
        dbias_summed,
        costs=False,
    ),
    Claim(ONES, "v = 1  =>  out = 1, dq = dk = 0", lambda case: not case.sink and case.dropout is None, ones),
    Claim(
        KEYS_PERMUTED,
        "f of keys in another order = f",
        lambda case: (
            not limited(case)
            and case.seqlen_k > 1
            and (case.alibi, case.bias, case.dropout, case.lengths, case.cache) == (None,) * 5
        ),
        permuted_keys,
    ),
)
"""docs/relations.md has them in full."""
