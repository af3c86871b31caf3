"""Biases as tensors, masks of pairs, and sinks: what they are and what they do, in scalar and in vectorised form.

A bias is added to the capped logit, after a linear bias; -inf there hides the pair, as False does in a mask. The sink is one
more logit of each query head's softmax, in the denominator alone: lse is the logarithm of the sum with it, and a row that sees
no key has out = 0 and an lse that is the sink.
"""

from __future__ import annotations

import math

import torch

from flashverify.cases.case import AttentionCase
from flashverify.cases.tensors import Inputs


def shape(case: AttentionCase) -> tuple[int, int, int, int] | None:
    """The shape of a case's bias as it is stored, with 1 where it is broadcast over batch, heads or rows; None: it has none.

    "full": over nothing. "heads": over the batch. "batch": over heads and rows. "hidden", with infinite entries, over batch and
    heads. "mask", a boolean one, over heads.
    """
    if case.bias is None:
        return None
    over_batch, over_heads, over_rows = {
        "full": (False, False, False),
        "heads": (True, False, False),
        "batch": (False, True, True),
        "hidden": (True, True, False),
        "mask": (False, True, False),
    }[case.bias]
    return (
        1 if over_batch else case.batch,
        1 if over_heads else case.heads_q,
        1 if over_rows else case.seqlen_q,
        case.seqlen_k,
    )


def expanded(case: AttentionCase, inputs: Inputs) -> torch.Tensor | None:
    """The bias or mask as a view (batch, heads_q, seqlen_q, seqlen_k), or None."""
    if inputs.bias is None:
        return None
    return inputs.bias.expand(case.batch, case.heads_q, case.seqlen_q, case.seqlen_k)


def shown(block: torch.Tensor) -> torch.Tensor:
    """Which pairs of a block of a bias or mask take part, bool."""
    return block if block.dtype == torch.bool else block != -torch.inf


def added(block: torch.Tensor) -> torch.Tensor:
    """What a block of a bias or mask adds to logits, float64; 0 where it hides a pair, and for a mask."""
    if block.dtype == torch.bool:
        return torch.zeros_like(block, dtype=torch.float64)
    return block.double().masked_fill(block == -torch.inf, 0.0)


def shown_scalar(inputs: Inputs, batch: int, head: int, i: int, j: int) -> bool:
    """Whether a pair takes part (scalar form of `shown`)."""
    return inputs.bias is None or _entry(inputs.bias, batch, head, i, j) != -math.inf


def added_scalar(inputs: Inputs, batch: int, head: int, i: int, j: int) -> float:
    """What is added to the logit of a pair that takes part (scalar form of `added`)."""
    return 0.0 if inputs.bias is None else _entry(inputs.bias, batch, head, i, j)


def _entry(bias: torch.Tensor, *place: int) -> float:
    """A bias, by index; 0 or -inf for a mask's True or False."""
    value = bias[tuple(0 if size == 1 else index for index, size in zip(place, bias.shape, strict=True))].item()
    if bias.dtype == torch.bool:
        return 0.0 if value else -math.inf
    return float(value)


def summed(case: AttentionCase, gradient: torch.Tensor) -> torch.Tensor:
    """A gradient of every pair (batch, heads_q, seqlen_q, seqlen_k), summed over what the bias is broadcast over."""
    stored = shape(case)
    assert stored is not None
    over = [axis for axis, (kept, size) in enumerate(zip(stored, gradient.shape, strict=True)) if kept == 1 != size]
    return gradient.sum(over, keepdim=True) if over else gradient


def summands(case: AttentionCase) -> int:
    """How many pairs each element of a bias is added to."""
    stored = shape(case)
    assert stored is not None
    whole = case.batch * case.heads_q * case.seqlen_q
    return whole // max(1, stored[0] * stored[1] * stored[2])
