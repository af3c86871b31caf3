"""Running a differentiable callable forward and backward with given cotangents."""

from __future__ import annotations

from collections.abc import Callable

import torch

from flashverify.adapters.kernel import KernelDefectError
from flashverify.cases.tensors import Inputs, Outputs, has_gradients

Attention = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]
"""q, k, v (B,H,N,D) -> out (B,H,N,D) and lse (B,H,N), or None where lse is not returned.

Where the inputs have a bias or a sink, it takes them as keyword arguments `bias` and `sink`.
"""


def differentiate(attention: Attention, inputs: Inputs) -> Outputs:
    """Outputs and gradients of a callable; its inputs are leaves with the strides given, its cotangents come as they are.

    Returns:
        Outputs; lse is NaN if the callable returns none.

    Raises:
        KernelDefectError: if the callable returns no tensor, an out of another shape than q's, or one of its results or inputs
            has no gradient.
    """
    q, k, v = (x.detach().requires_grad_() for x in (inputs.q, inputs.k, inputs.v))
    wanted = dict(zip(("bias", "sink"), has_gradients(inputs), strict=True))
    features = {
        name: tensor.detach().requires_grad_(wanted[name])
        for name, tensor in (("bias", inputs.bias), ("sink", inputs.sink))
        if tensor is not None
    }
    out, lse = attention(q, k, v, **features)
    results, cotangents = {"out": out}, [inputs.dout]
    if inputs.dlse is not None and lse is not None:
        results["lse"] = lse
        cotangents.append(inputs.dlse)
    for (name, result), cotangent in zip(results.items(), cotangents, strict=True):
        if not isinstance(result, torch.Tensor):
            raise KernelDefectError(f"{name}: got {type(result).__name__}, accepted are tensors")
        if result.shape != cotangent.shape:
            raise KernelDefectError(f"{name}: got shape {tuple(result.shape)}, accepted is {tuple(cotangent.shape)}")
        if not result.requires_grad:
            raise KernelDefectError(f"{name}: the kernel's result is not differentiable: it has no grad_fn")
    leaves = {"dq": q, "dk": k, "dv": v} | {f"d{name}": leaf for name, leaf in features.items() if wanted[name]}
    found = torch.autograd.grad(list(results.values()), list(leaves.values()), cotangents, allow_unused=True)
    gradients = dict(zip(leaves, found, strict=True))
    for name, gradient in gradients.items():
        if gradient is None:
            raise KernelDefectError(f"{name}: the kernel's backward pass gives none")
    if lse is None:
        lse = torch.full(out.shape[:3], torch.nan, dtype=torch.float64, device=out.device)
    return Outputs(out=out.detach(), lse=lse.detach(), **gradients)
