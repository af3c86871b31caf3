"""A case of ordinary size and its logits, for the tests of regimes."""

from __future__ import annotations

import math

import torch

from flashverify.cases.case import AttentionCase
from flashverify.cases.semantics import visible_mask
from flashverify.cases.tensors import Inputs


def case_of(regime: str, **changes: object) -> AttentionCase:
    case = AttentionCase(
        dtype="bf16",
        batch=2,
        heads_q=4,
        heads_kv=2,
        seqlen_q=70,
        seqlen_k=75,
        head_dim=64,
        regime=regime,
        lse_grad=True,
    )
    return case.replace(**changes)


def logits(case: AttentionCase, inputs: Inputs) -> torch.Tensor:
    """scale·QKᵀ in float64, -inf where masked: (batch, heads_q, seqlen_q, seqlen_k)."""
    k = inputs.k.double().repeat_interleave(case.group_size, dim=1)
    mask = visible_mask(case, torch.tensor(0), torch.arange(case.seqlen_q), torch.arange(case.seqlen_k))
    return (case.softmax_scale * inputs.q.double() @ k.mT).masked_fill(~mask, -math.inf)
