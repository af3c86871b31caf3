"""The comparison can fail: each planted defect of an oracle's source is caught by some small problem."""

from __future__ import annotations

import functools
import inspect
import types

import pytest

from flashverify.oracles import ball, dense, tiled
from tests.oracles.support import PROBLEMS, draw, end_to_end_bound, worst_ratios

SIGNED = "(rows[:, None] + case.seqlen_k - case.seqlen_q - columns[None, :])"
SLOPES = "slopes[stacked // case.seqlen_q, None]"
STACKED = f"{SLOPES}, stacked % case.seqlen_q"
DENSE_KEPT = "kept(case, entries, heads, rows[:, None], columns)"
TILED_KEPT = "kept(case, torch.tensor(b, device=device), heads[:, None], (stacked % case.seqlen_q)[:, None], columns)"
FEATURE_KEPT = "kept(case, entries, of_heads, rows[:, None], columns)"
SINKS_BY_ROW = "inputs.sink.double()[0, heads].repeat(case.seqlen_q, 1)"

DEFECTS = [
    (dense, "key_head(case, h)", "(h % case.heads_kv)"),
    (dense, "visible_mask(case, entries, rows, columns)", "visible_mask(case, entries, rows, columns - 1)"),
    (dense, "visible_mask(case, entries, rows, columns)", "visible_mask(case, entries[:1], rows, columns)"),
    (dense, "alibi_bias(case, entries, slopes", "alibi_bias(case, entries[-1:], slopes"),
    (tiled, "visible_mask(case, entry, rows, columns)", "visible_mask(case, 0 * entry, rows, columns)"),
    (tiled, "alibi_bias(case, entry, ", "alibi_bias(case, 0 * entry, "),
    (dense, "_kept(case, dp)) - delta", "_kept(case, dp))"),
    (dense, "ds = ds + inputs.dlse", "ds = ds - inputs.dlse"),
    (dense, "dq = case.softmax_scale * (ds", "dq = abs(case.softmax_scale) * (ds"),
    (dense, "dk = case.softmax_scale * (ds", "dk = (ds"),
    (dense, "maximum + torch.log(total)", "torch.log(total)"),
    (dense, "weights.sum(-1)", "weights.float().sum(-1).double()"),
    (dense, "scores - lse[..., None]", "scores - lse.float()[..., None]"),
    (dense, "ds = torch.where(seen, p * ds, 0.0)", "ds = torch.where(seen, p.float() * ds, 0.0)"),
    (dense, "heads == head", "heads >= head"),
    (dense, "ds * cap_slope(case, x)", "ds"),
    (dense, "cap_slope(case, x)", "cap_slope(case, scores)"),
    (dense, "cap_slope(case, x)", "(1 - (x / case.softcap).tanh() ** 2)"),
    (dense, "scores = _biased(case, inputs, capped(case, x))", "scores = _biased(case, inputs, x)"),
    (dense, "capped(case, case.softmax_scale * (q @ k.transpose(-2, -1)))", "(case.softmax_scale * (q @ k.transpose(-2, -1)))"),
    (dense, "scores + alibi_bias", "scores - alibi_bias"),
    (dense, "alibi_bias(case, entries, slopes, rows, columns)", f"-slopes * {SIGNED}"),
    (dense, "alibi_bias(case, entries, slopes, rows, columns)", "-slopes * (rows[:, None] - columns[None, :]).abs()"),
    (dense, "alibi_slope_tensor(case, scores.device)", "alibi_slope_tensor(case, scores.device)[:, _heads(case, None)]"),
    (dense, "alibi_slope_tensor(case, scores.device)", "alibi_slope_tensor(case, scores.device)[:1]"),
    (dense, "scores = _biased(case, inputs, capped(case, x))", "scores = capped(case, _biased(case, inputs, x))"),
    (
        dense,
        "_biased(case, inputs, capped(case, case.softmax_scale * (q @ k.transpose(-2, -1))))",
        "capped(case, _biased(case, inputs, case.softmax_scale * (q @ k.transpose(-2, -1))))",
    ),
    (dense, "scores = _biased(case, inputs, capped(case, x))", "scores = capped(case, x)"),
    (dense, "cap_slope(case, x)", "cap_slope(case, _biased(case, inputs, x))"),
    (dense, "lse = inputs.dout.double(), out.double()", "lse = inputs.dout.double(), out.double() * 1.0000000001"),
    (tiled, "key_head(case, h) == g", "h % case.heads_kv == g"),
    (tiled, "device=device) % case.seqlen_q", "device=device)"),
    (tiled, ".sub_(stacked_delta[rows])", ""),
    (tiled, ".add_(stacked_dlse[rows])", ""),
    (tiled, "dk[b, g] *= case.softmax_scale", "pass"),
    (tiled, "dk[b, g] += ds.T", "dk[b, g] = ds.T"),
    (tiled, "dv[b, g] += (p", "dv[b, g] = (p"),
    (tiled, "range(0, total, height)", "range(0, total - height, height)"),
    (tiled, "(top + length.log())", "(top + length.float().log())"),
    (tiled, "ds.mul_(slope)", "pass"),
    (tiled, "cap_slope(case, x)", "cap_slope(case, x).float()"),
    (tiled, "scores = _biased(case, b, capped(case, x), ", "scores = _biased(case, b, x.clone(), "),
    (tiled, "scores.add_(alibi_bias", "scores.sub_(alibi_bias"),
    (
        tiled,
        f"alibi_bias(case, entry, {STACKED}, columns)",
        f"-{SLOPES} * {SIGNED.replace('rows', '(stacked % case.seqlen_q)')}",
    ),
    (
        tiled,
        f"alibi_bias(case, entry, {STACKED}, columns)",
        f"-{SLOPES} * ((stacked % case.seqlen_q)[:, None] - columns[None, :]).abs()",
    ),
    (tiled, "slopes[b, members]", "slopes[b, [g] * len(members)]"),
    (tiled, "slopes[b, members]", "slopes[0, members]"),
    (tiled, f"alibi_bias(case, entry, {STACKED}, columns)", f"alibi_bias(case, entry, {SLOPES}, stacked, columns)"),
    (tiled, "scores = _biased(case, b, capped(case, x), slopes[b, members], rows)", "scores = capped(case, x)"),
    (
        tiled,
        "scores = _biased(case, b, capped(case, x), slopes[b, members], rows)",
        "scores = capped(case, _biased(case, b, x, slopes[b, members], rows))",
    ),
    (dense, "scores + dense_bias.added(bias)", "scores + 0.5 * dense_bias.added(bias)"),
    (dense, "scores + dense_bias.added(bias)", "scores"),
    (dense, "seen & dense_bias.shown(bias)", "seen & ~dense_bias.shown(bias)"),
    (dense, "seen & dense_bias.shown(bias)", "seen | dense_bias.shown(bias)"),
    (dense, "seen if bias is None else seen & dense_bias.shown(bias)", "seen"),
    (dense, "total = total + torch.exp(inputs.sink.double() - maximum)", "pass"),
    (dense, "total + torch.exp(inputs.sink.double() - maximum)", "total + torch.exp(inputs.sink.double())"),
    (tiled, "scores.add_(dense_bias.added(block))", "scores.add_(0.5 * dense_bias.added(block))"),
    (tiled, "scores.add_(dense_bias.added(block))", "scores"),
    (
        tiled,
        "scores = _biased(case, b, capped(case, x), slopes[b, members], rows)\n"
        "            alive, scores = _with_bias(case, bias, b, members, rows, alive, scores)",
        "alive, scores = _with_bias(case, bias, b, members, rows, alive, x.clone())\n"
        "            scores = _biased(case, b, capped(case, scores), slopes[b, members], rows)",
    ),
    (
        tiled,
        "scores = capped(case, (stacked_q[rows] @ k[b, g].T).mul_(case.softmax_scale))\n"
        "            scores = _biased(case, b, scores, slopes[b, members], rows)\n"
        "            sees, scores = _with_bias(case, bias, b, members, rows, visible, scores)",
        "scores = (stacked_q[rows] @ k[b, g].T).mul_(case.softmax_scale)\n"
        "            sees, scores = _with_bias(case, bias, b, members, rows, visible, scores)\n"
        "            scores = _biased(case, b, capped(case, scores), slopes[b, members], rows)",
    ),
    (tiled, "sees & dense_bias.shown(block)", "sees & ~dense_bias.shown(block)"),
    (tiled, "sees & dense_bias.shown(block)", "sees"),
    (tiled, "bias[b, heads[stacked // case.seqlen_q]", "bias[0, heads[stacked // case.seqlen_q]"),
    (tiled, "heads[stacked // case.seqlen_q], stacked % case.seqlen_q]", "members[0], stacked % case.seqlen_q]"),
    (tiled, "heads[stacked // case.seqlen_q], stacked % case.seqlen_q]", "heads[stacked // case.seqlen_q], 0]"),
    (tiled, "length = length + (sinks - top).exp()", "pass"),
    (tiled, "lse = lse.logaddexp(inputs.sink.double())", "pass"),
    (tiled, "inputs.sink.double()[0, heads].repeat_interleave(case.seqlen_q, 0)", SINKS_BY_ROW),
    (tiled, "shares * rest", "shares * -rest"),
    (tiled, "(inputs.sink.double() - lse).exp()", "inputs.sink.double().exp()"),
    (tiled, "(shares * rest).sum((0, 2))", "(shares * rest)[:1].sum((0, 2))"),
    (tiled, "scores = capped(case, case.softmax_scale * (q @ k.mT))", "scores = case.softmax_scale * (q @ k.mT)"),
    (tiled, "(scores + dense_bias.added(bias) - lse[..., None])", "(scores - lse[..., None])"),
    (tiled, "(dp + rest[..., None])", "dp"),
    (
        tiled,
        "visible_mask(case, entries, rows, columns) & dense_bias.shown(bias)",
        "visible_mask(case, entries, rows, columns)",
    ),
    (tiled, "dense_bias.summed(case, gradient)", "0.5 * dense_bias.summed(case, gradient)"),
    (dense, "rescale(case) * out", "out"),
    (dense, "rescale(case) * out", "out / (1 - case.dropout)"),
    (dense, "rescale(case) * _kept(case, dp)", "_kept(case, dp)"),
    (dense, "rescale(case) * dv", "dv"),
    (dense, "(_kept(case, weights) @ _finite(v))", "(weights @ _finite(v))"),
    (dense, "total = weights.sum(-1)", "total = _kept(case, weights).sum(-1)"),
    (dense, "rescale(case) * _kept(case, dp)) - delta", "rescale(case) * dp) - delta"),
    (
        dense,
        "ds = (dp if case.dropout is None else rescale(case) * _kept(case, dp)) - delta",
        "ds = dp - delta if case.dropout is None else _kept(case, rescale(case) * dp - delta)",
    ),
    (dense, "ds = torch.where(seen, p * ds, 0.0)", "ds = torch.where(seen, _kept(case, p) * ds, 0.0)"),
    (dense, "delta = (dout * out).sum(-1)[..., None]", "delta = (p * (dout @ v.mT)).sum(-1)[..., None]"),
    (dense, "_kept(case, p).transpose(-2, -1)", "p.transpose(-2, -1)"),
    (dense, DENSE_KEPT, "kept(case, entries, heads, columns[:, None], rows).mT if case.dropout is not None else None"),
    (dense, DENSE_KEPT, "kept(case, 0 * entries, heads, rows[:, None], columns)"),
    (dense, DENSE_KEPT, "kept(case, entries, 0 * heads, rows[:, None], columns)"),
    (dense, DENSE_KEPT, "kept(case, entries, heads // case.group_size, rows[:, None], columns)"),
    (dense, DENSE_KEPT, "kept(case.replace(heads_q=case.heads_q + case.heads_kv), entries, heads, rows[:, None], columns)"),
    (dense, DENSE_KEPT, "kept(case, entries, heads, rows[:, None], columns + 1)"),
    (dense, DENSE_KEPT, "kept(case.replace(seed=case.seed + 1), entries, heads, rows[:, None], columns)"),
    (dense, "values * keeps", "values * ~keeps"),
    (tiled, ".mul_(rescale(case))\n            if wild", "\n            if wild"),
    (tiled, "ds.mul_(keeps).mul_(rescale(case))", "ds.mul_(keeps)"),
    (tiled, "dv[b, g] *= rescale(case)", "pass"),
    (tiled, "weights = weights if keeps is None else weights.mul_(keeps)", "pass"),
    (tiled, "ds = ds if keeps is None else ds.mul_(keeps).mul_(rescale(case))", "ds.mul_(rescale(case))"),
    (tiled, "(p if keeps is None else p * keeps).T", "p.T"),
    (tiled, TILED_KEPT, TILED_KEPT.replace("stacked % case.seqlen_q", "stacked")),
    (tiled, TILED_KEPT, TILED_KEPT.replace("heads[:, None]", "0 * heads[:, None]")),
    (tiled, TILED_KEPT, TILED_KEPT.replace("torch.tensor(b", "torch.tensor(0")),
    (
        tiled,
        "torch.tensor(members, device=device)[stacked // case.seqlen_q]",
        "torch.tensor(members, device=device)[0 * stacked]",
    ),
    (tiled, "dp = dp if keeps is None else rescale(case) * (dp * keeps)", "pass"),
    (tiled, FEATURE_KEPT, "kept(case, entries, 0 * of_heads, rows[:, None], columns)"),
    (
        tiled,
        "capped(case, (stacked_q[rows] @ k[b, g].T).mul_(case.softmax_scale))",
        "capped(case, stacked_q[rows] @ k[b, g].T).mul_(case.softmax_scale)",
    ),
]


