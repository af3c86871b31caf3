"""The dense float64 oracle: whole matrices, on the inputs' device. The fastest for small problems.

    X = scale·QKᵀ,   m_i = max_j X_ij,   p~ = exp(X - m),   l = sum_j p~,   out = (p~·V) / l,   lse = m + ln l

and the backward pass of `flashverify.oracles` with P = exp(X - lse). Exactly these operations, each rounded to
nearest in float64: `numerics.contract.ORACLE_FLOAT64` states the arithmetic, and its a-priori bound covers this code.
With a softcap, cap·tanh(X / cap) takes the place of X (a division, a tanh, a product), and dP - D + dlse is multiplied
by 4e / (1 + e)², e = exp(-2 |X / cap|), before P multiplies it. With alibi, an exact bias is added to X or what took its
place (a sum). With dropout p~ is 0 for dropped pairs where it multiplies V, and so is P in dv; out and dv are multiplied by
dropout's factor at the end (a product), and dP before D is subtracted. With rotary, q and k are turned first: two products
and a sum an element.
It takes memory for several tensors of batch x heads_q x seqlen_q x seqlen_k float64 numbers.

m is 0 in a row that sees no key. Values that are not finite reach what depends on them through a visible pair, and
nothing else: products over masked pairs see zero in their place, and NaN is written where a visible pair was
concerned.
"""

from __future__ import annotations

import torch

from flashverify.cases import dense_bias
from flashverify.cases.case import AttentionCase
from flashverify.cases.rotary import turned_inputs
from flashverify.cases.semantics import alibi_bias, alibi_slope_tensor, cap_slope, capped, key_head, visible_mask
from flashverify.cases.tensors import Inputs, Outputs
from flashverify.dropout.of_case import kept, rescale
from flashverify.oracles.shapes import require_forward, require_inputs


