"""Regimes: named distributions of inputs, and the drawing of a case's inputs from its own.

Inputs are drawn in float64 and rounded once to the case's dtype, so that quantisation is never counted as an error of a
kernel. Values stay small enough for out, dS and the gradients of a correct kernel to be finite in float16 (for scales
that are not extreme). Infinities and NaN are no regime: what they may reach is a property of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from flashverify.cases import designed_regimes, random_regimes
from flashverify.cases.case import AttentionCase
from flashverify.cases.sampling import Array, Source, Values, round_to, torch_dtype
from flashverify.cases.tensors import Inputs

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
        Contiguous tensors in the case's dtype. dlse is standard normal, in float32 (float64 for float64 cases), or None
        if the case does not ask for it.

    Raises:
        ValueError: if there is no such regime.
    """
    if case.regime not in REGIMES:
        raise ValueError(f"regime: got {case.regime!r}, accepted are {', '.join(REGIMES)}")
    source = Source(case)
    values = REGIMES[case.regime](source)

    def tensor(x: Array, dtype: str) -> torch.Tensor:
        return torch.from_numpy(round_to(x, dtype)).to(torch_dtype(dtype)).contiguous().to(device)

    dlse = None
    if case.lse_grad:
        dlse = tensor(source.normal("dlse", source.q_shape[:3]), "fp64" if case.dtype == "fp64" else "fp32")
    return Inputs(
        q=tensor(values.q, case.dtype),
        k=tensor(values.k, case.dtype),
        v=tensor(values.v, case.dtype),
        dout=tensor(values.dout, case.dtype),
        dlse=dlse,
    )
