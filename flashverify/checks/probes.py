"""Dropout masks read off a kernel's outputs: inputs that show which pairs were kept, and how large they have to be for that.

Scores are 0 in every probe (q or k is 0, biases are 0 where they hide nothing), so probabilities P are known. With Z the mask,
r the factor that makes up for dropped pairs, c and u powers of two, and a block of keys or of queries that has as many as there
are columns:

- **Keys**: v is c times the identity on the block, k is u times it, dout = 1 everywhere. Then out_id = r c Z_ij P_ij for the
  key j of column d, and dq_id = scale u dS_ij with dS_ij = P_ij (r c Z_ij - delta_i), delta_i = dout_i·out_i.
- **Queries**: dout is the identity on the block, q is u times it, v = c everywhere; dout and q are 0 in all query heads of a
  group but one, over which dk and dv are sums. Then dv_jd = r Z_ij P_ij for the query i of column d, dk_jd = scale u dS_ij.

out and dv are 0 exactly where a pair is dropped. dS / P + delta is r c or 0, whatever the row keeps and whichever mask gave
out: it is compared with half of c, or a quarter of r c where that is more. The roundings of out, dS and the gradient together
move it by some 4 roundoffs of r c. So every bit is told with certainty where nothing underflows or overflows, as the case says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from flashverify.cases import dense_bias, layouts
from flashverify.cases.case import AttentionCase
from flashverify.cases.semantics import alibi_bias, alibi_slope_tensor, exists, visible_mask
from flashverify.cases.tensors import Inputs
from flashverify.checks.examination import Examination
from flashverify.dropout.of_case import rescale
from flashverify.numerics.formats import FORMATS, FP32, FP64, Format

Place = TypeVar("Place")

MOST_BLOCKS = 16
"""Blocks of keys, and of queries of each member of a group, that are probed: evenly spread where there are more, the first and
the last among them."""

FEW_BLOCKS = 2
"""The same, whatever the group, of a kernel whose mask is predicted, on a CPU, where a call of the interpreter takes as long
as a thousand on a GPU; and of every schedule."""

LOGITS_AT_ONCE = 256
"""Keys whose logits are formed at a time."""

MARGIN = 4.0
"""How far above the smallest numbers, and below the largest, a format is used."""

LARGEST_EXPONENT = 14
"""Of c: as far as float16 has numbers."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Bits of one tensor's mask.

    Attributes:
        tensor: "out", "dq", "dk" or "dv".
        heads: int64 tensor (H,) of query heads.
        rows: int64 tensor (R,) of query rows.
        columns: int64 tensor (C,) of key columns.
        kept: bool tensor (batch, H, R, C): which pairs the kernel kept.
        told: bool tensor of the same shape: which of these bits can be told, by the case alone.
        broken: bool tensor of the same shape: where the kernel's value is no number that shows a bit.
        visible: bool tensor of the same shape: which pairs the softmax has.
    """

    tensor: str
    heads: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    kept: torch.Tensor
    told: torch.Tensor
    broken: torch.Tensor
    visible: torch.Tensor


class Probes:
    """The probes of a kernel on a case with dropout."""

    def __init__(self, examination: Examination, few: bool = False) -> None:
        """Choose their sizes, and find the probabilities.

        Args:
            examination: of the kernel on the case.
            few: whether `FEW_BLOCKS` are probed wherever the kernel runs.
        """
        case = examination.case
        self.case = case
        self._examination = examination
        self._device = examination.kernel.device
        self._drawn = examination.inputs
        few = few or (self._device.type == "cpu" and examination.kernel.predictable)
        self._most_of_keys = FEW_BLOCKS if few else MOST_BLOCKS
        self._most_of_queries = FEW_BLOCKS if few else MOST_BLOCKS * case.group_size
        storage = FORMATS[case.dtype]
        self.floor = smallest_used(storage)
        self.factor = rescale(case)
        self.u = _unit(case, storage)
        self.slope = case.softmax_scale * self.u
        self._factors = 1.0, abs(case.softmax_scale), abs(self.slope)  # kernels may scale before or after dS is rounded
        largest = storage.largest / (MARGIN * max(self.factor, 1.0) * max(self._factors))
        self.c = max(2.0 ** min(math.floor(math.log2(largest)), LARGEST_EXPONENT), storage.smallest_subnormal)
        self.threshold = self.c * max(1.0, self.factor / 2.0) / 2.0
        self._rows, self._columns = (torch.arange(n, device=self._device) for n in (case.seqlen_q, case.seqlen_k))
        self._lse = self._log_sums()

    def of_keys(self) -> Iterator[Reading]:
        """The masks of out and dq, in blocks of keys of all heads and rows."""
        width = min(self.case.head_dim, self.case.value_dim)
        for start in spread(range(0, self.case.seqlen_k, width), self._most_of_keys):
            yield from self._of_keys(self._columns[start : start + width])

    def of_queries(self) -> Iterator[Reading]:
        """The masks of dv and dk, in blocks of queries of one head of each group and all keys."""
        width = min(self.case.head_dim, self.case.value_dim)
        starts = range(0, self.case.seqlen_q, width)
        places = [(start, member) for start in starts for member in range(self.case.group_size)]
        for start, member in spread(places, self._most_of_queries):
            yield from self._of_queries(self._rows[start : start + width], member)

    def out_of_constant(self) -> torch.Tensor:
        """The kernel's out where v = c everywhere: r c times the share of a row's pairs that is kept."""
        inputs = self._blank()
        inputs.v.fill_(self.c)
        return self._run(inputs).outputs.out

    def _of_keys(self, columns: torch.Tensor) -> Iterator[Reading]:
        case, size = self.case, columns.numel()
        inputs, at = self._blank(), torch.arange(size, device=self._device)
        inputs.v[:, :, columns, at] = self.c
        inputs.k[:, :, columns, at] = self.u
        inputs.dout.fill_(1.0)
        probe = self._run(inputs)
        heads = torch.arange(case.heads_q, device=self._device)
        p = self.probabilities(heads, self._rows, columns)
        out, dq = probe.outputs.out.double(), probe.outputs.dq
        assert dq is not None
        delta = (probe.inputs.dout.double() * out).sum(-1, keepdim=True)
        place = (heads, self._rows, columns)
        yield self._of_products("out", *place, out[..., :size], p)
        yield self._of_gradients("dq", *place, dq.double()[..., :size], p, delta)

    def _of_queries(self, rows: torch.Tensor, member: int) -> Iterator[Reading]:
        case, size = self.case, rows.numel()
        heads = torch.arange(member, case.heads_q, case.group_size, device=self._device)
        inputs, at = self._blank(), torch.arange(size, device=self._device)
        inputs.q[:, heads[:, None], rows, at] = self.u
        inputs.dout[:, heads[:, None], rows, at] = 1.0
        inputs.v.fill_(self.c)
        probe = self._run(inputs)
        p = self.probabilities(heads, rows, self._columns)
        dk, dv = probe.outputs.dk, probe.outputs.dv
        assert dk is not None
        assert dv is not None
        delta = probe.outputs.out.double()[:, heads[:, None], rows, at][..., None]
        place = (heads, rows, self._columns)
        yield self._of_products("dv", *place, dv.double()[..., :size].mT, p)
        yield self._of_gradients("dk", *place, dk.double()[..., :size].mT, p, delta)

    def _of_products(
        self, tensor: str, heads: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, value: torch.Tensor, p: torch.Tensor
    ) -> Reading:
        """Bits of r Z P: 0 or not."""
        told = p >= self.floor
        return Reading(tensor, heads, rows, columns, value != 0.0, told, told & value.isnan(), p > 0.0)

    def _of_gradients(
        self,
        tensor: str,
        heads: torch.Tensor,
        rows: torch.Tensor,
        columns: torch.Tensor,
        value: torch.Tensor,
        p: torch.Tensor,
        delta: torch.Tensor,
    ) -> Reading:
        """Bits of scale u P (r c Z - delta): above the threshold or below it."""
        in_range = max(self._factors) * self.factor * self.c <= FORMATS[self.case.dtype].largest / MARGIN
        told = (p >= self.floor) & (p * min(self._factors) * self.threshold >= self.floor) & in_range
        kept_or_none = value / torch.where(told, self.slope * p, 1.0) + delta
        broken = told & ~kept_or_none.isfinite()
        return Reading(tensor, heads, rows, columns, kept_or_none > self.threshold, told, broken, p > 0.0)

    def probabilities(self, heads: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """P of the probes, float64 (batch, H, R, C); 0 where no pair is visible, or none in the row."""
        return torch.exp(self._logits(heads, rows, columns) - self._lse[:, heads[:, None], rows][..., None]).nan_to_num(nan=0.0)

    def visible(self, heads: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Which pairs the softmax has, bool (batch, H, R, C)."""
        return self._logits(heads, rows, columns) != -torch.inf

    def _logits(self, heads: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """The logits of scores of 0, float64; -inf where a pair is not visible."""
        case, entries = self.case, torch.arange(self.case.batch, device=self._device)[:, None, None, None]
        seen = visible_mask(case, entries, rows, columns).expand(case.batch, heads.numel(), rows.numel(), columns.numel())
        bias = dense_bias.expanded(case, self._drawn)
        if bias is not None:
            seen = seen & dense_bias.shown(bias[:, heads[:, None, None], rows[:, None], columns])
        logits = torch.zeros(seen.shape, dtype=torch.float64, device=self._device)
        if case.alibi is not None:
            slopes = alibi_slope_tensor(case, self._device)[:, heads, None, None]
            logits = logits + alibi_bias(case, entries, slopes, rows, columns)
        return logits.masked_fill(~seen, -torch.inf)

    def _log_sums(self) -> torch.Tensor:
        """The lse of every row, float64 (batch, heads_q, seqlen_q), block by block of keys."""
        case, heads = self.case, torch.arange(self.case.heads_q, device=self._device)
        nothing = 0.0 if case.sink else -torch.inf
        lse = torch.full((case.batch, case.heads_q, case.seqlen_q), nothing, dtype=torch.float64, device=self._device)
        for columns in torch.split(self._columns, LOGITS_AT_ONCE):
            lse = torch.logaddexp(lse, torch.logsumexp(self._logits(heads, self._rows, columns), -1))
        return lse

    def _blank(self) -> Inputs:
        """Inputs of zeros, but for the pairs that a bias hides."""
        drawn = self._drawn
        bias = drawn.bias
        if bias is not None and bias.dtype != torch.bool:
            bias = torch.zeros_like(bias).masked_fill(bias == -torch.inf, -torch.inf)
        return Inputs(
            q=_zeros(drawn.q),
            k=_zeros(drawn.k),
            v=_zeros(drawn.v),
            dout=_zeros(drawn.dout),
            dlse=None if drawn.dlse is None else _zeros(drawn.dlse),
            bias=bias,
            sink=None if drawn.sink is None else _zeros(drawn.sink),
        )

    def _run(self, inputs: Inputs) -> Examination:
        """The kernel on these inputs, laid out as the case says; no cotangent in rows of no sequence."""
        entries = torch.arange(self.case.batch, device=self._device)[:, None, None]
        real = exists(self.case, entries, self._rows)
        if real is not None:
            inputs.dout.masked_fill_(~real[:, None], 0.0)
        probe = self._examination.probe(self.case)
        probe.inputs = layouts.apply(self.case, inputs)
        return probe


class ForwardMask:
    """The mask that the forward pass of a kernel shows; bool, (batch, heads_q, seqlen_q, seqlen_k).

    Attributes:
        kept: which pairs it kept.
        known: where that was told: visible pairs of the blocks that were probed, of which nothing underflows.
    """

    def __init__(self, examination: Examination) -> None:
        """Read it off the kernel."""
        case = examination.case
        shape = (case.batch, case.heads_q, case.seqlen_q, case.seqlen_k)
        self.kept, self.known = (torch.zeros(shape, dtype=torch.bool, device=examination.kernel.device) for _ in range(2))
        for reading in probes(examination).of_keys():
            if reading.tensor == "out":
                self.kept[_place(reading)], self.known[_place(reading)] = reading.kept, reading.told & ~reading.broken

    def at(self, reading: Reading) -> tuple[torch.Tensor, torch.Tensor]:
        """The bits of a reading's pairs, and which of them are known."""
        return self.kept[_place(reading)], self.known[_place(reading)]


def _place(reading: Reading) -> tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor]:
    return slice(None), reading.heads[:, None, None], reading.rows[:, None], reading.columns


def probes(examination: Examination) -> Probes:
    """The probes of an examination, which its checks share."""
    return examination.once("dropout probes", lambda: Probes(examination))


def forward_mask(examination: Examination) -> ForwardMask:
    """The mask of the forward pass, which the checks of an examination share."""
    return examination.once("forward mask", lambda: ForwardMask(examination))


def spread(places: Sequence[Place], most: int) -> list[Place]:
    """At most so many of them, evenly spread, the first and the last among them."""
    if len(places) <= most:
        return list(places)
    return [places[round(index * (len(places) - 1) / (most - 1))] for index in range(most)]


def smallest_used(storage: Format) -> float:
    """Numbers from here on survive a cast to the storage format, and an accumulator that flushes subnormals."""
    accumulator = FP64 if storage is FP64 else FP32
    return MARGIN * max(storage.smallest_subnormal, accumulator.smallest_normal)


def _unit(case: AttentionCase, storage: Format) -> float:
    """u: the power of two, within half of the format's exponents, that brings scale·u closest to 1."""
    if case.softmax_scale == 0.0:
        return 1.0
    wanted = -round(math.log2(abs(case.softmax_scale)))
    return 2.0 ** max(min(wanted, storage.emax // 2), storage.emin // 2)


def _zeros(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
