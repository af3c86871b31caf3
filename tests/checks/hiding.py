"""Kernels made up for tests of what may not matter: attention whose hiding, sums and heads can be broken one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from flashverify.adapters.contracts import flash_attention
from flashverify.adapters.kernel import PROMISES
from flashverify.cases.case import AttentionCase
from flashverify.cases.tensors import Inputs, Outputs
from flashverify.checks.related import seen_pairs
from flashverify.numerics.contract import Contract
from flashverify.numerics.formats import TORCH_DTYPES

CPU = torch.device("cpu")

Change = Callable[[AttentionCase, Inputs, Outputs], Outputs]


def sum_of_kept(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Weighted sums, without what has no weight."""
    terms = weights[..., None] * values[..., None, :, :]
    return torch.where(weights[..., None] == 0.0, 0.0, terms).sum(-2)


@dataclass
class Hiding:
    """A kernel that computes in float64, pair by pair, and rounds what it returns.

    Attributes:
        hide: makes scores of pairs that are not seen ineffective, from scores and which pairs are seen.
        weigh: sums values by weights.
        change: what is done to outputs.
        given: what it promises.
        returns_lse: see `Kernel`.
    """

    hide: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = lambda scores, seen: scores.masked_fill(~seen, -torch.inf)
    weigh: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = field(default=sum_of_kept)
    change: Change = lambda case, inputs, outputs: outputs
    given: tuple[str, ...] = PROMISES
    returns_lse: bool = True
    saves_outputs: bool = True
    predictable: bool = False
    name: str = "hiding"
    device: torch.device = field(default=CPU)
    sources: Path | None = None

    @property
    def promises(self) -> frozenset[str]:
        return frozenset(self.given)

    def declines(self, case: AttentionCase) -> str | None:
        return None

    def contract(self, case: AttentionCase) -> Contract:
        return flash_attention(case.dtype, self.device, block_q=None, block_k=16, block_k_exact=False)

    def configuration(self, case: AttentionCase) -> dict[str, str]:
        return {}

    def run(self, case: AttentionCase, inputs: Inputs) -> Outputs:
        dtype = TORCH_DTYPES[case.dtype]
        q, k, v, dout = (x.double() for x in (inputs.q, inputs.k, inputs.v, inputs.dout))
        k, v = (x.repeat_interleave(case.group_size, 1) for x in (k, v))
        seen = seen_pairs(case, inputs)
        scores = self.hide(case.softmax_scale * torch.einsum("bhid,bhjd->bhij", q, k), seen)
        largest = scores.amax(-1, keepdim=True)
        shift = torch.where(largest.isinf(), 0.0, largest)
        p = torch.exp(scores - shift)
        total = p.sum(-1, keepdim=True)
        weights = torch.where(total == 0.0, 0.0, p / total)
        out = self.weigh(weights, v).to(dtype)
        lse = (shift + total.log())[..., 0]
        dlse = 0.0 if inputs.dlse is None else inputs.dlse.double()
        delta = ((dout * out.double()).sum(-1) - dlse)[..., None]
        ds = case.softmax_scale * torch.where(weights == 0.0, 0.0, weights * (torch.einsum("bhid,bhjd->bhij", dout, v) - delta))
        shape = (case.batch, case.heads_kv, case.group_size, case.seqlen_k, -1)
        dk, dv = (self.weigh(a.mT, b).reshape(shape).sum(2).to(dtype) for a, b in ((ds, q), (weights, dout)))
        wide = torch.float64 if case.dtype == "fp64" else torch.float32
        outputs = Outputs(out=out, lse=lse.to(wide), dq=self.weigh(ds, k).to(dtype), dk=dk, dv=dv)
        return self.change(case, inputs, outputs)


def product(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The same as a product of matrices: 0 times NaN is NaN."""
    return weights @ values
