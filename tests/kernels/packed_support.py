"""What the tests of packed sequences share: places, one packed call, the same a sequence at a time, and a guard of memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import pytest
import torch
import triton.runtime.interpreter as interpreter
from flashverify_kernels import Tiles
from flashverify_kernels.ops_packed import packed_attention

from tests.kernels.support import run

Lengths = tuple[int, ...]


def starts_of(lengths: Lengths, device: torch.device) -> torch.Tensor:
    """Where stretches of these lengths begin and end."""
    return int32((0, *accumulate(lengths)), device)


def int32(numbers: Lengths, device: torch.device) -> torch.Tensor:
    """Numbers as kernels take them."""
    return torch.tensor(numbers, dtype=torch.int32, device=device)


@dataclass(frozen=True)
class Places:
    """Where sequences lie.

    Attributes:
        stored_q: rows of each stretch of queries.
        stored_k: the same of keys.
        used_q: how many of them are the sequence, or None: all.
        used_k: the same of keys.
        tail: rows of q, and of k and v, behind the last stretch.
    """

    stored_q: Lengths
    stored_k: Lengths
    used_q: Lengths | None = None
    used_k: Lengths | None = None
    tail: int = 0

    @property
    def rows(self) -> tuple[int, int]:
        """Rows of q, and of k and v."""
        return sum(self.stored_q) + self.tail, sum(self.stored_k) + self.tail

    @property
    def sequences(self) -> int:
        """How many there are."""
        return len(self.stored_q)

    def stated(self, device: torch.device) -> tuple[torch.Tensor | None, ...]:
        """Starts of queries and of keys, and numbers of used ones, as the operators take them."""
        used = (None if numbers is None else int32(numbers, device) for numbers in (self.used_q, self.used_k))
        return starts_of(self.stored_q, device), starts_of(self.stored_k, device), *used

    def slices(self) -> list[tuple[slice, slice]]:
        """Rows of q, and of k and v, that each sequence uses."""
        found = []
        used_q, used_k = self.used_q or self.stored_q, self.used_k or self.stored_k
        for start_q, start_k, seqlen_q, seqlen_k in zip(
            accumulate(self.stored_q, initial=0), accumulate(self.stored_k, initial=0), used_q, used_k, strict=False
        ):
            found.append((slice(start_q, start_q + seqlen_q), slice(start_k, start_k + seqlen_k)))
        return found

    def unused(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Which rows of q, and of k and v, no sequence uses."""
        masks = tuple(torch.ones(rows, dtype=torch.bool, device=device) for rows in self.rows)
        for pair in self.slices():
            for mask, part in zip(masks, pair, strict=True):
                mask[part] = False
        return masks


