"""Pairs of mask bits that share no bit: what tests of independence compare.

A sample is two bool tensors x and y of one shape, whose elements are all different bits of the masks. Masks are given as
(calls, batch, heads, rows, keys). Which pairs: those that a defect known from other kernels would make equal, or opposite.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch

CALLS, BATCH, HEADS, ROWS, KEYS = range(5)
AXES = {"calls": CALLS, "batch entries": BATCH, "heads": HEADS}
"""Axes along which every two indices are compared."""

NEAR = tuple(range(1, 9))
"""Lags within the words of one or two counters, each of which is tried."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Two tensors of bits, compared element by element.

    Attributes:
        name: what is compared.
        x: bool tensor.
        y: bool tensor of the same shape; no bit of the masks occurs twice in x and y.
    """

    name: str
    x: torch.Tensor
    y: torch.Tensor


def samples(masks: torch.Tensor) -> Iterator[Sample]:
    """Every sample of masks (calls, batch, heads, rows, keys) that has a bit."""
    for sample in (*_planes(masks), *_lags(masks), *_transposed(masks)):
        if sample.x.numel():
            yield sample


def matchings(size: int) -> Iterator[list[tuple[int, int]]]:
    """Rounds of a tournament: in each, no index occurs twice; over all of them, every two indices meet once."""
    places = size + size % 2  # with an odd number, one index a round has no partner
    others = list(range(1, places))
    for _ in others:
        ring = [0, *others]
        pairs = [(ring[k], ring[-1 - k]) for k in range(places // 2)]
        if size > 1:
            yield [(a, b) for a, b in pairs if max(a, b) < size]
        others = [others[-1], *others[:-1]]


def lags(size: int) -> list[int]:
    """Lags along an axis: near ones, and powers of two as tiles, vectors and wrapped counters have."""
    powers = [2**k for k in range(size.bit_length())]
    return sorted(lag for lag in {*NEAR, *powers} if lag < size)


def _planes(masks: torch.Tensor) -> Iterator[Sample]:
    """Whole planes of rows and keys against each other: every two calls, entries and heads, and both of the last at once."""
    for name, axis in AXES.items():
        for number, pairs in enumerate(matchings(masks.shape[axis])):
            first, second = (list(side) for side in zip(*pairs, strict=True))
            yield Sample(f"{name}, round {number}", *(masks.index_select(axis, _index(i, masks)) for i in (first, second)))
    for (n, entries), (m, heads) in product(enumerate(matchings(masks.shape[BATCH])), enumerate(matchings(masks.shape[HEADS]))):
        crossed = [((b, h), (c, g)) for (b, c), (h, g) in product(entries, heads)]
        crossed += [((b, g), (c, h)) for (b, c), (h, g) in product(entries, heads)]
        x, y = (masks[:, [b for b, _ in side], [h for _, h in side]] for side in zip(*crossed, strict=True))
        yield Sample(f"batch entries and heads, rounds {n} and {m}", x, y)


def _lags(masks: torch.Tensor) -> Iterator[Sample]:
    """Bits and those some rows or keys further, or both; in the same call, and in the next one."""
    for lag in lags(masks.shape[KEYS]):
        yield Sample(f"keys, lag {lag}", *apart(masks, KEYS, lag))
    for lag in lags(masks.shape[ROWS]):
        x, y = apart(masks, ROWS, lag)
        yield Sample(f"rows, lag {lag}", x, y)
        for shift in sorted({1, 4, lag} if lag > 1 else {*lags(masks.shape[KEYS])}):
            yield Sample(f"rows, lag {lag}, keys, lag {shift}", *shifted(x, y, shift))
            yield Sample(f"rows, lag {lag}, keys, lag -{shift}", *shifted(y, x, shift))
    for name, axis in AXES.items():
        x, y = apart(masks, axis, 1)
        for shift in lags(masks.shape[KEYS]):
            yield Sample(f"{name}, lag 1, keys, lag {shift}", *shifted(x, y, shift))
            yield Sample(f"{name}, lag 1, keys, lag -{shift}", *shifted(y, x, shift))
        for shift in lags(masks.shape[ROWS]):
            yield Sample(f"{name}, lag 1, rows, lag {shift}", *shifted(x, y, shift, ROWS))
            yield Sample(f"{name}, lag 1, rows, lag -{shift}", *shifted(y, x, shift, ROWS))


def apart(masks: torch.Tensor, axis: int, lag: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Bits, and those `lag` further along an axis: every second stretch of that length, so that none occurs twice."""
    size = masks.shape[axis]
    index = torch.arange(max(size - lag, 0), device=masks.device)
    index = index[index // lag % 2 == 0]
    return masks.index_select(axis, index), masks.index_select(axis, index + lag)


def shifted(x: torch.Tensor, y: torch.Tensor, shift: int, axis: int = KEYS) -> tuple[torch.Tensor, torch.Tensor]:
    """Two tensors without a common bit, the second one `shift` further along an axis than the first."""
    size = max(x.shape[axis] - shift, 0)
    return x.narrow(axis, 0, size), y.narrow(axis, min(shift, y.shape[axis]), size)


def _transposed(masks: torch.Tensor) -> Iterator[Sample]:
    """Bits with those whose row and key are exchanged: within a plane, and of the next call, entry and head."""
    side = min(masks.shape[ROWS:])
    square = masks[..., :side, :side]
    i, j = torch.tril_indices(side, side, -1, device=masks.device)
    yield Sample("rows and keys exchanged", square[..., i, j], square[..., j, i])
    for name, axis in AXES.items():
        x, y = apart(square, axis, 1)
        yield Sample(f"rows and keys exchanged, {name}, lag 1", x, y.transpose(ROWS, KEYS))


def _index(indices: list[int], masks: torch.Tensor) -> torch.Tensor:
    return torch.tensor(indices, dtype=torch.int64, device=masks.device)
