"""A function with flash-attn's signature for packed sequences, in plain torch, sequence by sequence; and its defects."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch

from flashverify.adapters.contracts import flash_attention
from flashverify.adapters.packing import run_packed
from flashverify.cases.case import AttentionCase
from flashverify.cases.tensors import Inputs, Outputs
from flashverify.numerics.contract import Contract

CPU = torch.device("cpu")


def bounds(cu_seqlens, seqused):
    """First row of each sequence, and the row after its last."""
    starts = cu_seqlens.tolist()
    stretches = [after - before for before, after in pairwise(starts)]
    used = stretches if seqused is None else [min(pair) for pair in zip(seqused.tolist(), stretches, strict=True)]
    return [(start, start + length) for start, length in zip(starts[:-1], used, strict=True)]


def one_sequence(q, k, v, softmax_scale, causal, window_size, softcap, slopes, sink, top_left=False):
    """Out (Nq, Hq, Dv) and lse (Hq, Nq) of one sequence, in float64."""
    rows, keys = q.shape[0], k.shape[0]
    group = q.shape[1] // k.shape[1]
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    k, v = (x.repeat_interleave(group, 0) for x in (k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    distance = torch.arange(rows)[:, None] + (0 if top_left else keys - rows) - torch.arange(keys)
    if slopes is not None:
        scores = scores - slopes.double()[:, None, None] * distance.abs()
    left, right = window_size
    right = 0 if causal else right
    seen = torch.ones_like(distance, dtype=torch.bool)
    if right >= 0:
        seen &= distance >= -right
    if left >= 0:
        seen &= distance <= left
    logits = scores.masked_fill(~seen, -math.inf)
    if sink is not None:
        logits = torch.cat([logits, sink.double()[:, None, None].expand(-1, rows, 1)], -1)
    elif keys == 0:
        return (q @ k.mT @ v).transpose(0, 1), (q * 0.0).sum(-1) - math.inf
    alive = (logits > -math.inf).any(-1, keepdim=True)
    lse = torch.logsumexp(logits.masked_fill(~alive, 0.0), -1, keepdim=True)
    p = torch.where(alive & seen, torch.exp(scores.masked_fill(~seen, 0.0) - lse), 0.0)
    return (p @ v).transpose(0, 1), torch.where(alive, lse, -math.inf).squeeze(-1)


def varlen(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    return_attn_probs=False,
    learnable_sink=None,
    seqused_q=None,
    seqused_k=None,
    *,
    top_left=False,
    further_key=0,
    slopes_of_first=False,
    garbage=0.0,
    garbage_lse=-math.inf,
):
    """Healthy by default: out (rows, Hq, Dv) and lse (Hq, rows) of the inputs' dtype and float32, by the definition."""
    assert return_attn_probs
    assert (cu_seqlens_q.dtype, cu_seqlens_k.dtype) == (torch.int32, torch.int32)
    of_q, of_k = bounds(cu_seqlens_q, seqused_q), bounds(cu_seqlens_k, seqused_k)
    assert max((b - a for a, b in of_q), default=0) <= max_seqlen_q
    assert max((b - a for a, b in of_k), default=0) <= max_seqlen_k
    out = torch.full((q.shape[0], q.shape[1], v.shape[2]), garbage, dtype=torch.float64)
    lse = torch.full((q.shape[1], q.shape[0]), garbage_lse, dtype=torch.float64)
    nothing = sum(x.narrow(0, 0, 0).double().sum() for x in (q, k, v))  # connects out and lse to leaves that no one reads
    if learnable_sink is not None:
        nothing = nothing + learnable_sink.narrow(0, 0, 0).double().sum()
    out, lse = out + nothing, lse + nothing
    for b, ((q0, q1), (k0, k1)) in enumerate(zip(of_q, of_k, strict=True)):
        slopes = alibi_slopes
        if slopes is not None and slopes.ndim == 2:
            slopes = slopes[0 if slopes_of_first else b]
        keys = slice(k0, min(k1 + further_key, k.shape[0]))
        one, its_lse = one_sequence(
            *(q[q0:q1], k[keys], v[keys], softmax_scale, causal, window_size, softcap, slopes, learnable_sink, top_left)
        )
        rows = torch.arange(q0, q1)
        out, lse = out.index_copy(0, rows, one), lse.index_copy(1, rows, its_lse)
    return out.to(q.dtype), lse.to(torch.float64 if q.dtype == torch.float64 else torch.float32), None


def whole_stretches(*args, seqused_q=None, seqused_k=None, **options):
    """All keys of each stretch instead of those in use."""
    del seqused_k
    return varlen(*args, seqused_q=seqused_q, **options)


class Leaky(torch.autograd.Function):
    """Passes a tensor on, and adds to the gradient of its last row."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        gradient[-1:] += 1.0
        return gradient


def leaks_into(name: str) -> Callable[..., object]:
    """The healthy function, with something in the gradient of the last packed row of q, k or v."""

    def function(q, k, v, *args, **options):
        leaves = {"q": q, "k": k, "v": v}
        return varlen(*(Leaky.apply(x) if name == of else x for of, x in leaves.items()), *args, **options)

    return function


def overwrites(*args, **options):
    """The healthy function, which writes behind the end of k."""
    result = varlen(*args, **options)
    k = args[1].detach()
    k.as_strided((1,), (1,), k.storage_offset() + k.numel()).fill_(0.0)
    return result


class PackedKernel:
    """A kernel around such a function; other cases are declined."""

    returns_lse = True
    saves_outputs = False
    predictable = True
    sources = None
    device = CPU

    def __init__(self, function: Callable[..., object] = varlen, **defect: object) -> None:
        self.name = "packed"
        self._function, self._defect = function, defect

    def declines(self, case: AttentionCase) -> str | None:
        return None if case.lengths is not None else "padded sequences"

    def contract(self, case: AttentionCase) -> Contract:
        return flash_attention(case.dtype, CPU, block_q=None, block_k=16, block_k_exact=False)

    def configuration(self, case: AttentionCase) -> dict[str, str]:
        return {}

    def run(self, case: AttentionCase, inputs: Inputs) -> Outputs:
        from flashverify.cases.semantics import alibi_slope_tensor

        slopes = None if case.alibi is None else alibi_slope_tensor(case).float()
        return run_packed(
            self._function,
            case,
            inputs,
            softmax_scale=case.scale,
            causal=case.mask == "causal",
            window_size=tuple(-1 if side is None else side for side in (case.window_left, case.window_right)),
            softcap=case.softcap or 0.0,
            alibi_slopes=slopes,
            **self._defect,
        )
