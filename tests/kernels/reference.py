"""Attention in plain float64 torch, and how far a float64 kernel may be from it.

The bounds are those of standard error analysis (Higham, Accuracy and Stability of Numerical Algorithms, ch. 3): a sum of
n products in any order is within gamma(n)·Σ|a||b| of the truth, gamma(n) = n·u / (1 - n·u), u = 2^-53. Kernel and
reference both round, so their distance is within twice the bound. `_CONSTANT` stands for the operations that are not part
of a sum: a handful of products, an exponential of at most 4 ulp, a division.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

UNIT = torch.finfo(torch.float64).eps / 2.0
_CONSTANT = 32


def gamma(n: int) -> float:
    """Relative error of n roundings in a row."""
    return n * UNIT / (1.0 - n * UNIT)


@dataclass(frozen=True)
class Attention:
    """Results (B, H, N, D) and (B, H, N), each with the largest distance that a float64 kernel may have from it.

    Attributes:
        values: out, lse, dq, dk, dv by name; dbias and dsink, where there are a floating bias and sinks.
        allowed: the distances, by the same names.
    """

    values: dict[str, torch.Tensor]
    allowed: dict[str, torch.Tensor]

    def worst(self, name: str, computed: torch.Tensor) -> float:
        """The largest distance as a share of what is allowed; an equal element counts 0, also where it is infinite."""
        expected, allowed = self.values[name], self.allowed[name]
        if computed.shape != expected.shape:
            raise ValueError(f"{name}: got shape {tuple(computed.shape)}, expected {tuple(expected.shape)}")
        distance = torch.where(computed == expected, 0.0, (computed - expected).abs())
        share = torch.where(distance == 0.0, 0.0, distance / allowed).nan_to_num(nan=math.inf)
        return share.max().item() if share.numel() else 0.0


def visible(
    seqlen_q: int, seqlen_k: int, causal_offset: int | None, first_offset: int | None, device: torch.device
) -> torch.Tensor:
    """Which key (column) each query (row) sees: those from its index + first_offset on, up to its index + causal_offset."""
    distance = torch.arange(seqlen_k, device=device)[None, :] - torch.arange(seqlen_q, device=device)[:, None]
    first = -seqlen_q if first_offset is None else first_offset
    last = seqlen_k if causal_offset is None else causal_offset
    return (first <= distance) & (distance <= last)


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dout: torch.Tensor,
    dlse: torch.Tensor | None = None,
    scale: float | None = None,
    causal_offset: int | None = None,
    first_offset: int | None = None,
    softcap: float | None = None,
    alibi: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
) -> Attention:
    """Forward and backward of q (B, Hq, Nq, D), k and v (B, Hkv, Nk, D), from the definition.

    bias: (1|B, 1|Hq, 1|Nq, Nk), floating or bool; sink: (Hq,); weight: of dropout (B, Hq, Nq, Nk), 0 where a pair is dropped,
    else the rescaling factor.

    The products of one tensor's absolute values stand beside every product: that is what its rounding error is measured in.
    """
    q, k, v, dout = (x.detach().double() for x in (q, k, v, dout))
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    (seqlen_q, head_dim), seqlen_k = q.shape[2:], k.shape[2]
    scale = 1.0 / math.sqrt(head_dim) if scale is None else scale
    dlse = torch.zeros(q.shape[:3], dtype=q.dtype, device=q.device) if dlse is None else dlse.double()

    seen = visible(seqlen_q, seqlen_k, causal_offset, first_offset, q.device)
    scores = q @ k.mT * scale
    tanh, slope = torch.zeros_like(scores), torch.ones_like(scores)
    if softcap is not None:
        tanh, slope = torch.tanh(scores / softcap), torch.cosh((scores / softcap).clamp(-300, 300)) ** -2
        scores = softcap * tanh
    bias_size = torch.zeros_like(scores)
    if alibi is not None:
        places = torch.arange(seqlen_q, device=q.device)[:, None] + seqlen_k - seqlen_q
        slopes_times = alibi.double()[..., None, None] * (places - torch.arange(seqlen_k, device=q.device)).abs()
        bias_size, scores = slopes_times.abs(), scores - slopes_times
    if bias is not None:
        seen = seen & (bias if bias.dtype == torch.bool else bias != -math.inf)
        if bias.dtype != torch.bool:
            added = bias.detach().double().masked_fill(bias == -math.inf, 0.0)
            bias_size, scores = bias_size + added.abs(), scores + added
    scores = scores.masked_fill(~seen, -math.inf)
    lse = torch.logsumexp(scores, -1)
    sinks = None if sink is None else sink.detach().double()[None, :, None]
    if sinks is not None:
        lse = torch.logaddexp(lse, sinks)
    p = torch.exp(scores - torch.where(lse == -math.inf, 0.0, lse)[..., None])
    weight = torch.ones_like(p) if weight is None else weight
    out = (weight * p) @ v

    # The largest |scale|·Σ|q||k| of a row bounds its scores, their distance from the row's maximum, and lse up to log(Nk).
    # A sink counts like one more score. A cap moves no score by more than it was moved, and is itself a few roundings off.
    sizes = (abs(scale) * (q.abs() @ k.abs().mT) + (softcap or 0.0) * tanh.abs() + bias_size) * seen
    size = sizes.amax(-1, keepdim=True) if seqlen_k else torch.zeros_like(lse)[..., None]
    if sinks is not None:
        size = torch.maximum(size, torch.where(sinks == -math.inf, 0.0, sinks.abs())[..., None])
    weight_error = torch.expm1(gamma(2 * head_dim + _CONSTANT) * size) + gamma(5 * seqlen_k + _CONSTANT)
    out_error = 2.0 * weight_error * ((weight * p) @ v.abs())
    lse_size = torch.where(lse > -math.inf, size.squeeze(-1) + math.log(seqlen_k + 1), 0.0)
    lse_error = weight_error.squeeze(-1) + gamma(_CONSTANT) * lse_size

    p_error = (torch.expm1(lse_error) + weight_error.squeeze(-1) + gamma(_CONSTANT) * lse_size)[..., None]
    delta = (dout * out).sum(-1, keepdim=True) - dlse[..., None]
    delta_size = (dout.abs() * out.abs()).sum(-1, keepdim=True) + dlse.abs()[..., None]
    ds = p * (weight * (dout @ v.mT) - delta)
    difference_size = weight * (dout.abs() @ v.abs().mT) + delta_size
    difference_error = gamma(head_dim + _CONSTANT) * difference_size + (dout.abs() * out_error).sum(-1, keepdim=True)
    ds_error = p * (2.0 * p_error * difference_size + difference_error)
    values, errors = {}, {}
    if bias is not None and bias.dtype != torch.bool:
        summed = math.prod(ds.shape) // max(1, bias.numel())
        values["dbias"] = ds.sum_to_size(bias.shape)
        errors["dbias"] = (ds_error + gamma(summed + _CONSTANT) * ds.abs()).sum_to_size(bias.shape)
    if sinks is not None:
        share = torch.where(lse > -math.inf, torch.exp(sinks - lse), 0.0)
        delta_error = (dout.abs() * out_error).sum(-1) + gamma(v.shape[3] + _CONSTANT) * delta_size.squeeze(-1)
        terms = share * delta.squeeze(-1)
        terms_error = share * (p_error.squeeze(-1) * delta_size.squeeze(-1) + delta_error)
        values["dsink"] = -terms.sum((0, 2))
        errors["dsink"] = (terms_error + gamma(terms.shape[0] * seqlen_q + _CONSTANT) * terms.abs()).sum((0, 2))
    if softcap is not None:
        slope_error = 2.0 * gamma(2 * head_dim + _CONSTANT) * (sizes / softcap + 1.0)
        ds_error = ds_error * (slope + slope_error) + ds.abs() * slope_error
        ds = ds * slope
    dq = scale * ds @ k
    dq_error = abs(scale) * ((ds_error + gamma(seqlen_k + _CONSTANT) * ds.abs()) @ k.abs())
    rows = gamma(group * seqlen_q + _CONSTANT)
    dk = scale * ds.mT @ q
    dk_error = abs(scale) * ((ds_error + rows * ds.abs()).mT @ q.abs())
    dv = (weight * p).mT @ dout
    dv_error = ((p_error + rows) * weight * p).mT @ dout.abs()

    def per_key_head(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(1, (-1, group)).sum(2)

    values |= {"out": out, "lse": lse, "dq": dq, "dk": per_key_head(dk), "dv": per_key_head(dv)}
    dk_error, dv_error = per_key_head(dk_error), per_key_head(dv_error)
    errors |= {"out": out_error, "lse": lse_error, "dq": dq_error, "dk": dk_error, "dv": dv_error}
    return Attention(values, {name: 2.0 * error for name, error in errors.items()})
