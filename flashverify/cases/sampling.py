"""Random numbers for inputs: one Philox stream a tensor, drawn in float64, rounded once to the case's dtype.

The draws do not depend on the device, the layout or torch's version. Arithmetic on them keeps to operations that
IEEE 754 rounds correctly, in a fixed order (no BLAS, no vectorised exp), so that every machine draws the same bits. The
normal variates are those of numpy's `Generator`; digests stored in the tests would show a change there.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import numpy.typing as npt
import torch

from flashverify.cases.caches import left_pads
from flashverify.cases.case import DTYPES, AttentionCase
from flashverify.cases.lengths import lengths_of
from flashverify.cases.semantics import by_entry, causal_offset, first_offset

Array = npt.NDArray[np.float64]

DESIGN_SCALES = (2.0**-8, 2.0**4)
"""Range of |scale| for which designed logits are as promised, within float16's range; beyond it they stay finite."""

EDGES = (15, 16, 31, 32, 63, 64, 127, 128, 255, 256)
"""Rows before and after a tile's edge, for tile sizes from 16 to 256."""


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a short name such as "bf16"."""
    dtype = getattr(torch, DTYPES[name])
    assert isinstance(dtype, torch.dtype)
    return dtype


def round_to(x: Array, dtype: str) -> Array:
    """Round float64 values once, to nearest even, to a format; the result is held exactly in float64.

    torch and numpy round float64 to bfloat16 by way of float32, which rounds twice: 1 + 2^-8 + 2^-40 would become 1.

    Args:
        x: float64 array of finite values.
        dtype: short name of the format.

    Returns:
        float64 array of the same shape; signed zeros and subnormals are kept, values beyond the range become infinite.
    """
    if dtype == "fp64":
        return x
    if dtype == "fp32":
        return x.astype(np.float32).astype(np.float64)
    info = torch.finfo(torch_dtype(dtype))
    # In a float64's bit pattern a carry out of the significand raises the exponent, as rounding up should.
    dropped = round(math.log2(info.eps / torch.finfo(torch.float64).eps))
    bits = x.view(np.int64)
    last_kept = (bits >> dropped) & 1
    rounded: Array = ((bits + (2 ** (dropped - 1) - 1) + last_kept) & -(2**dropped)).view(np.float64)
    small = np.abs(x) < info.smallest_normal
    if small.any():
        spacing = info.smallest_normal * info.eps
        rounded[small] = np.copysign(np.rint(x[small] / spacing) * spacing, x[small])
    large = np.abs(rounded) > info.max
    if large.any():
        rounded[large] = np.copysign(np.inf, rounded[large])
    return rounded


def ordered_sum(terms: Array, axis: int) -> Array:
    """Sum along an axis from the first term to the last, so that every machine rounds alike."""
    total: Array = np.zeros_like(np.take(terms, 0, axis)) if terms.shape[axis] else np.sum(terms, axis)
    for index in range(terms.shape[axis]):
        total = total + np.take(terms, index, axis)
    return total


def exponentials(x: Array) -> Array:
    """exp(x), rounded correctly through decimal arithmetic: slow, the same on every machine.

    Args:
        x: float64 array of values <= 0.
    """
    return np.array([float(Decimal(value).exp()) for value in x.ravel().tolist()], dtype=np.float64).reshape(x.shape)


@dataclass(slots=True)
class Values:
    """Values of a case before they are rounded to its dtype: float64 arrays shaped like the tensors of `Inputs`."""

    q: Array
    k: Array
    v: Array
    dout: Array


class Source:
    """What a regime draws from: the case, its shapes, and a stream of random numbers for each name.

    Attributes:
        case: the case.
        q_shape, k_shape, v_shape, out_shape: shapes of q, k, v, and of dout.
    """

    def __init__(self, case: AttentionCase) -> None:
        self.case = case
        self.q_shape = (case.batch, case.heads_q, case.seqlen_q, case.head_dim)
        self.k_shape = (case.batch, case.heads_kv, case.seqlen_k, case.head_dim)
        self.v_shape = (*self.k_shape[:3], case.value_dim)
        self.out_shape = (*self.q_shape[:3], case.value_dim)

    def stream(self, name: str) -> np.random.Generator:
        """A generator of its own for (seed, regime, name): always from its start."""
        digest = hashlib.sha256(f"{self.case.seed}/{self.case.regime}/{name}".encode()).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))

    def normal(self, name: str, shape: tuple[int, ...]) -> Array:
        """Standard normal values."""
        return self.stream(name).standard_normal(shape)

    def normals(self) -> Values:
        """Standard normal q, k, v and dout."""
        return Values(
            q=self.normal("q", self.q_shape),
            k=self.normal("k", self.k_shape),
            v=self.normal("v", self.v_shape),
            dout=self.normal("dout", self.out_shape),
        )

    @property
    def scale(self) -> float:
        """The scale that logits are designed for: the case's own, its magnitude clamped to `DESIGN_SCALES`.

        Its sign is the case's, so that designed logits keep their order; for scale 0 it is 1/sqrt(head_dim).
        """
        scale = self.case.softmax_scale or self.case.head_dim**-0.5
        smallest, largest = DESIGN_SCALES
        return math.copysign(min(max(abs(scale), smallest), largest), scale)

    def by_query_head(self, x: Array) -> Array:
        """Repeat an array (batch, heads_kv, ...): every query head gets the entry of the key head that it reads."""
        return np.repeat(x, self.case.group_size, axis=1)

    def keys_seen(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The first key that each query row sees, and the one after its last, (E, 1, seqlen_q); equal where it sees none.

        E is 1, or the batch where batch entries differ.
        """
        rows = np.arange(self.case.seqlen_q)
        limits = [self._keys_seen(b, rows) for b in (range(self.case.batch) if by_entry(self.case) else (0,))]
        shape = (len(limits), 1, self.case.seqlen_q)
        first, end = (np.array([pair[side] for pair in limits], np.int64).reshape(shape) for side in (0, 1))
        return first, end

    def _keys_seen(self, b: int, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        last, first = causal_offset(self.case, b), first_offset(self.case, b)
        queries, keys = lengths_of(self.case, b)
        end = np.full(rows.shape, keys) if last is None else np.clip(rows + last + 1, 0, keys)
        end = np.where(rows < queries, end, 0)
        start = np.zeros(rows.shape, np.int64) if first is None else np.clip(rows + first, 0, keys)
        if self.case.left_pad:
            start = np.maximum(start, left_pads(self.case)[b])
        return np.minimum(start, end), end

    def last_rows(self) -> npt.NDArray[np.bool_]:
        """Which query row is the last one of its sequence, bool, broadcasts against (batch, 1, seqlen_q)."""
        queries = [lengths_of(self.case, b)[0] for b in (range(self.case.batch) if self.case.lengths else (0,))]
        last: npt.NDArray[np.bool_] = np.arange(self.case.seqlen_q) == np.array(queries, np.int64)[:, None, None] - 1
        return last

    def span_seen(self) -> tuple[int, int]:
        """The first key that any query row sees, and the one after the last, of any sequence; all keys if none sees any."""
        first, end = self.keys_seen()
        seen = first < end
        return (int(first[seen].min()), int(end[seen].max())) if seen.any() else (0, self.case.seqlen_k)

    def landmarks(self, length: int, heads: int) -> npt.NDArray[np.int64]:
        """One position below `length` for each batch entry and head: the last, the first, or at a tile's edge.

        Neighbouring heads and seeds take neighbouring entries of that list, so that a few seeds visit all of it.

        Returns:
            Integer array (batch, heads); 0 where `length` is 0.
        """
        places = list(dict.fromkeys([max(length - 1, 0), 0, *(edge for edge in EDGES if edge < length)]))
        index = np.arange(self.case.batch * heads).reshape(self.case.batch, heads) + self.case.seed % len(places)
        return np.array(places)[index % len(places)]
