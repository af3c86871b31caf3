"""The sharp budget of a case, and where it does not apply.

The model takes errors of distinct operations for independent. Where they are not, it says nothing: a tier that does not apply
to a case says why, and the hard budget alone decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flashverify.cases.case import AttentionCase
from flashverify.cases.semantics import key_head, visible_mask
from flashverify.cases.tensors import Inputs
from flashverify.numerics.contract import Contract
from flashverify.numerics.sharp_backward import backward_spread
from flashverify.numerics.sharp_forward import ForwardSpread, forward_spread
from flashverify.numerics.spread import Spread, factor

__all__ = ["ForwardSpread", "Spread", "backward_spread", "factor", "forward_spread", "inapplicable", "inapplicable_to"]

SAMPLED_LINES = 16
"""Rows and columns of a head's score matrix that are searched for repeated logits: spread evenly over it."""


def inapplicable(case: AttentionCase, inputs: Inputs, contract: Contract) -> str | None:
    """Why the sharp model says nothing of a case, or None (docs/numerics.md, section 14)."""
    reason = _untold(contract)
    if reason is not None:
        return reason
    if case.seqlen_q == 0 or case.seqlen_k == 0:
        return "no pair of a query and a key"
    if case.softmax_scale == 0.0:
        return "all logits are 0: equal weights are rounded alike"
    repeated = _repeated_logits(case, inputs)
    return None if repeated is None else f"logits repeat within {repeated}: equal weights are rounded alike"


def _untold(contract: Contract) -> str | None:
    """Why the model says nothing of a kernel with this contract, or None."""
    if contract.operand is not None:
        return f"operands are rounded to {contract.operand.name}: one error for all keys of a row"
    if contract.prescaled:
        return "q or k is scaled and rounded before the product: one error for all keys of a row"
    if contract.block_k is not None and not contract.block_k_exact:
        return "the walk over key blocks is not known: which weights are rounded is not either"
    return None


def inapplicable_to(tensor: str, case: AttentionCase, contract: Contract) -> str | None:
    """Why the sharp model says nothing of one tensor of a case that it otherwise applies to, or None."""
    if tensor in {"dk", "dv"} and contract.group_partials and case.group_size > 1:
        return "each query head's share is rounded before the sum over its group"
    return None


@dataclass(frozen=True, slots=True)
class _Sample:
    """Evenly spread lines of a head: indices on a device."""

    indices: torch.Tensor

    @classmethod
    def of(cls, length: int, device: torch.device) -> _Sample:
        count = min(length, SAMPLED_LINES)
        return cls(torch.linspace(0, length - 1, count, device=device).round().long())


def _repeated_logits(case: AttentionCase, inputs: Inputs) -> str | None:
    """Where equal logits were found among those that are seen: "a row", "a column", or None.

    Rows that see fewer than two keys repeat nothing. Scores are exact to float64: equal inputs give equal ones.
    """
    device = inputs.q.device
    rows, columns = _Sample.of(case.seqlen_q, device).indices, _Sample.of(case.seqlen_k, device).indices
    every_row = torch.arange(case.seqlen_q, device=device)
    every_column = torch.arange(case.seqlen_k, device=device)
    for head in range(case.heads_q):
        q, k = inputs.q[:, head].double(), inputs.k[:, key_head(case, head)].double()
        if _repeats(q[:, rows] @ k.mT, visible_mask(case, rows, every_column)):
            return "a row"
        if _repeats(k[:, columns] @ q.mT, visible_mask(case, every_row, columns).mT):
            return "a column"
    return None


def _repeats(scores: torch.Tensor, seen: torch.Tensor) -> bool:
    """Whether a line of scores (batch, lines, length) holds two equal ones that are seen."""
    ordered = scores.masked_fill(~seen, torch.inf).sort(-1).values
    return bool(((ordered[..., 1:] == ordered[..., :-1]) & ordered[..., 1:].isfinite()).any())
