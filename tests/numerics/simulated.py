"""The simulated kernel as a kernel under examination: the checks judge it like any other."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import torch

from flashverify.cases.case import AttentionCase
from flashverify.cases.tensors import TENSORS, Inputs, Outputs
from flashverify.numerics.contract import Contract
from flashverify.numerics.formats import TORCH_DTYPES
from tests.numerics.contracts import contract_of
from tests.numerics.simulator import Options, simulate

HONEST = {
    "fp16": Options(dot="tensor-core", exponent="shifted"),
    "bf16": Options(dot="tensor-core", exponent="shifted"),
    "fp32": Options(dot="any-order", exponent="shifted"),
}
"""Faultless kernels by dtype, built like this project's own: scores shifted before they are scaled, blocks of 32 keys."""


def sharp_contract_of(dtype: str, options: Options) -> Contract:
    """`contract_of` with what the sharp budget needs: the exponential's mean and rms error, the scale's one rounding."""
    noise = options.exp2_ulps * (options.exp2_ulps + 1) / 3.0
    return dataclasses.replace(
        contract_of(dtype, options),
        exp2_mean_ulps=0.0,
        exp2_rms_ulps=math.sqrt(noise + 1.0 / 12.0),
        scale_roundings=1,
    )


class SimulatedKernel:
    """One kernel with one arithmetic, and possibly a defect that its contract does not tell of.

    Args:
        options: how it works.
        stated: what it says of itself, if that is not how it works: options, or fields of the contract.
    """

    name = "simulated"
    device = torch.device("cpu")
    returns_lse = True
    saves_outputs = True
    predictable = True
    sources: Path | None = None

    def __init__(self, options: Options | None = None, *, stated: Options | None = None, **fields: object) -> None:
        self._options = options
        self._stated = stated
        self._fields = fields

    def declines(self, case: AttentionCase) -> str | None:
        return "the simulated tensor core has no float64 of its own" if case.dtype == "fp64" else None

    def contract(self, case: AttentionCase) -> Contract:
        stated = self._stated or self._options or HONEST[case.dtype]
        return dataclasses.replace(sharp_contract_of(case.dtype, stated), **self._fields)  # type: ignore[arg-type]

    def configuration(self, case: AttentionCase) -> dict[str, str]:
        options = self._options or HONEST[case.dtype]
        return {name: str(value) for name, value in dataclasses.asdict(options).items()}

    def run(self, case: AttentionCase, inputs: Inputs) -> Outputs:
        given = {name: getattr(inputs, name) for name in ("q", "k", "v", "dout", "dlse")}
        arrays = {name: None if x is None else x.double().numpy() for name, x in given.items()}
        options = self._options or HONEST[case.dtype]
        # noise of another draw is another noise
        got = simulate(case, arrays, dataclasses.replace(options, noise=options.noise + 1000 * case.seed))
        dtypes = dict.fromkeys(TENSORS, TORCH_DTYPES[case.dtype]) | {"lse": torch.float32}
        return Outputs(**{name: torch.from_numpy(np.asarray(got[name], np.float64)).to(dtypes[name]) for name in TENSORS})
