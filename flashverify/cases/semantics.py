"""The mathematical definition of attention that every oracle uses.

    X = scale·QKᵀ,   S = cap·tanh(X / cap) with a softcap, else X;   S_ij - slope·|i + seqlen_k - seqlen_q - j| with alibi
    P_ij = exp(S_ij - lse_i) for visible (i, j), else 0,   lse_i = ln sum_j exp(S_ij),   out = P·V

Where sequences have lengths of their own (`lengths.py`), rows and keys beyond them exist in no tensor but the case's padded
ones: no such row sees a key, no row sees such a key, and seqlen_k - seqlen_q is the difference of the entry's own lengths.
In a cache with left pads the first keys of an entry are seen by nobody; alignment and biases count from the cache's front all
the same. Rotary embedding, which turns rows of q and k before, is stated in `rotary.py`.
Visibility, the cap and the bias are each stated once in scalar form (for mpmath and balls) and once vectorised (for float64);
tests hold them equal. A row that sees no key has out = 0, lse = -inf and zero gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Context
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from flashverify.cases.caches import left_pads
from flashverify.cases.case import AttentionCase
from flashverify.cases.lengths import lengths, lengths_of

if TYPE_CHECKING:
    import torch

Number: TypeAlias = Any
"""A number of mpmath's, or a ball."""


def _position(case: AttentionCase, batch: int) -> int:
    """The key at which query 0 of a batch entry stands: bottom-right, the last query at the last key; top-left: 0."""
    if case.mask == "causal-topleft":
        return 0
    queries, keys = lengths_of(case, batch)
    return keys - queries


def _positions(case: AttentionCase, entries: torch.Tensor) -> torch.Tensor | int:
    """`_position` of each batch entry of a tensor, or one number where all have the same."""
    if case.lengths is None:
        return _position(case, 0)
    queries, keys = _lengths_of(case, entries)
    return keys - queries


