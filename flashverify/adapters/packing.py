"""Packed sequences of different lengths: from a case's padded tensors to packed ones and back, forward and backward.

Rows of packed tensors that are of no sequence hold NaN, and so do guard bands around the tensors: whoever reads them shows
it. What comes back for such rows has to be out = 0, lse = -inf and gradients of 0. In the padded tensors that come out, rows
that do not exist are those of a row that sees no key: out = 0, lse = -inf or the sink, gradients of 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from flashverify.adapters.autograd import differentiate
from flashverify.adapters.kernel import KernelDefectError
from flashverify.cases import layouts
from flashverify.cases.case import AttentionCase
from flashverify.cases.lengths import lengths, packing
from flashverify.cases.tensors import Inputs, Outputs

PACKED = "packed sequences of different lengths"
"""Why a kernel without such a function declines a case."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Which packed row holds which row of the padded tensors: integer tensors (used,).

    Attributes:
        entry, position: batch entry, and row of its sequence.
        slot: packed row.
        count: number of packed rows, those of no sequence among them.
    """

    entry: torch.Tensor
    position: torch.Tensor
    slot: torch.Tensor
    count: int

    @classmethod
    def of(cls, used: tuple[int, ...], starts: tuple[int, ...], count: int, device: torch.device) -> Rows:
        """Rows of sequences with `used` rows each, which begin at `starts`, in a tensor of `count` rows."""
        entry = torch.arange(len(used)).repeat_interleave(torch.tensor(used, dtype=torch.int64))
        before = torch.tensor([sum(used[:b]) for b in range(len(used))], dtype=torch.int64)
        position = torch.arange(len(entry)) - before[entry]
        slot = torch.tensor(starts[: len(used)], dtype=torch.int64)[entry] + position
        return cls(entry.to(device), position.to(device), slot.to(device), count)

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """(batch, heads, rows, d) as (packed rows, heads, d), with NaN in rows of no sequence and around the tensor."""
        packed = padded.new_full((self.count, padded.shape[1], padded.shape[3]), math.nan)
        packed[self.slot] = padded[self.entry, :, self.position]
        return layouts.embed(packed, (0, 1, 2))

    def unpack(self, packed: torch.Tensor, frame: torch.Tensor) -> torch.Tensor:
        """Write the rows of sequences of (packed rows, heads, d) into a frame (batch, heads, rows, d), and return that."""
        frame[self.entry, :, self.position] = packed[self.slot]
        return frame

    def unused(self, packed: torch.Tensor) -> torch.Tensor:
        """The packed rows of no sequence."""
        free = torch.ones(self.count, dtype=torch.bool, device=packed.device)
        free[self.slot] = False
        return packed[free]


def rows_of(case: AttentionCase, device: torch.device) -> tuple[Rows, Rows]:
    """Where the queries and the keys of a case with lengths lie."""
    packed, (queries, keys) = packing(case), (tuple(pair[side] for pair in lengths(case)) for side in (0, 1))
    return (
        Rows.of(queries, packed.cu_seqlens_q, packed.rows_q, device),
        Rows.of(keys, packed.cu_seqlens_k, packed.rows_k, device),
    )


def pack(case: AttentionCase, inputs: Inputs) -> Inputs:
    """The inputs packed: q, k, v and dout (rows, heads, d), dlse (heads, rows); the sink as it is."""
    of_q, of_k = rows_of(case, inputs.q.device)
    dlse = None
    if inputs.dlse is not None:
        dlse = layouts.embed(of_q.pack(inputs.dlse[..., None])[..., 0].T, (0, 1))
    return Inputs(
        q=of_q.pack(inputs.q),
        k=of_k.pack(inputs.k),
        v=of_k.pack(inputs.v),
        dout=of_q.pack(inputs.dout),
        dlse=dlse,
        sink=inputs.sink,
    )


def unpack(case: AttentionCase, inputs: Inputs, outputs: Outputs) -> Outputs:
    """Packed outputs in the case's padded tensors.

    Args:
        case: the case.
        inputs: its padded inputs.
        outputs: of the packed ones: out, dq, dk and dv (rows, heads, d), lse (heads, rows), dsink (1, heads, 1) or None.

    Raises:
        KernelDefectError: if lse has another shape, or a row of no sequence holds something.
    """
    of_q, of_k = rows_of(case, inputs.q.device)
    lse_shape = (case.heads_q, of_q.count)
    if outputs.lse.shape != lse_shape:
        raise KernelDefectError(f"lse: got shape {tuple(outputs.lse.shape)}, accepted is {lse_shape}")
    lse = outputs.lse.T[..., None]
    for name, rows, packed, nothing in (
        ("out", of_q, outputs.out, 0.0),
        ("lse", of_q, lse, -math.inf),
        ("dq", of_q, outputs.dq, 0.0),
        ("dk", of_k, outputs.dk, 0.0),
        ("dv", of_k, outputs.dv, 0.0),
    ):
        wrong = rows.unused(packed)
        wrong = wrong[wrong != nothing]
        if wrong.numel():
            raise KernelDefectError(f"{name}: got {float(wrong[0]):g} in a row of no sequence, accepted is {nothing:g}")
    hidden = torch.full_like(inputs.dout[..., :1], -math.inf, dtype=lse.dtype)
    if inputs.sink is not None:
        hidden = inputs.sink[..., None].to(lse.dtype).expand_as(hidden).clone()
    return Outputs(
        out=of_q.unpack(outputs.out, torch.zeros_like(inputs.dout, dtype=outputs.out.dtype)),
        lse=of_q.unpack(lse, hidden)[..., 0],
        dq=of_q.unpack(outputs.dq, torch.zeros_like(inputs.q, dtype=outputs.dq.dtype)),
        dk=of_k.unpack(outputs.dk, torch.zeros_like(inputs.k, dtype=outputs.dk.dtype)),
        dv=of_k.unpack(outputs.dv, torch.zeros_like(inputs.v, dtype=outputs.dv.dtype)),
        dsink=outputs.dsink,
    )


def run_packed(attention: Callable[..., Any], case: AttentionCase, inputs: Inputs, **options: object) -> Outputs:
    """Forward and backward of a function with flash-attn's signature of `flash_attn_varlen_func` (and sinks).

    Args:
        attention: takes packed q, k and v, offsets and lengths, and returns (out, lse, anything).
        case: a case with lengths.
        inputs: its padded inputs.
        options: further keyword arguments of the function.

    Returns:
        Outputs in padded tensors.

    Raises:
        KernelDefectError: what `differentiate` raises it for; if a row of no sequence is not left empty, or if the function
            writes into the memory of its inputs.
    """
    where, device = packing(case), inputs.q.device

    def integers(values: tuple[int, ...] | None) -> torch.Tensor | None:
        return None if values is None else torch.tensor(values, dtype=torch.int32, device=device)

    places = (where.cu_seqlens_q, where.cu_seqlens_k)
    offsets, used = (tuple(integers(x) for x in pair) for pair in (places, (where.seqused_q, where.seqused_k)))

    def of_leaves(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sink: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse, _ = attention(
            *(q, k, v, *offsets, where.longest_q, where.longest_k),
            return_attn_probs=True,
            learnable_sink=None if sink is None else sink.flatten(),
            seqused_q=used[0],
            seqused_k=used[1],
            **options,
        )
        return out, lse

    packed = pack(case, inputs)
    given = {"q": packed.q, "k": packed.k, "v": packed.v, "dout": packed.dout, "dlse": packed.dlse}
    given |= dict(zip(("cu_seqlens_q", "cu_seqlens_k", "seqused_q", "seqused_k"), (*offsets, *used), strict=True))
    before = {name: layouts.memory(x).clone() for name, x in given.items() if x is not None}
    outputs = differentiate(of_leaves, packed)
    for name, x in given.items():
        if x is not None and not torch.equal(layouts.memory(x), before[name]):
            raise KernelDefectError(f"{name}: the kernel wrote into the memory of its packed input")
    return unpack(case, inputs, outputs)
