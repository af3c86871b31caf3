"""Whether tensors have the shapes that their case says."""

from __future__ import annotations

import torch

from flashverify.cases.case import AttentionCase
from flashverify.cases.tensors import Inputs


def require_inputs(case: AttentionCase, inputs: Inputs) -> None:
    """Check the inputs against the case.

    Raises:
        ValueError: if a tensor has another shape than the case says; the message names it.
    """
    query_side = (case.batch, case.heads_q, case.seqlen_q, case.head_dim)
    key_side = (case.batch, case.heads_kv, case.seqlen_k, case.head_dim)
    values, out = (*key_side[:3], case.value_dim), (*query_side[:3], case.value_dim)
    for name, shape in (("q", query_side), ("k", key_side), ("v", values), ("dout", out)):
        _require(name, getattr(inputs, name), shape)
    if inputs.dlse is not None:
        _require("dlse", inputs.dlse, query_side[:3])


def require_forward(case: AttentionCase, out: torch.Tensor, lse: torch.Tensor) -> None:
    """Check out and lse, as handed to a backward pass, against the case.

    Raises:
        ValueError: if a tensor has another shape than the case says, which the message names, or if there is no backward pass.
    """
    require_backward(case)
    rows = (case.batch, case.heads_q, case.seqlen_q)
    _require("out", out, (*rows, case.value_dim))
    _require("lse", lse, rows)


def require_backward(case: AttentionCase) -> None:
    """Check that the case is one whose gradients oracles have.

    Raises:
        ValueError: if it has rotary embedding, whose cases have no backward pass.
    """
    if case.rotary is not None:
        raise ValueError(f"rotary: got {case.rotary!r}, accepted for gradients is None: there is no backward pass")


def _require(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, the case accepts {shape}")
