"""Rotary position embedding (RoPE, Su et al., arXiv 2104.09864) of queries, and of the keys that a call appends to a cache.

    x'_a = x_a·cos - x_b·sin,   x'_b = x_b·cos + x_a·sin,   cos and sin of (position, pair (a, b))

The first R columns take part, the others stay; pair p is columns (p, p + R / 2) ("half", GPT-NeoX) or (2p, 2p + 1)
("interleaved", GPT-J). The key at place j of a cache, counted from its front, left pad or not, has position j; keys that are in
the cache before the call have been turned by then, and stay. Query i has position L + i under a causal mask or a window of any
size, else L, where L is the number of keys in the cache before the call: the rules of flash-attn's `flash_attn_with_kvcache`.

Cosines and sines are numbers of the case's dtype, as a user of that function passes them: exact, whatever angle they are of.
So the rotation is a part of the definition, and all that a kernel rounds is its own error (docs/numerics.md, lemma 17). The
scalar form is for mpmath and balls, the vectorised one for float64; tests hold them equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import mpmath
import numpy as np
import torch

from flashverify.cases.caches import appended, cached
from flashverify.cases.case import SMALLEST_ROTARY, AttentionCase
from flashverify.cases.lengths import lengths_of
from flashverify.cases.sampling import round_to
from flashverify.cases.semantics import Number
from flashverify.cases.tensors import Inputs

BASE = 10000
"""Pair p turns by BASE^(-2p / R) radians a position."""

DIGITS = 40
"""Decimal digits in which angles are computed, by integer arithmetic: the same cosines on every machine."""


def rotary_dim(case: AttentionCase) -> int:
    """R, how many columns are turned: all that are a multiple of 16, or, with odd seeds, about half of them."""
    whole = case.head_dim // SMALLEST_ROTARY
    return SMALLEST_ROTARY * ((whole + 1) // 2 if case.seed % 2 else whole)


def pairs(case: AttentionCase) -> tuple[list[int], list[int]]:
    """The first and the second column of every pair that turns together."""
    columns = rotary_dim(case)
    if case.rotary == "interleaved":
        return list(range(0, columns, 2)), list(range(1, columns, 2))
    return list(range(columns // 2)), list(range(columns // 2, columns))


def query_position(case: AttentionCase, batch: int, i: int) -> int:
    """The position of query row i of a batch entry."""
    advances = case.mask != "full" or case.window_left is not None or case.window_right is not None
    return cached(case)[batch] + (i if advances else 0)


def key_position(case: AttentionCase, batch: int, j: int) -> int | None:
    """The position of key column j of a batch entry, or None: the call does not turn it."""
    keys = lengths_of(case, batch)[1]
    return j if keys - appended(case) <= j < keys else None


def angles(case: AttentionCase, position: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Cosine and sine of every pair at a position, numbers of the case's dtype."""
    return _angles(case.dtype, rotary_dim(case), position)


@lru_cache(maxsize=8192)
def _angles(dtype: str, columns: int, position: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    with mpmath.workdps(DIGITS):
        found = [mpmath.cos_sin(position * mpmath.mpf(BASE) ** (mpmath.mpf(-2 * p) / columns)) for p in range(columns // 2)]
        cos, sin = (
            round_to(np.array([float(x) for x in values], dtype=np.float64), dtype) for values in zip(*found, strict=True)
        )
    return tuple(cos.tolist()), tuple(sin.tolist())


def turned_scalar(case: AttentionCase, row: Sequence[Number], position: int | None) -> list[Number]:
    """A row of q or k, turned (scalar form).

    Args:
        case: the case, with `rotary`.
        row: head_dim numbers that take float64 factors as exact.
        position: its position, or None: it stays as it is.
    """
    values = list(row)
    if position is not None:
        for a, b, cos, sin in zip(*pairs(case), *angles(case, position), strict=True):
            values[a], values[b] = row[a] * cos - row[b] * sin, row[b] * cos + row[a] * sin
    return values


@dataclass(frozen=True, slots=True)
class Turned:
    """Rows of q or k, turned, and what they are sums of.

    Attributes:
        values: x', float64, shaped like x.
        terms: |x_a·cos| + |x_b·sin| of elements that were turned, never less than the smallest normal float64; 0 of those that
            were not.
    """

    values: torch.Tensor
    terms: torch.Tensor


def turned(case: AttentionCase, inputs: Inputs) -> tuple[Turned, Turned]:
    """All of q and k, turned (vectorised form of `turned_scalar`): two products and a sum an element, in float64.

    Args:
        case: the case, with `rotary`.
        inputs: its inputs, any dtype, on any device.
    """
    queries = [[query_position(case, b, i) for i in range(case.seqlen_q)] for b in range(case.batch)]
    keys = [[key_position(case, b, j) for j in range(case.seqlen_k)] for b in range(case.batch)]
    return _turned(case, inputs.q, queries), _turned(case, inputs.k, keys)


def turned_inputs(case: AttentionCase, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """What the scores are the products of: q and k in float64, turned if the case says so."""
    if case.rotary is None:
        return inputs.q.double(), inputs.k.double()
    q, k = turned(case, inputs)
    return q.values, k.values


def _turned(case: AttentionCase, x: torch.Tensor, positions: Sequence[Sequence[int | None]]) -> Turned:
    """Rows x (batch, heads, rows, head_dim) at positions (batch, rows)."""
    x, (first, second) = x.double(), pairs(case)
    known = sorted({position for entry in positions for position in entry if position is not None})
    places = {position: index for index, position in enumerate(known)}
    table = torch.tensor([angles(case, position) for position in known], dtype=torch.float64, device=x.device)
    table = table.reshape(len(known), 2, len(first))
    shape = (x.shape[0], 1, x.shape[2])
    index = [[len(known) if position is None else places[position] for position in entry] for entry in positions]
    rows = torch.tensor(index, dtype=torch.int64, device=x.device).reshape(shape)
    stays = torch.tensor([[[1.0], [0.0]]], dtype=torch.float64, device=x.device).expand(1, 2, len(first))
    cos, sin = torch.cat([table, stays])[rows].unbind(-2)
    a, b = x[..., first], x[..., second]
    values, terms = x.clone(), torch.zeros_like(x)
    values[..., first], values[..., second] = a * cos - b * sin, b * cos + a * sin
    terms[..., first], terms[..., second] = (a * cos).abs() + (b * sin).abs(), (b * cos).abs() + (a * sin).abs()
    moves = (rows < len(known))[..., None]
    columns = torch.arange(case.head_dim, device=x.device) < len(first) * 2
    smallest = torch.finfo(torch.float64).smallest_normal
    return Turned(torch.where(moves, values, x), torch.where(moves & columns, terms.clamp(min=smallest), 0.0))
