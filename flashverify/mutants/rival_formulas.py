"""Attention by the plain formula, in one precision or mixed ones: what other projects' tests compare kernels with.

These are references of rules to be judged, no truth: `oracles/` is that. They build whole matrices.
"""

from __future__ import annotations

import torch

from flashverify.cases import dense_bias
from flashverify.cases.case import AttentionCase
from flashverify.cases.semantics import alibi_bias, alibi_slope_tensor, capped, visible_mask
from flashverify.cases.tensors import Inputs, Outputs, has_gradients
from flashverify.dropout.of_case import kept, rescale


def plain(
    case: AttentionCase,
    inputs: Inputs,
    dtype: torch.dtype,
    *,
    softmax: torch.dtype | None = None,
    scaled_keys: bool = False,
) -> Outputs:
    """Out, lse and all gradients, every step by torch in one dtype, gradients by its autograd.

    Linear biases and sinks are float32 numbers: a 16-bit row of scores becomes float32 where they join it, until the softmax is
    done. A row that sees no key has out = 0, an lse that is -inf or its sink, and no gradients.

    Args:
        case: the case.
        inputs: its inputs, on any device.
        dtype: that of every tensor and step.
        softmax: the softmax's own dtype, if it has one; its weights are rounded to `dtype`.
        scaled_keys: whether the scale multiplies keys, before the product with queries, and not the product.

    Returns:
        Outputs in `dtype`; gradients are None where there is no backward pass.

    Raises:
        ValueError: if the case decodes from a cache.
    """
    if case.cache is not None:
        raise ValueError(f"cache: got {case.cache!r}, accepted is None: the plain formula knows no cache")
    wide = torch.promote_types(dtype, torch.float32)
    q, k, v = (x.to(dtype).requires_grad_() for x in _copies(inputs.q, inputs.k, inputs.v))
    bias, sink = _leaves(inputs, dtype, wide)
    keys, values = (x.repeat_interleave(case.group_size, 1) for x in (k, v))
    scores = q @ (keys * case.softmax_scale).mT if scaled_keys else (q @ keys.mT) * case.softmax_scale
    logits, empty = _logits(case, inputs, scores if softmax is None else scores.to(softmax), bias, sink)
    weights = _weights(logits, empty, sink).to(dtype)
    keeps = _keeps(case, weights)
    out = (weights if keeps is None else weights.masked_fill(~keeps, 0.0)) @ (values * rescale(case))
    lse = torch.logsumexp(logits, -1).to(wide).masked_fill(empty, -torch.inf)
    leaves = {"dq": q, "dk": k, "dv": v, "dbias": bias, "dsink": sink}
    gradients = {name: leaf for name, leaf in leaves.items() if leaf is not None and leaf.requires_grad}
    ends, cotangents = [out], [inputs.dout.to(dtype)]
    if inputs.dlse is not None:
        ends, cotangents = [*ends, lse], [*cotangents, inputs.dlse.to(wide)]
    found = torch.autograd.grad(ends, list(gradients.values()), cotangents)
    return Outputs(out.detach(), lse.detach(), **dict(zip(gradients, found, strict=True)))


def mixed(case: AttentionCase, inputs: Inputs, out: torch.Tensor | None = None, *, rounded_heads: bool = False) -> Outputs:
    """The formula in float32, but what enters a product rounded to the inputs' dtype, as fused kernels do.

    P is rounded before it meets v and dO, scale·dS before it meets k and q; D is the row sum of dO·out, of the given out or of
    the rounded one that is found here.

    Args:
        case: the case.
        inputs: its inputs, on any device.
        out: a kernel's own out, (batch, heads_q, seqlen_q, value_dim), for D; by default what is found here.
        rounded_heads: whether dk and dv of each query head are rounded before they are summed over a group.

    Returns:
        Outputs rounded to the inputs' dtype; lse and dsink in float32.
    """
    dtype, wide = inputs.q.dtype, torch.promote_types(inputs.q.dtype, torch.float32)
    q, dout = inputs.q.to(wide), inputs.dout.to(wide)
    k, v = (x.to(wide).repeat_interleave(case.group_size, 1) for x in (inputs.k, inputs.v))
    scores = ((q @ k.mT) * case.softmax_scale).requires_grad_()
    bias, sink = _leaves(inputs, wide, wide)
    logits, empty = _logits(case, inputs, scores, bias, sink)
    weights = _weights(logits.detach(), empty, None, keep_sink=True)
    shown = weights[..., : case.seqlen_k]
    factors = _factors(case, shown)
    found = (shown * (factors != 0)).to(dtype).to(wide) @ (v * rescale(case))
    lse = torch.logsumexp(logits.detach(), -1).masked_fill(empty, -torch.inf)
    delta = (dout * (found.to(dtype) if out is None else out).to(wide)).sum(-1, keepdim=True)
    dweights = torch.zeros_like(weights)
    dweights[..., : case.seqlen_k] = (dout @ v.mT) * factors
    dlogits = weights * (dweights - delta + (0.0 if inputs.dlse is None else inputs.dlse.to(wide)[..., None]))
    wanted = {"scores": scores, "dbias": bias, "dsink": sink}
    leaves = {name: leaf for name, leaf in wanted.items() if leaf is not None and leaf.requires_grad}
    gradients = dict(zip(leaves, torch.autograd.grad(logits, list(leaves.values()), dlogits), strict=True))
    dscores = (gradients.pop("scores") * case.softmax_scale).to(dtype).to(wide)
    groups = (case.batch, case.heads_kv, case.group_size, case.seqlen_k, -1)
    dk, dv = (
        x.to(dtype if rounded_heads else wide).reshape(groups).sum(2)
        for x in (dscores.mT @ q, (shown * factors).to(dtype).to(wide).mT @ dout)
    )
    return rounded(Outputs(found, lse, dscores @ k, dk, dv, **gradients), dtype)


