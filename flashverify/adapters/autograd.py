"""Running a differentiable callable forward and backward with given cotangents."""

from __future__ import annotations

from collections.abc import Callable

import torch

from flashverify.cases.tensors import Inputs, Outputs

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]
"""q, k, v (B,H,N,D) -> out (B,H,N,D) and lse (B,H,N), or None where lse is not returned."""


def differentiate(attention: Attention, inputs: Inputs) -> Outputs:
    """Outputs and gradients of a callable; its inputs are leaves with the strides given, its cotangents come as they are.

    Returns:
        Outputs; lse is NaN if the callable returns none.
    """
    q, k, v = (x.detach().requires_grad_() for x in (inputs.q, inputs.k, inputs.v))
    out, lse = attention(q, k, v)
    outputs, cotangents = [out], [inputs.dout]
    if inputs.dlse is not None and lse is not None:
        outputs.append(lse)
        cotangents.append(inputs.dlse)
    dq, dk, dv = torch.autograd.grad(outputs, (q, k, v), cotangents)
    if lse is None:
        lse = torch.full(out.shape[:3], torch.nan, dtype=torch.float64, device=out.device)
    return Outputs(out=out.detach(), lse=lse.detach(), dq=dq, dk=dk, dv=dv)