@dataclass(frozen=True)
class Inputs:
    """Packed tensors: q (rows, Hq, D), k and v (rows, Hkv, D), dout (rows, Hq, Dv) and dlse (Hq, rows) or None."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    dout: torch.Tensor
    dlse: torch.Tensor | None = None

    def filled(self, places: Places, value: float) -> Inputs:
        """The same with a value in all rows that no sequence uses."""
        queries, keys = places.unused(self.q.device)
        q, k, v, dout = (x.clone() for x in (self.q, self.k, self.v, self.dout))
        q[queries], dout[queries], k[keys], v[keys] = (value,) * 4
        return Inputs(q, k, v, dout, None if self.dlse is None else self.dlse.masked_fill(queries, value))


def draw_packed(
    places: Places,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    heads: tuple[int, int] = (2, 1),
    columns: tuple[int, int] = (16, 16),
    dlse: bool = False,
) -> Inputs:
    """Normal inputs, the same on every device, of (Hq, Hkv) heads and (D, Dv) columns."""
    generator = torch.Generator().manual_seed(0)
    (rows_q, rows_k), (heads_q, heads_kv), (head_dim, value_dim) = places.rows, heads, columns
    sizes = (
        (rows_q, heads_q, head_dim),
        (rows_k, heads_kv, head_dim),
        (rows_k, heads_kv, value_dim),
        (rows_q, heads_q, value_dim),
    )
    q, k, v, dout = (torch.randn(size, generator=generator, dtype=torch.float64).to(device, dtype) for size in sizes)
    lse_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    drawn = torch.randn(heads_q, rows_q, generator=generator, dtype=torch.float64).to(device, lse_dtype)
    return Inputs(q, k, v, dout, drawn if dlse else None)


def run_packed(
    inputs: Inputs,
    stated: tuple[torch.Tensor | None, ...],
    *,
    last: int | None = None,
    first: int | None = None,
    softcap: float | None = None,
    alibi: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
    tiles: Tiles | None = None,
    scale: float = 0.3,
) -> dict[str, torch.Tensor]:
    """out, lse, dq, dk, dv of the operator, and dsink if there is one, heads first: (H, rows, D). Slopes are (B, Hq)."""
    q, k, v = (x.detach()[None].transpose(1, 2).requires_grad_() for x in (inputs.q, inputs.k, inputs.v))
    leaves = {"dq": q, "dk": k, "dv": v}
    if sink is not None:
        leaves["dsink"] = sink = sink.detach().requires_grad_()
    forced = None if tiles is None else tiles.flatten()
    out, lse = packed_attention(q, k, v, sink, *stated, scale, softcap, alibi, last, first, "ieee", forced)
    outputs, cotangents = [out], [inputs.dout[None].transpose(1, 2)]
    if inputs.dlse is not None:
        outputs, cotangents = [out, lse], [*cotangents, inputs.dlse[None]]
    gradients = torch.autograd.grad(outputs, tuple(leaves.values()), cotangents)
    found = {"out": out, "lse": lse, **dict(zip(leaves, gradients, strict=True))}
    return {name: x.detach() if name == "dsink" else x.detach()[0] for name, x in found.items()}


def run_apart(
    inputs: Inputs,
    places: Places,
    *,
    last: int | None = None,
    first: int | None = None,
    alibi: torch.Tensor | None = None,
    **options: object,
) -> dict[str, torch.Tensor]:
    """What `run_packed` gives, but dsink, from a call of the operator without packing for each sequence."""
    rows_q, rows_k = inputs.q.shape[0], inputs.k.shape[0]
    queries = {"out": inputs.dout, "dq": inputs.q}
    keys = {"dk": inputs.k, "dv": inputs.v}
    found = {name: torch.zeros_like(x).transpose(0, 1).contiguous() for name, x in (queries | keys).items()}
    lse_dtype = torch.float64 if inputs.q.dtype == torch.float64 else torch.float32
    found["lse"] = torch.full((inputs.q.shape[1], rows_q), -math.inf, dtype=lse_dtype, device=inputs.q.device)
    assert (rows_q, rows_k) == places.rows
    for sequence, (of_q, of_k) in enumerate(places.slices()):
        parts = (inputs.q[of_q], inputs.k[of_k], inputs.v[of_k], inputs.dout[of_q])
        position = (of_k.stop - of_k.start) - (of_q.stop - of_q.start)
        results = run(
            *(x[None].transpose(1, 2) for x in parts),
            None if inputs.dlse is None else inputs.dlse[None, :, of_q],
            causal_offset=None if last is None else position + last,
            first_offset=None if first is None else position + first,
            alibi=None if alibi is None else alibi[sequence : sequence + 1],
            **({"scale": 0.3} | options),
        )
        for name in found:
            found[name][:, of_k if name in keys else of_q] = results[name][0]
    return found


class _Guarded:
    """The interpreter's memory: what is outside of the tensors that the running kernel was given is refused."""

    def __init__(self, memory: object) -> None:
        self._memory = memory
        self.extents: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._memory, name)

    def _check(self, pointers: np.ndarray, mask: np.ndarray, what: str) -> None:
        touched = pointers[np.broadcast_to(mask, pointers.shape)]
        if touched.size:
            low, high = int(touched.min()), int(touched.max())
            assert any(begin <= low and high < end for begin, end in self.extents), f"a {what} outside of every tensor"

    def load(self, pointers: np.ndarray, mask: np.ndarray, *others: object) -> np.ndarray:
        self._check(pointers, mask, "load")
        return self._memory.load(pointers, mask, *others)

    def store(self, pointers: np.ndarray, value: np.ndarray, mask: np.ndarray) -> None:
        self._check(pointers, mask, "store")
        self._memory.store(pointers, value, mask)


@contextmanager
def guarded_memory() -> Iterator[None]:
    """Fail where a kernel touches what is outside of its tensors. In the interpreter alone; a GPU has compute-sanitizer."""
    guard = _Guarded(interpreter._interpreter)
    launch = interpreter.GridExecutor.__call__

    def guarded(executor: object, *arguments: object, **options: object) -> object:
        tensors = [x for x in arguments if isinstance(x, torch.Tensor) and x.numel()]
        guard.extents = [
            (x.data_ptr(), x.data_ptr() + (1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))) * x.itemsize)
            for x in tensors
        ]
        return launch(executor, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_interpreter", guard)
        patch.setattr(interpreter.GridExecutor, "__call__", guarded)
        yield