def forward(case: AttentionCase, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Float64 out (batch, heads_q, seqlen_q, value_dim) and lse (batch, heads_q, seqlen_q), differentiable by autograd.

    Raises:
        ValueError: if inputs have other shapes than the case.
    """
    require_inputs(case, inputs)
    heads, seen = _heads(case, inputs.q.device), _visible(case, inputs)
    (q, k), v = turned_inputs(case, inputs), inputs.v.double()[:, heads]
    k = k[:, heads]
    scores = _biased(case, inputs, capped(case, case.softmax_scale * (q @ k.transpose(-2, -1)))).masked_fill(~seen, -torch.inf)
    maximum = scores.amax(-1) if case.seqlen_k else scores.new_full(scores.shape[:-1], -torch.inf)
    if inputs.sink is not None:
        maximum = torch.maximum(maximum, inputs.sink.double())
    maximum = torch.where(maximum == -torch.inf, 0.0, maximum)
    weights = torch.exp(scores - maximum[..., None])
    total = weights.sum(-1)
    if inputs.sink is not None:
        total = total + torch.exp(inputs.sink.double() - maximum)
    out = (_kept(case, weights) @ _finite(v)) / torch.where(total == 0, 1.0, total)[..., None]
    out = out if case.dropout is None else rescale(case) * out
    return _poison(out, seen, v), maximum + torch.log(total)


def backward(
    case: AttentionCase, inputs: Inputs, out: torch.Tensor, lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dq, dk and dv, shaped like q, k and v, float64, for the given out and lse (any float dtype).

    Raises:
        ValueError: if a tensor has another shape than the case says.
    """
    require_inputs(case, inputs)
    require_forward(case, out, lse)
    heads = _heads(case, inputs.q.device)
    q, k, v = inputs.q.double(), inputs.k.double()[:, heads], inputs.v.double()[:, heads]
    dout, out, lse = inputs.dout.double(), out.double(), lse.double()
    seen = _visible(case, inputs) & (lse != -torch.inf)[..., None]
    x = case.softmax_scale * (q @ k.transpose(-2, -1))
    scores = _biased(case, inputs, capped(case, x))
    p = torch.where(seen, torch.exp(scores - lse[..., None]), 0.0)
    delta = (dout * out).sum(-1)[..., None]
    dp = dout @ v.transpose(-2, -1)
    ds = (dp if case.dropout is None else rescale(case) * _kept(case, dp)) - delta
    if inputs.dlse is not None:
        ds = ds + inputs.dlse.double()[..., None]
    if case.softcap is not None:
        ds = ds * cap_slope(case, x)
    ds = torch.where(seen, p * ds, 0.0)
    dq = case.softmax_scale * (ds @ _finite(k))
    dk = case.softmax_scale * (ds.transpose(-2, -1) @ _finite(q))
    dv = _kept(case, p).transpose(-2, -1) @ _finite(dout)
    dv = _poison(dv if case.dropout is None else rescale(case) * dv, seen.transpose(-2, -1), dout)
    return dq, _group_sum(case, dk, heads), _group_sum(case, dv, heads)


def attention(case: AttentionCase, inputs: Inputs) -> Outputs:
    """Forward and backward end to end, float64 on the inputs' device.

    Raises:
        ValueError: if inputs have other shapes than the case.
    """
    out, lse = forward(case, inputs)
    return Outputs(out, lse, *backward(case, inputs, out, lse))


def _heads(case: AttentionCase, device: torch.device) -> torch.Tensor:
    """Key head of each query head, int64 (heads_q,)."""
    return torch.tensor([key_head(case, h) for h in range(case.heads_q)], device=device)


def _indices(case: AttentionCase, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Batch entries (batch, 1, 1, 1), query rows (seqlen_q,) and key columns (seqlen_k,)."""
    sizes = (case.batch, case.seqlen_q, case.seqlen_k)
    entries, rows, columns = (torch.arange(size, device=device) for size in sizes)
    return entries[:, None, None, None], rows, columns


def _kept(case: AttentionCase, values: torch.Tensor) -> torch.Tensor:
    """Values of all pairs (batch, heads_q, seqlen_q, seqlen_k), times 0 where dropout drops a pair: a NaN stays one."""
    entries, rows, columns = _indices(case, values.device)
    heads = torch.arange(case.heads_q, device=values.device)[:, None, None]
    keeps = kept(case, entries, heads, rows[:, None], columns)
    return values if keeps is None else values * keeps


def _visible(case: AttentionCase, inputs: Inputs) -> torch.Tensor:
    """Visibility of every pair, bool, broadcasts against (batch, heads_q, seqlen_q, seqlen_k)."""
    entries, rows, columns = _indices(case, inputs.q.device)
    seen, bias = visible_mask(case, entries, rows, columns), dense_bias.expanded(case, inputs)
    return seen if bias is None else seen & dense_bias.shown(bias)


def _biased(case: AttentionCase, inputs: Inputs, scores: torch.Tensor) -> torch.Tensor:
    """Capped scores (batch, heads_q, seqlen_q, seqlen_k) with the biases added; themselves where there are none."""
    bias = dense_bias.expanded(case, inputs)
    if bias is not None:
        scores = scores + dense_bias.added(bias)
    if case.alibi is None:
        return scores
    entries, rows, columns = _indices(case, scores.device)
    slopes = alibi_slope_tensor(case, scores.device)[..., None, None]
    return scores + alibi_bias(case, entries, slopes, rows, columns)


def _group_sum(case: AttentionCase, gradients: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
    """(batch, heads_q, ...) summed over the query heads of each group: (batch, heads_kv, ...)."""
    return torch.stack([gradients[:, heads == head].sum(1) for head in range(case.heads_kv)], dim=1)


def _finite(values: torch.Tensor) -> torch.Tensor:
    """The values with zero in place of NaN and infinity, so that a weight of zero can multiply them."""
    return torch.where(torch.isfinite(values), values, 0.0)


def _poison(product: torch.Tensor, pairs: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """NaN in the product (.., I, D) where a pair (.., I, J) leads to a non-finite value of the factor (.., J, D)."""
    wild = ~torch.isfinite(factor)
    if not wild.any():
        return product
    return product.masked_fill(pairs.double() @ wild.double() > 0, torch.nan)
