"""The mathematical definition of attention that every oracle uses.

    X = scale·QKᵀ,   S = cap·tanh(X / cap) with a softcap, else X
    P_ij = exp(S_ij - lse_i) for visible (i, j), else 0,   lse_i = ln sum_j exp(S_ij),   out = P·V

Visibility and the cap are each stated once in scalar form (for mpmath and balls) and once vectorised (for float64);
tests hold them equal. A row that sees no key has out = 0, lse = -inf and zero gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from flashverify.cases.case import AttentionCase

if TYPE_CHECKING:
    import torch

Number: TypeAlias = Any
"""A number of mpmath's, or a ball."""


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


def capped_scalar(case: AttentionCase, x: Number, tanh: Callable[[Number], Number]) -> Number:
    """The logit of a scaled score x: cap·tanh(x / cap), or x itself without a cap (scalar form).

    Args:
        case: the case.
        x: scale·q·k, a number that takes float64 factors as exact.
        tanh: the hyperbolic tangent of such numbers.
    """
    return x if case.softcap is None else case.softcap * tanh(x / case.softcap)


def cap_slope_scalar(case: AttentionCase, x: Number, sech: Callable[[Number], Number]) -> Number:
    """The derivative of `capped_scalar` by x: 1 - tanh²(x / cap), as sech², which does not cancel; 1 without a cap.

    Args:
        case: the case.
        x: scale·q·k, a number that takes float64 factors as exact.
        sech: the hyperbolic secant of such numbers.
    """
    if case.softcap is None:
        return 1
    root = sech(x / case.softcap)
    return root * root  # the power of a ball about zero can be NaN


def capped(case: AttentionCase, x: torch.Tensor) -> torch.Tensor:
    """The logits of scaled scores, cap·tanh(x / cap), or x itself without a cap (vectorised form of `capped_scalar`).

    Differentiable by autograd, whose derivative 1 - tanh² cancels where tanh is near 1, other than `cap_slope`.

    Args:
        case: the case.
        x: float64 tensor of scale·q·k; infinite ones become the cap, with their sign.
    """
    return x if case.softcap is None else case.softcap * (x / case.softcap).tanh()


def cap_slope(case: AttentionCase, x: torch.Tensor) -> torch.Tensor:
    """The derivative of `capped` by x, elementwise (vectorised form of `cap_slope_scalar`); ones without a cap.

    4e / (1 + e)² with e = exp(-2 |x| / cap), which is 1/cosh²(x / cap), neither cancels nor overflows.
    """
    if case.softcap is None:
        return x.new_ones(x.shape)
    e = (-2 * (x / case.softcap).abs()).exp()
    return 4 * e / (1 + e) ** 2