@functools.cache
def truths():
    found = []
    for example in PROBLEMS:
        inputs = draw(example)
        enclosure = ball.attention(example.case, inputs)
        found.append((example.case, inputs, enclosure, end_to_end_bound(example.case, inputs, enclosure.mid)))
    return found


def worst_of(module: types.ModuleType, source: str, **options) -> float:
    """The largest ratio over all problems of an oracle with that source; a crash is a finding too."""
    altered = types.ModuleType(f"{module.__name__}_altered")
    exec(compile(source, altered.__name__, "exec"), altered.__dict__)
    worst = 0.0
    for case, inputs, enclosure, bound in truths():
        found = altered.attention(case, inputs, **options)
        worst = max(worst, *worst_ratios(found, enclosure, bound).values())
    return worst


@pytest.mark.parametrize(("module", "right", "wrong"), DEFECTS, ids=[f"{m.__name__[-5:]}:{w}" for m, _, w in DEFECTS])
def test_a_defect_is_caught(module, right, wrong):
    source = inspect.getsource(module)
    assert source.count(right) >= 1, "the defect's place is gone: plant it anew"
    options = {"tile_elements": 12} if module is tiled else {}
    assert worst_of(module, source.replace(right, wrong), **options) > 1


@pytest.mark.parametrize("module", [dense, tiled], ids=["dense", "tiled"])
def test_unaltered_source_passes(module):
    options = {"tile_elements": 12} if module is tiled else {}
    assert worst_of(module, inspect.getsource(module), **options) <= 1
