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


def _position(case: AttentionCase) -> int:
    """The key at which query 0 stands: bottom-right alignment, so that the last query stands at the last key; top-left: 0."""
    return 0 if case.mask == "causal-topleft" else case.seqlen_k - case.seqlen_q


def _reaches_all(case: AttentionCase, side: int) -> bool:
    """Whether a side of a window reaches beyond every key from every query: it is no limit, whatever its size."""
    return side >= case.seqlen_q + case.seqlen_k


def causal_offset(case: AttentionCase) -> int | None:
    """Query i sees no key after i + this offset, by a causal mask or a window; None: there is no such limit."""
    right = 0 if case.mask != "full" else case.window_right
    return None if right is None or _reaches_all(case, right) else _position(case) + right


def first_offset(case: AttentionCase) -> int | None:
    """Query i sees no key before i + this offset, by a window; None: there is no such limit."""
    left = case.window_left
    return None if left is None or _reaches_all(case, left) else _position(case) - left


def limited(case: AttentionCase) -> bool:
    """Whether visibility is limited: by a causal mask, or by a window that does not reach every key."""
    return causal_offset(case) is not None or first_offset(case) is not None


def visible(case: AttentionCase, i: int, j: int) -> bool:
    """Whether query row i sees key column j (scalar form)."""
    last, first = causal_offset(case), first_offset(case)
    return (last is None or j <= i + last) and (first is None or j >= i + first)


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

    last, first = causal_offset(case), first_offset(case)
    seen = torch.ones(rows.numel(), columns.numel(), dtype=torch.bool, device=rows.device)
    if last is not None:
        seen &= columns[None, :] <= rows[:, None] + last
    if first is not None:
        seen &= columns[None, :] >= rows[:, None] + first
    return seen


def key_head(case: AttentionCase, query_head: int) -> int:
    """The key head that a query head reads."""
    return query_head // case.group_size
