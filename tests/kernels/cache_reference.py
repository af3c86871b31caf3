"""Attention to a cache in plain float64 torch, one batch entry and one key at a time, and how far a kernel may be from it.

Nothing here is shared with the kernels. The bounds are those of standard error analysis (Higham, Accuracy and Stability of
Numerical Algorithms, ch. 3), in the unit roundoff u of the format that a step computes in: a sum of n products is within
n·u / (1 - n·u)·Σ|a||b|. Appended rows and turned queries are rounded to the dtype as a kernel rounds them: once, from a value
that the reference has in float64; where that is close to a tie, a kernel may go the other way, so turned rows of other dtypes
than float64 are compared by `test_rotary` alone, and taken from there for attention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

_CONSTANT = 64
"""Roundings that are not part of a sum: exponentials of a few ulps, products with scales, a division, merged parts."""


@dataclass(frozen=True)
class Cache:
    """Where keys lie: entry indices, or a page table; everything as Python numbers.

    Attributes:
        entries: entry of each batch entry.
        table: pages of each batch entry, or None.
        page_size: keys of a page.
    """

    entries: list[int]
    table: list[list[int]] | None = None
    page_size: int = 0

    def place(self, batch: int, key: int) -> tuple[int, int]:
        """The first two indices of a key."""
        if self.table is None:
            return self.entries[batch], key
        return self.table[batch][key // self.page_size], key % self.page_size


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """A row x (D,) of float64 with each pair of columns multiplied, as a complex number, by cos + i·sin (R / 2,)."""
    row, cosines, sines = x.tolist(), cos.tolist(), sin.tolist()
    for pair, angle in enumerate(map(complex, cosines, sines)):
        a, b = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + len(cosines))
        product = complex(row[a], row[b]) * angle
        row[a], row[b] = product.real, product.imag
    return torch.tensor(row, dtype=torch.float64)


def appended(
    cache: torch.Tensor, new: torch.Tensor, where: Cache, lengths: list[int], capacity: int,
    cos: torch.Tensor | None = None, sin: torch.Tensor | None = None, interleaved: bool = True,
) -> torch.Tensor:  # fmt: skip
    """A copy of a cache, in float64, with new rows (B, N, H, D) written to their places, turned if there are angles."""
    result = cache.to(torch.float64, copy=True)
    for batch, length in enumerate(lengths):
        for token in range(new.shape[1]):
            key = length + token
            if key >= capacity:
                continue
            for head in range(new.shape[2]):
                row = new[batch, token, head].double()
                if cos is not None:
                    row = turned(row, cos[key].double(), sin[key].double(), interleaved)
                result[(*where.place(batch, key), head)] = row
    return result


def turned_queries(
    q: torch.Tensor, lengths: list[int], cos: torch.Tensor, sin: torch.Tensor, advance: bool, interleaved: bool
) -> torch.Tensor:
    """Queries (B, N, H, D) in float64, turned by the angles of length + i, or of length unless `advance`."""
    result = q.to(torch.float64, copy=True)
    for batch, length in enumerate(lengths):
        for token in range(q.shape[1]):
            place = length + token * advance
            for head in range(q.shape[2]):
                row = q[batch, token, head].double()
                result[batch, token, head] = turned(row, cos[place].double(), sin[place].double(), interleaved)
    return result


@dataclass(frozen=True)
class Attention:
    """out (B, N, H, Dv) and lse (B, H, N) in float64, with the largest distance that a kernel may have from each."""

    out: torch.Tensor
    lse: torch.Tensor
    out_allowed: torch.Tensor
    lse_allowed: torch.Tensor

    def worst(self, out: torch.Tensor, lse: torch.Tensor) -> float:
        """The largest distance as a share of what is allowed; an equal element counts 0, NaN infinity."""
        shares = [0.0]
        for found, expected, allowed in ((out, self.out, self.out_allowed), (lse, self.lse, self.lse_allowed)):
            assert found.shape == expected.shape
            x = found.detach().cpu().double()
            share = torch.where(x == expected, 0.0, (x - expected).abs() / allowed).nan_to_num(nan=math.inf)
            shares.append(share.max().item() if share.numel() else 0.0)
        return max(shares)


def attention(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, where: Cache, totals: list[int], capacity: int,
    dtype: torch.dtype, *,
    scale: float | None = None,
    leftpad: list[int] | None = None,
    left: int | None = None,
    right: int | None = None,
    softcap: float = 0.0,
    slopes: torch.Tensor | None = None,
) -> Attention:  # fmt: skip
    """Each query against the keys that it sees, by the definition.

    Args:
        q: (B, N, H, D), turned already.
        k_cache: with the new keys in it, turned already.
        v_cache: likewise.
        where: where keys lie.
        totals: keys of each batch entry, new ones among them, whether the cache has room for them or not.
        capacity: how many it has room for.
        dtype: the format that the kernel works in, which allows it its errors.
        scale: of the scores.
        leftpad: keys at the front that are hidden.
        left: how far before its place a query sees.
        right: how far after.
        softcap: of the logits, 0 for none.
        slopes: (B, H), or None.
    """
    q, k_cache, v_cache = (x.detach().cpu().double() for x in (q, k_cache, v_cache))
    batches, queries, heads, head_dim = q.shape
    group = heads // k_cache.shape[2]
    scale = head_dim**-0.5 if scale is None else scale
    storage = torch.finfo(dtype).eps / 2
    accumulator = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32)
    unit, underflow, smallest = accumulator.eps / 2, accumulator.tiny, torch.finfo(dtype).tiny

    def gamma(n: float) -> float:
        return n * unit / (1 - n * unit)

    out, lse = torch.zeros(batches, queries, heads, v_cache.shape[3]).double(), torch.full((batches, heads, queries), -math.inf)
    lse = lse.double()
    out_allowed, lse_allowed = torch.zeros_like(out), torch.zeros_like(lse)
    for b in range(batches):
        for i in range(queries):
            place = totals[b] - queries + i
            first = max(0 if leftpad is None else leftpad[b], 0 if left is None else place - left)
            last = min(totals[b], capacity) - 1
            last = last if right is None else min(last, place + right)
            keys = range(first, last + 1)
            if not keys:
                continue
            places = [where.place(b, key) for key in keys]
            all_k, all_v = (torch.stack([cache[place] for place in places]) for cache in (k_cache, v_cache))
            for h in range(heads):
                k, v = all_k[:, h // group], all_v[:, h // group]
                logits = scale * (k @ q[b, i, h])
                sizes = abs(scale) * (k.abs() @ q[b, i, h].abs())
                if softcap:
                    logits = softcap * torch.tanh(logits / softcap)
                    sizes = sizes + logits.abs()
                if slopes is not None:
                    distance = torch.tensor([abs(place - key) for key in keys], dtype=torch.float64)
                    logits = logits - slopes[b, h].double().item() * distance
                    sizes = sizes + abs(slopes[b, h].double().item()) * distance
                lse[b, h, i] = torch.logsumexp(logits, 0)
                weights = torch.exp(logits - lse[b, h, i])
                out[b, i, h] = weights @ v
                size = sizes.max().item()
                error = math.expm1(2 * gamma(2 * head_dim + _CONSTANT) * size) + gamma(8 * len(keys) + _CONSTANT)
                lse_allowed[b, h, i] = 2 * (error + gamma(_CONSTANT) * (size + math.log(len(keys))))
                # p <= 1 is rounded to the dtype before it multiplies V: below its normal numbers by half of the least one;
                # and out is rounded once. What is too small for the accumulator may count as nothing.
                relative, least = (2 * error + 2 * storage) * (weights @ v.abs()), max(underflow, storage * smallest)
                out_allowed[b, i, h] = relative + len(keys) * least * v.abs().amax(0) + storage * out[b, i, h].abs() + least
    return Attention(out, lse, out_allowed, lse_allowed)