def _lengths_of(case: AttentionCase, entries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of queries and of keys of batch entries, each shaped like them."""
    import torch

    table = torch.tensor(lengths(case), dtype=torch.int64, device=entries.device).reshape(case.batch, 2)
    return table[entries, 0], table[entries, 1]


def _reaches_all(case: AttentionCase, side: int) -> bool:
    """Whether a side of a window reaches beyond every key from every query: it is no limit, whatever its size."""
    return side >= case.seqlen_q + case.seqlen_k


def sides(case: AttentionCase) -> tuple[int | None, int | None]:
    """How many keys before and after its own position a query sees at most; None: there is no such limit."""
    left, right = case.window_left, 0 if case.mask != "full" else case.window_right
    return (
        None if left is None or _reaches_all(case, left) else left,
        None if right is None or _reaches_all(case, right) else right,
    )


def causal_offset(case: AttentionCase, batch: int = 0) -> int | None:
    """Query i sees no key after i + this offset, by a causal mask or a window; None: there is no such limit.

    Args:
        case: the case.
        batch: the batch entry; without `lengths` all have the same offset.
    """
    right = sides(case)[1]
    return None if right is None else _position(case, batch) + right


def first_offset(case: AttentionCase, batch: int = 0) -> int | None:
    """Query i sees no key before i + this offset, by a window; None: there is no such limit. Arguments of `causal_offset`."""
    left = sides(case)[0]
    return None if left is None else _position(case, batch) - left


def limited(case: AttentionCase) -> bool:
    """Whether visibility is limited: by a causal mask, or by a window that does not reach every key."""
    return sides(case) != (None, None)


def by_entry(case: AttentionCase) -> bool:
    """Whether which keys a row sees differs between batch entries."""
    return case.lengths is not None or case.left_pad


def visible(case: AttentionCase, batch: int, i: int, j: int) -> bool:
    """Whether query row i of a batch entry sees key column j (scalar form)."""
    queries, keys = lengths_of(case, batch)
    last, first = causal_offset(case, batch), first_offset(case, batch)
    inside = i < queries and j < keys and (not case.left_pad or j >= left_pads(case)[batch])
    return inside and (last is None or j <= i + last) and (first is None or j >= i + first)


def visible_mask(case: AttentionCase, entries: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Whether each query row sees each key column (vectorised form).

    Args:
        case: the case.
        entries: integer tensor of batch entries that broadcasts against (R, C): () for one of them, or (E, 1, 1).
        rows: integer tensor (R,) of query rows.
        columns: integer tensor (C,) of key columns; all on one device.

    Returns:
        bool tensor (R, C), or (..., R, C) for entries of other dimensions where they differ (`by_entry`).
    """
    import torch

    left, right = sides(case)
    row = rows[:, None]
    if case.lengths is None:
        seen = torch.ones(rows.numel(), columns.numel(), dtype=torch.bool, device=rows.device)
    else:
        queries, keys = _lengths_of(case, entries)
        seen = (row < queries) & (columns < keys)
    if case.left_pad:
        pads = torch.tensor(left_pads(case), dtype=torch.int64, device=entries.device)
        seen = seen & (columns >= pads[entries])
    own = row + _positions(case, entries)
    if right is not None:
        seen &= columns <= own + right
    if left is not None:
        seen &= columns >= own - left
    return seen


def exists(case: AttentionCase, entries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor | None:
    """Which query rows are rows of their batch entry's sequence, or None: all are.

    Args:
        case: the case.
        entries: integer tensor of batch entries that broadcasts against (R, 1).
        rows: integer tensor (R,) of query rows, on the same device.

    Returns:
        bool tensor (..., R, 1).
    """
    return None if case.lengths is None else rows[:, None] < _lengths_of(case, entries)[0]


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


def alibi_slopes(case: AttentionCase) -> list[list[float]]:
    """The slope of each batch entry and query head, float32 numbers: batch lists of heads_q; zeros without alibi.

    "heads": 2^(-8 (h + 1) / heads_q) in every batch entry (Press, Smith and Lewis, arXiv 2108.12409), but 0 in head
    heads_q // 2 of three or more. "batch": the same times (1 + batch entry) / 2, so that entries differ, but 0 in that head of
    the last entry alone, where there are three heads or two entries. Decimal arithmetic gives the same numbers everywhere.
    """
    return [list(slopes) for slopes in _alibi_slopes(case.alibi, case.batch, case.heads_q)]


@lru_cache(maxsize=64)
def _alibi_slopes(alibi: str | None, batch: int, heads: int) -> tuple[tuple[float, ...], ...]:
    decimal, by_entry = Context(prec=40), alibi == "batch"
    zero_at = heads // 2 if heads >= 3 or (by_entry and batch >= 2) else None

    def slope(b: int, h: int) -> float:
        if alibi is None or (h == zero_at and (b == batch - 1 or not by_entry)):
            return 0.0
        steepness = decimal.power(2, decimal.divide(-8 * (h + 1), heads))
        return float(np.float32(decimal.multiply(steepness, decimal.divide(1 + b if by_entry else 2, 2))))

    return tuple(tuple(slope(b, h) for h in range(heads)) for b in range(batch))


def alibi_slope_tensor(case: AttentionCase, device: torch.device | str = "cpu") -> torch.Tensor:
    """`alibi_slopes` as a float64 tensor (batch, heads_q), which float32 holds exactly too."""
    import torch

    return torch.tensor(alibi_slopes(case), dtype=torch.float64, device=device).reshape(case.batch, case.heads_q)


def alibi_scalar(case: AttentionCase, batch: int, head: int, i: int, j: int) -> float:
    """The bias of query row i of a query head and key column j, which is added to the capped logit (scalar form).

    -slope·|distance| from the key at which the query stands. Exact: 24 bits of a slope times a distance below 2^29.
    """
    return -_alibi_slopes(case.alibi, case.batch, case.heads_q)[batch][head] * abs(i + _position(case, batch) - j)


def alibi_bias(
    case: AttentionCase, entries: torch.Tensor, slopes: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """The biases of query rows and key columns (vectorised form of `alibi_scalar`), exact too.

    Args:
        case: the case.
        entries: integer tensor of the batch entries, which broadcasts against the slopes.
        slopes: float64 tensor of slopes that broadcasts against (R, C): (batch, heads_q, 1, 1), or (R, 1), one a row.
        rows: integer tensor (R,) of query rows.
        columns: integer tensor (C,) of key columns; all on one device.

    Returns:
        float64 tensor (..., R, C).
    """
    return -slopes * (rows[:, None] + _positions(case, entries) - columns).abs()
