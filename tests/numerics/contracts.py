"""Contracts of the simulated kernels, and the ratio of their errors to the hard budget."""

from __future__ import annotations

import numpy as np
import torch

from flashverify.cases.case import AttentionCase
from flashverify.cases.tensors import Inputs
from flashverify.numerics.contract import Contract
from flashverify.numerics.dots import AnyOrder, SplitProducts, TensorCore
from flashverify.numerics.formats import BF16, FORMATS, FP32, FP64, TF32
from flashverify.numerics.hard import backward_budget, forward_budget
from tests.numerics.simulator import Options, truth


def contract_of(dtype: str, options: Options) -> Contract:
    """What a simulated kernel states about itself."""
    half = dtype in {"fp16", "bf16"}
    cores = {
        "tensor-core": TensorCore(16, 2),
        "tf32": TensorCore(8, 2),
        "tf32-truncated": TensorCore(8, 2),
        "bf16x6": SplitProducts(TensorCore(16, 2), BF16, 3),
        "tf32x3": SplitProducts(TensorCore(8, 2), TF32, 2),
    }
    return Contract(
        storage=FORMATS[dtype],
        accumulator=FP64 if dtype == "fp64" else FP32,
        dot=AnyOrder() if dtype == "fp64" else cores.get(options.dot, AnyOrder()),
        operand=TF32 if options.dot in {"tf32", "tf32-truncated"} else None,
        operand_truncated=options.dot == "tf32-truncated",
        probability=FORMATS[dtype] if half else None,
        score_gradient=FORMATS[dtype] if half else None,
        exp2_ulps=options.exp2_ulps + 0.5,
        log2_ulps=2.0,
        log2_absolute=0.0,
        division_ulps=0.5,
        exponent=options.exponent,
        cuts_probability=options.cut,
        cap_slope=options.cap_slope,
        flushes_subnormals=dtype != "fp64",
        block_k=options.block_k,
        direction=options.direction,
        splits=options.splits,
        prescaled=options.prescale,
        rescale=options.rescale,
    )


def as_inputs(arrays: dict[str, np.ndarray | None]) -> Inputs:
    """Arrays as float64 tensors."""
    return Inputs(**{name: None if x is None else torch.from_numpy(x) for name, x in arrays.items()})


def ratios(
    case: AttentionCase, arrays: dict[str, np.ndarray | None], got: dict[str, np.ndarray], contract: Contract
) -> dict[str, float]:
    """Largest error / budget of each tensor, gradients in both modes; NaN counts as infinite."""
    inputs = as_inputs(arrays)
    true = truth(case, arrays)
    modular = truth(case, arrays, (got["out"], got["lse"]))
    out, lse = (torch.from_numpy(true[name].astype(np.float64)) for name in ("out", "lse"))
    forward = forward_budget(case, inputs, out, lse, contract)
    own = (torch.from_numpy(got["out"]), torch.from_numpy(got["lse"]))
    found = {"out": _ratio(got["out"], true["out"], forward.out), "lse": _ratio(got["lse"], true["lse"], forward.lse)}
    end_to_end = backward_budget(case, inputs, out, lse, contract, forward)
    local = backward_budget(case, inputs, *own, contract, None)
    for name, budget, local_budget in zip(("dq", "dk", "dv"), end_to_end, local, strict=True):
        found[f"{name} end-to-end"] = _ratio(got[name], true[name], budget)
        found[f"{name} modular"] = _ratio(got[name], modular[name], local_budget)
    return found


def _ratio(got: np.ndarray, true: np.ndarray, budget: torch.Tensor) -> float:
    allowed = budget.numpy()
    assert not np.isnan(allowed).any()
    assert (allowed >= 0).all()
    if got.size == 0:
        return 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.where(got == true, 0, np.abs(got - true))
        ratio = np.where(error == 0, 0, error / allowed)
    return float(np.where(np.isnan(ratio), np.inf, ratio).max())
