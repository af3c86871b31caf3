"""The tensors of a case: what goes in, and what comes out (of a kernel, of an oracle, or as a budget)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

FORWARD = ("out", "lse")
BACKWARD = ("dq", "dk", "dv")
TENSORS = FORWARD + BACKWARD
OF_FEATURES = ("dbias", "dsink")
"""Gradients of tensors that a case may have besides q, k and v."""


@dataclass(slots=True)
class Inputs:
    """Inputs of a case, drawn in its dtype; logical shapes are B,H,N,D whatever the memory layout.

    Attributes:
        q: (batch, heads_q, seqlen_q, head_dim).
        k: (batch, heads_kv, seqlen_k, head_dim).
        v: (batch, heads_kv, seqlen_k, value_dim).
        dout: cotangent of out, shaped like out: (batch, heads_q, seqlen_q, value_dim).
        dlse: cotangent of lse, (batch, heads_q, seqlen_q), float32 (float64 for float64 cases), or None.
        bias: biases of logits in the case's dtype, or which pairs take part (bool), shaped as `dense_bias.shape` says, or None.
        sink: one more logit for each query head's denominator, (1, heads_q, 1), float32 (float64 for float64 cases), or None.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    dout: torch.Tensor
    dlse: torch.Tensor | None
    bias: torch.Tensor | None = None
    sink: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> Inputs:
        """The same values on another device; strides may change, so lay the tensors out there (`layouts.apply`)."""
        return Inputs(
            q=self.q.to(device),
            k=self.k.to(device),
            v=self.v.to(device),
            dout=self.dout.to(device),
            dlse=None if self.dlse is None else self.dlse.to(device),
            bias=None if self.bias is None else self.bias.to(device),
            sink=None if self.sink is None else self.sink.to(device),
        )

    def double(self) -> Inputs:
        """The same values, exactly, in float64."""
        return Inputs(
            q=self.q.double(),
            k=self.k.double(),
            v=self.v.double(),
            dout=self.dout.double(),
            dlse=None if self.dlse is None else self.dlse.double(),
            bias=self.bias if self.bias is None or self.bias.dtype == torch.bool else self.bias.double(),
            sink=None if self.sink is None else self.sink.double(),
        )


def has_gradients(inputs: Inputs) -> tuple[bool, bool]:
    """Whether there are gradients of a bias (a mask has none), and of sinks."""
    return inputs.bias is not None and inputs.bias.dtype != torch.bool, inputs.sink is not None


@dataclass(slots=True)
class Outputs:
    """One tensor for each output of a case: a kernel's values, an oracle's truth, a radius or a budget.

    Attributes:
        out: (batch, heads_q, seqlen_q, value_dim).
        lse: natural log of the sum of exponentials, (batch, heads_q, seqlen_q).
        dq: gradient with respect to q, shaped like q; None, as dk and dv, in cases without a backward pass.
        dk: gradient with respect to k, shaped like k (summed over the query heads of a group).
        dv: gradient with respect to v, shaped like v.
        dbias: gradient with respect to a bias, shaped like it, or None: there is none, or it is a mask.
        dsink: gradient with respect to the sinks, (1, heads_q, 1), or None.
    """

    out: torch.Tensor
    lse: torch.Tensor
    dq: torch.Tensor | None = None
    dk: torch.Tensor | None = None
    dv: torch.Tensor | None = None
    dbias: torch.Tensor | None = None
    dsink: torch.Tensor | None = None

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and tensor of those that there are, in the order of `TENSORS`, then of `OF_FEATURES`."""
        for name in (*TENSORS, *OF_FEATURES):
            tensor = getattr(self, name)
            if tensor is not None:
                yield name, tensor
