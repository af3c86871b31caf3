"""Compile the probes for a GPU that is not there, and print the matrix instructions that they contain.

python -m tests.numerics.axioms.compile_without_gpu 90
"""

from __future__ import annotations

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "0"

import torch
from triton.runtime import driver, jit

from flashverify.numerics.axioms import finding, measure, probes
from tests.kernels.compile_without_gpu import StandIn


class Warm(probes.TritonPrimitives):
    """The probes of a GPU that is not there: every launch compiles, and nothing runs."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.lane = "gpu"
        self.name = "not there"
        self._compiled = None
        self.instructions: dict[str, None] = {}

    def instruction(self) -> str:
        self.instructions[super().instruction()] = None
        return super().instruction()


def main(capability: str) -> None:
    driver.set_active(StandIn(int(capability)))
    launch, shared = jit.JITFunction.run, {}

    def warm_up(kernel, *arguments, grid, warmup, **options):
        compiled = launch(kernel, *arguments, grid=grid, warmup=True, **options)
        shared[kernel.__name__] = max(compiled.metadata.shared, shared.get(kernel.__name__, 0))
        return compiled

    jit.JITFunction.run = warm_up
    finding.float32_patterns.__globals__["is_complete"] = lambda primitives: False  # a few inputs will do: nothing runs
    primitives = Warm()
    found = measure.examine(primitives)
    crashed = [f"{line.name}: {line.text}" for line in found.observations if line.value == "crashed"]
    print(json.dumps({"shared": shared, "instructions": list(primitives.instructions), "crashed": crashed}))


if __name__ == "__main__":
    main(*sys.argv[1:])
