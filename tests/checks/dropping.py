"""Attention with dropout as a kernel computes it, in plain torch, with a mask for each of its parts, any of which may be wrong.

Weights before normalisation, P and dS are rounded to the case's dtype before they multiply, sums are in float64, the factor
comes last.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from flashverify.cases import dense_bias
from flashverify.cases.case import AttentionCase
from flashverify.cases.semantics import alibi_bias, alibi_slope_tensor, cap_slope, capped, visible_mask
from flashverify.cases.tensors import Inputs, Outputs
from flashverify.dropout.mask import HALF, SIDE, WORDS, Stream, keep_tensor, stream_of
from flashverify.dropout.of_case import kept, rescale
from flashverify.dropout.signbit import encode
from flashverify.numerics.formats import TORCH_DTYPES
from tests.checks.fakes import CPU, FakeKernel

Mask = Callable[[AttentionCase], torch.Tensor]
"""The kept pairs of a case, bool (batch, heads_q, seqlen_q, seqlen_k)."""


def indices(case):
    entries, heads, rows, columns = (torch.arange(n) for n in (case.batch, case.heads_q, case.seqlen_q, case.seqlen_k))
    return entries[:, None, None, None], heads[:, None, None], rows[:, None], columns


def predicted(case):
    return kept(case, *indices(case))


def of(case, change, *places):
    """A mask of a changed stream, at changed places."""
    return keep_tensor(change(stream_of(case)), case.heads_q, *places).expand(
        case.batch, case.heads_q, case.seqlen_q, case.seqlen_k
    )


def constant_seed(case):
    return of(case, lambda stream: dataclasses.replace(stream, seed=0x1BF58), *indices(case))


def no_offset(case):
    return of(case, lambda stream: dataclasses.replace(stream, offset=0), *indices(case))


def no_heads(case):
    entries, _, rows, columns = indices(case)
    return of(case, lambda stream: stream, entries, torch.zeros(1, 1, 1, dtype=torch.int64), rows, columns)


def no_entries(case):
    entries, heads, rows, columns = indices(case)
    return of(case, lambda stream: stream, 0 * entries, heads, rows, columns)


def key_heads(case):
    """Every query head of a group reads the words of its key head."""
    entries, heads, rows, columns = indices(case)
    return of(case, lambda stream: stream, entries, heads // case.group_size, rows, columns)


def transposed(case):
    """Rows and keys exchanged in the counter."""
    entries, heads, rows, columns = indices(case)
    side = case.replace(seqlen_q=case.seqlen_k, seqlen_k=case.seqlen_q)
    return of(side, lambda stream: stream, entries, heads, columns[:, None], rows[:, 0]).mT


def tiles_of_rows(case):
    """Rows are counted within tiles of 16."""
    entries, heads, rows, columns = indices(case)
    return of(case, lambda stream: stream, entries, heads, rows % 16, columns)


def no_carry(case):
    """The low word of the counter wraps without the high one."""
    columns = torch.arange(case.seqlen_k)
    stream = stream_of(case)
    low, high = stream.offset // WORDS % 2**32, stream.offset // WORDS >> 32
    wraps = low + columns // SIDE * HALF + columns % HALF >= 2**32
    around = of(case, lambda stream: Stream(stream.seed, WORDS * ((high - 1) * 2**32 + low), stream.rate), *indices(case))
    return torch.where(wraps, around, predicted(case))


def eight_bits(case):
    rate = round(stream_of(case).rate * 256) / 256
    return of(case, lambda stream: dataclasses.replace(stream, rate=rate), *indices(case))


def greater(case):
    """Kept iff the word is greater than the threshold."""
    rate = (stream_of(case).threshold + 1) / 2**32
    return of(case, lambda stream: dataclasses.replace(stream, rate=rate), *indices(case))


def one_bit(case):
    mask = predicted(case).clone()
    mask[-1, -1, -1, -1] ^= True
    return mask


def nothing(case):
    return torch.ones_like(predicted(case))


@dataclass
class Dropping(FakeKernel):
    """A kernel with dropout.

    Attributes:
        forward, of_dq, of_dk, of_dv: the mask of each part.
        predictable: see `Kernel`.
        factor: what kept pairs are multiplied by, by the one that is right.
        signed: what is done to the probabilities with their signs.
    """

    forward: Mask = predicted
    of_dq: Mask = predicted
    of_dk: Mask = predicted
    of_dv: Mask = predicted
    predictable: bool = True
    factor: Callable[[float], float] = float
    signed: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.clone

    def __post_init__(self):
        self.name, self.device, self.runs = "dropping", CPU, 0
        self.sources: Path | None = None
        self.returns_lse = self.saves_outputs = True
        self._change, self._stated, self._masks = None, {}, {}

    def mask(self, name, case):
        """One of the masks, made once a case."""
        made = getattr(self, name)
        if not inspect.isfunction(made):
            return made(case)
        if (made, case) not in self._masks:
            self._masks[made, case] = made(case)
        return self._masks[made, case]

    def run(self, case, inputs):
        self.runs += 1
        return attention(self, case, inputs)

    def signed_probabilities(self, case, inputs):
        p = probabilities(case, inputs)[0].to(TORCH_DTYPES[case.dtype])
        return self.signed(encode(p, self.mask("forward", case)))


def everywhere(mask, **fields):
    """A kernel all of whose parts have one mask."""
    return Dropping(forward=mask, of_dq=mask, of_dk=mask, of_dv=mask, **fields)


def probabilities(case: AttentionCase, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """P, lse and what multiplies dS for the softcap."""
    entries = indices(case)[0]
    rows, columns = torch.arange(case.seqlen_q), torch.arange(case.seqlen_k)
    q, k = inputs.q.double(), inputs.k.double().repeat_interleave(case.group_size, dim=1)
    x = case.softmax_scale * q @ k.mT
    scores, bias = capped(case, x), dense_bias.expanded(case, inputs)
    seen = visible_mask(case, entries, rows, columns).expand(scores.shape)
    if bias is not None:
        seen, scores = seen & dense_bias.shown(bias), scores + dense_bias.added(bias)
    if case.alibi is not None:
        scores = scores + alibi_bias(case, entries, alibi_slope_tensor(case)[..., None, None], rows, columns)
    scores = scores.masked_fill(~seen, -torch.inf)
    lse = torch.logsumexp(scores, -1)
    if inputs.sink is not None:
        lse = torch.logaddexp(lse, inputs.sink.double())
    return torch.exp(scores - lse[..., None]).nan_to_num(nan=0.0), lse, cap_slope(case, x)


def attention(kernel: Dropping, case: AttentionCase, inputs: Inputs) -> Outputs:
    dtype, r = TORCH_DTYPES[case.dtype], kernel.factor(rescale(case))
    k, v = (x.double().repeat_interleave(case.group_size, dim=1) for x in (inputs.k, inputs.v))
    q, dout = inputs.q.double(), inputs.dout.double()
    p, lse, slope = probabilities(case, inputs)
    largest = p.amax(-1, keepdim=True) if case.seqlen_k else p.new_ones(p.shape[:-1])[..., None]
    weights = torch.where(largest > 0.0, p / largest, 0.0).to(dtype).double()
    out = (r * largest * ((weights * kernel.mask("forward", case)) @ v)).to(dtype)
    delta = (dout * out.double()).sum(-1, keepdim=True)
    dp = r * (dout @ v.mT)
    masks = (kernel.mask(name, case) for name in ("of_dq", "of_dk"))
    ds_q, ds_k = ((slope * p * (mask * dp - delta)).to(dtype).double() for mask in masks)
    dv = r * ((p.to(dtype).double() * kernel.mask("of_dv", case)).mT @ dout)
    dk, dv = (x.unflatten(1, (case.heads_kv, case.group_size)).sum(2).to(dtype) for x in (case.softmax_scale * ds_k.mT @ q, dv))
    dq = (case.softmax_scale * ds_q @ k).to(dtype)
    dbias = dsink = None
    if inputs.bias is not None and inputs.bias.dtype != torch.bool:
        dbias = dense_bias.summed(case, ds_q).to(dtype)
    if inputs.sink is not None:
        dsink = torch.zeros_like(inputs.sink)
    return Outputs(out, lse.to(torch.float64 if case.dtype == "fp64" else torch.float32), dq, dk, dv, dbias, dsink)
