"""Kernels made up for tests: attention in plain float64 torch, rounded to the case's dtype, and the same with one thing broken.

Importable from worker processes: the factories of the campaign's tests are here too.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from flashverify.adapters.contracts import flash_attention
from flashverify.cases.case import AttentionCase
from flashverify.cases.semantics import visible_mask
from flashverify.cases.tensors import Inputs, Outputs
from flashverify.numerics.contract import Contract
from flashverify.numerics.formats import TORCH_DTYPES

CPU = torch.device("cpu")

HALF = AttentionCase(dtype="bf16", heads_q=2, seqlen_q=3, seqlen_k=4, head_dim=2, mask="causal")
SINGLE = HALF.replace(dtype="fp32")
DOUBLE = HALF.replace(dtype="fp64")
"""A small case, on which the healthy kernel passes, in three precisions."""


def attention(case: AttentionCase, inputs: Inputs) -> Outputs:
    """The definition in float64; out is rounded to the case's dtype, lse to float32, and the backward pass works from these."""
    dtype = TORCH_DTYPES[case.dtype]
    q, k, v, dout = (x.double() for x in (inputs.q, inputs.k, inputs.v, inputs.dout))
    k, v = (x.repeat_interleave(case.group_size, dim=1) for x in (k, v))
    seen = visible_mask(case, torch.tensor(0), torch.arange(case.seqlen_q), torch.arange(case.seqlen_k))
    scores = (case.softmax_scale * q @ k.mT).masked_fill(~seen, -torch.inf)
    exact_lse = torch.logsumexp(scores, -1)
    out = (torch.where(seen, torch.exp(scores - exact_lse[..., None]), 0.0) @ v).to(dtype)
    lse = exact_lse.to(torch.float64 if case.dtype == "fp64" else torch.float32)
    weights = torch.where(seen, torch.exp(scores - lse.double()[..., None]), 0.0)
    delta = (dout * out.double()).sum(-1) - (0.0 if inputs.dlse is None else inputs.dlse.double())
    ds = case.softmax_scale * weights * (dout @ v.mT - delta[..., None])
    per_key_head = (case.batch, case.heads_kv, case.group_size, case.seqlen_k, case.head_dim)
    dk, dv = ((x.mT @ y).reshape(per_key_head).sum(2).to(dtype) for x, y in ((ds, q), (weights, dout)))
    return Outputs(out=out, lse=lse, dq=(ds @ k).to(dtype), dk=dk, dv=dv)


class FakeKernel:
    """A kernel whose outputs are the definition's, after `change(case, inputs, outputs)`."""

    def __init__(
        self,
        change: Callable[[AttentionCase, Inputs, Outputs], Outputs | None] | None = None,
        *,
        returns_lse: bool = True,
        saves_outputs: bool = True,
        stated: dict[str, object] | None = None,
    ) -> None:
        self.name = "fake"
        self.device = CPU
        self.sources: Path | None = None
        self.returns_lse = returns_lse
        self.saves_outputs = saves_outputs
        self.predictable = True
        self.runs = 0
        self._change = change
        self._stated = stated or {}

    def declines(self, case: AttentionCase) -> str | None:
        return "head size 7" if case.head_dim == 7 else None

    def contract(self, case: AttentionCase) -> Contract:
        contract = flash_attention(case.dtype, self.device, block_q=None, block_k=16, block_k_exact=False)
        return dataclasses.replace(contract, **self._stated)  # type: ignore[arg-type]

    def configuration(self, case: AttentionCase) -> dict[str, str]:
        return {"case": case.dtype}

    def run(self, case: AttentionCase, inputs: Inputs) -> Outputs:
        self.runs += 1
        outputs = attention(case, inputs)
        changed = self._change(case, inputs, outputs) if self._change else None
        return outputs if changed is None else changed


def replaced(name: str, change: Callable[[torch.Tensor], object]) -> FakeKernel:
    """A kernel of which one tensor is changed."""

    def apply(case: AttentionCase, inputs: Inputs, outputs: Outputs) -> Outputs:
        return dataclasses.replace(outputs, **{name: change(getattr(outputs, name))})  # type: ignore[arg-type]

    return FakeKernel(apply)


def _end(code: int) -> None:
    os._exit(code)


def _raise(error: BaseException) -> None:
    raise error


BEHAVIOURS: dict[int, Callable[[], None]] = {
    1: lambda: _end(41),
    2: lambda: time.sleep(600),
    3: lambda: _raise(ArithmeticError("no luck\nand more of it")),
    4: lambda: _raise(RuntimeError("CUDA error: an illegal memory access was encountered")),
    5: lambda: sys.exit(0),
    6: lambda: _end(86),
}
"""What a kernel does on the case of a seed; other seeds are healthy."""


class MisbehavingKernel(FakeKernel):
    """Healthy but on the seeds of `BEHAVIOURS`; its configuration tells which process ran it."""

    def configuration(self, case: AttentionCase) -> dict[str, str]:
        return {"process": str(os.getpid())}

    def run(self, case: AttentionCase, inputs: Inputs) -> Outputs:
        BEHAVIOURS.get(case.seed, lambda: None)()
        return super().run(case, inputs)


def misbehaving(name: str, device: torch.device) -> MisbehavingKernel:
    """A factory for worker processes."""
    del name, device
    return MisbehavingKernel()


def refused(name: str, device: torch.device) -> MisbehavingKernel:
    """A factory that makes no kernel."""
    raise ValueError(f"kernel: got {name!r} on {device}, accepted are none")