def rounded(outputs: Outputs, dtype: torch.dtype) -> Outputs:
    """Outputs rounded to a dtype, but for lse and dsink."""
    return Outputs(**{name: x if name in {"lse", "dsink"} else x.to(dtype) for name, x in outputs.items()})


def _copies(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [x.detach().clone() for x in tensors]


def _leaves(inputs: Inputs, dtype: torch.dtype, wide: torch.dtype) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Copies of bias and sink to differentiate by; a mask stays what it is."""
    bias, sink = inputs.bias, inputs.sink
    if bias is not None and has_gradients(inputs)[0]:
        bias = bias.detach().clone().to(dtype).requires_grad_()
    return bias, None if sink is None else sink.detach().clone().to(wide).requires_grad_()


def _logits(
    case: AttentionCase, inputs: Inputs, scores: torch.Tensor, bias: torch.Tensor | None, sink: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What goes into the softmax, with the sink as the last column, and which rows have nothing there (they get zeros)."""
    device = scores.device
    sizes = (case.batch, case.seqlen_q, case.seqlen_k)
    entries, rows, columns = (torch.arange(size, device=device) for size in sizes)
    entries = entries[:, None, None, None]
    wide = torch.promote_types(scores.dtype, torch.float32)
    seen = visible_mask(case, entries, rows, columns).expand(scores.shape)
    logits = capped(case, scores)
    if bias is not None:
        seen = seen & dense_bias.shown(bias)
        logits = logits if bias.dtype == torch.bool else logits + bias
    if case.alibi is not None:
        slopes = alibi_slope_tensor(case, device)[..., None, None]
        logits = logits + alibi_bias(case, entries, slopes, rows, columns).to(wide)
    logits = logits.masked_fill(~seen, -torch.inf)
    empty = ~seen.any(-1)
    if sink is not None:
        logits = torch.cat((logits.to(wide), sink[..., None].expand(*logits.shape[:-1], 1)), -1)
        empty = torch.zeros_like(empty)
    return logits.masked_fill(empty[..., None], 0.0), empty


def _weights(logits: torch.Tensor, empty: torch.Tensor, sink: torch.Tensor | None, *, keep_sink: bool = False) -> torch.Tensor:
    """The softmax of each row, zeros where it has nothing; without the sink's column, unless it is to be kept."""
    weights = torch.softmax(logits, -1).masked_fill(empty[..., None], 0.0)
    return weights if keep_sink or sink is None else weights[..., :-1]


def _keeps(case: AttentionCase, weights: torch.Tensor) -> torch.Tensor | None:
    """Which pairs dropout keeps, bool, or None: there is no dropout."""
    sizes = (case.batch, case.heads_q, case.seqlen_q, case.seqlen_k)
    entries, heads, rows, columns = (torch.arange(size, device=weights.device) for size in sizes)
    return kept(case, entries[:, None, None, None], heads[:, None, None], rows[:, None], columns)


def _factors(case: AttentionCase, weights: torch.Tensor) -> torch.Tensor:
    """What dropout multiplies each weight by: 0, or the rescaling; ones without dropout."""
    keeps = _keeps(case, weights)
    return torch.ones_like(weights) if keeps is None else keeps * torch.full_like(weights, rescale(case))
