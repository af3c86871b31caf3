"""The mathematical definition of attention that every oracle uses.

    S = scale·QKᵀ,   P_ij = exp(S_ij - lse_i) for visible (i, j), else 0,   lse_i = ln sum_j exp(S_ij),   out = P·V

Visibility is stated once in scalar form (for mpmath and balls) and once vectorised (for float64); a test holds them
equal. A row that sees no key has out = 0, lse = -inf and zero gradients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flashverify.cases.case import AttentionCase

if TYPE_CHECKING:
    import torch


def causal_offset(case: AttentionCase) -> int | None:
    """The last key that query 0 sees (query i sees keys 0 .. i + offset), or None if there is no causal mask.

    Bottom-right alignment: seqlen_k - seqlen_q, so that the last query sees the last key. Top-left: 0.
    """
    if case.mask == "causal":
        return case.seqlen_k - case.seqlen_q
    if case.mask == "causal-topleft":
        return 0
    return None


def visible(case: AttentionCase, i: int, j: int) -> bool:
    """Whether query row i sees key column j (scalar form)."""
    offset = causal_offset(case)
    return offset is None or j <= i + offset


def visible_mask(case: AttentionCase, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Whether each query row sees each key column (vectorised form).

    Args:
        case: the case.
        rows: integer tensor (R,) of query rows.
        columns: integer tensor (C,) of key columns, on the same device.

    Returns:
        bool tensor (R, C).
    """
    import torch

    offset = causal_offset(case)
    if offset is None:
        return torch.ones(rows.numel(), columns.numel(), dtype=torch.bool, device=rows.device)
    return columns[None, :] <= rows[:, None] + offset


def key_head(case: AttentionCase, query_head: int) -> int:
    """The key head that a query head reads."""
    return query_head // case.group_size
