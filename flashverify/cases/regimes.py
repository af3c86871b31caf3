"""Regimes: named distributions of inputs, and the drawing of a case's inputs from its own.

Inputs are drawn in float64 and rounded once to the case's dtype, so that quantisation is never counted as an error of a
kernel. Values stay small enough for out, dS and the gradients of a correct kernel to be finite in float16 (for scales
that are not extreme). Infinities and NaN are no regime: what they may reach is a property of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from flashverify.cases import dense_bias, designed_regimes, random_regimes
from flashverify.cases.caches import page_size, shared_pages
from flashverify.cases.case import AttentionCase
from flashverify.cases.sampling import Array, Source, Values, round_to, torch_dtype
from flashverify.cases.semantics import exists
from flashverify.cases.tensors import Inputs

HIDING_BELOW = -0.43
"""Normal numbers below this are a third of all."""

Regime = Callable[[Source], Values]

REGIMES: dict[str, Regime] = {
    regime.__name__.replace("_", "-"): regime for regime in (*random_regimes.REGIMES, *designed_regimes.REGIMES)
}
"""The regimes by name; the docstring of each says what it is and which defect it is for."""


def draw(case: AttentionCase, device: torch.device | str = "cpu") -> Inputs:
    """Draw the inputs of a case: the same bits on every device, whatever the layout.

    Args:
        case: the case; its layout is not looked at (see `layouts.apply`).
        device: where the tensors are to be.

    Returns:
        Contiguous tensors in the case's dtype; dlse and sinks in float32 (float64 for float64 cases). dlse and biases are
        standard normal, sinks twice that; each is None if the case does not ask for it. dout is 0 where there is no backward
        pass, and dout and dlse are 0 in rows beyond the length of their sequence. Keys and values of a page that a sequence
        shares are copies of those that it is shared with. Rotary embedding turns what was drawn: a regime's design of logits is
        that before it.

    Raises:
        ValueError: if there is no such regime.
    """
    if case.regime not in REGIMES:
        raise ValueError(f"regime: got {case.regime!r}, accepted are {', '.join(REGIMES)}")
    source = Source(case)
    values = REGIMES[case.regime](source)

    def tensor(x: Array, dtype: str) -> torch.Tensor:
        return torch.from_numpy(round_to(x, dtype)).to(torch_dtype(dtype)).contiguous().to(device)

    wide = "fp64" if case.dtype == "fp64" else "fp32"
    dlse = None
    if case.lse_grad:
        dlse = tensor(source.normal("dlse", source.q_shape[:3]), wide)
    inputs = Inputs(
        q=tensor(values.q, case.dtype),
        k=tensor(values.k, case.dtype),
        v=tensor(values.v, case.dtype),
        dout=tensor(np.zeros_like(values.dout) if case.forward_only else values.dout, case.dtype),
        dlse=dlse,
        bias=None if case.bias is None else _bias(case, source).to(device),
        sink=tensor(2.0 * source.normal("sink", (1, case.heads_q, 1)), wide) if case.sink else None,
    )
    _silence(case, inputs)
    _share(case, inputs)
    return inputs


def _silence(case: AttentionCase, inputs: Inputs) -> None:
    """Zero the cotangents of rows beyond the length of their sequence: no function gives such rows."""
    entries, rows = (torch.arange(size, device=inputs.q.device) for size in (case.batch, case.seqlen_q))
    real = exists(case, entries[:, None, None], rows)
    if real is not None:
        inputs.dout.masked_fill_(~real[:, None], 0.0)
        if inputs.dlse is not None:
            inputs.dlse.masked_fill_(~real[:, None, :, 0], 0.0)


def _share(case: AttentionCase, inputs: Inputs) -> None:
    """Copy the keys and values of shared pages to the sequences that they are shared with."""
    for one in shared_pages(case):
        size = page_size(case)
        for x in (inputs.k, inputs.v):
            x[one.entry, :, one.page * size :][:, :size] = x[one.owner, :, one.owners_page * size :][:, :size]


def _bias(case: AttentionCase, source: Source) -> torch.Tensor:
    """Standard normal biases; a mask, and the infinite entries of a bias, hide about a third, and the first row altogether."""
    stored = dense_bias.shape(case)
    assert stored is not None
    values = source.normal("bias", stored)
    hides = case.bias in {"mask", "hidden"}
    hidden = source.normal("hidden", stored) < HIDING_BELOW
    hidden[:, :, :1] = True
    if case.bias == "mask":
        return torch.from_numpy(~hidden).contiguous()
    values = round_to(values, case.dtype)
    return torch.from_numpy(np.where(hidden & hides, -np.inf, values)).to(torch_dtype(case.dtype)).contiguous()
