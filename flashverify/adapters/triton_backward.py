"""The backward kernels of our package with the dropout mask in the sign bits of P, or in a tile of its own: to compare them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from flashverify.adapters.triton import PACKAGE

SIGNED, SEPARATE, NO_MASK = "signed tile", "separate mask", "no dropout"
KERNELS = ("dkdv_kernel", "dq_kernel")


@dataclass(frozen=True, slots=True)
class Resources:
    """What a compiled kernel takes.

    Attributes:
        registers: of a thread.
        spills: registers of a thread that go to memory, in words of 4 bytes, as Triton counts them.
        shared: bytes of shared memory a block.
    """

    registers: int
    spills: int
    shared: int


class Backward:
    """The backward pass of one problem, by how it keeps its mask."""

    def __init__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dout: torch.Tensor, causal: bool, rate: float, seed: int
    ) -> None:
        """Run the forward passes.

        Args:
            q: (B, H, N, D), as k, v and dout, on a GPU.
            k: keys.
            v: values.
            dout: cotangent of out.
            causal: whether the mask is causal, of as many queries as keys.
            rate: drop rate, between 0 and 1.
            seed: of the mask, from 0 to 2^63 - 1.
        """
        self._tensors = q, k, v, dout
        self._given = q.shape[-1] ** -0.5, 0 if causal else None, None, "ieee"
        dropout, generator = _module("dropout"), _module("generator")
        state = generator.state_of(seed, 0, q.device)
        threshold = dropout.threshold_of(rate)
        self._masks = {
            NO_MASK: None,
            SIGNED: dropout.Dropout(state, threshold, separate=False),
            SEPARATE: dropout.Dropout(state, threshold, separate=True),
        }
        self._tiles, self._saved = {}, {}
        for name, mask in self._masks.items():
            sizes = q.shape[-1], v.shape[-1]
            tiles = _module("tiles").tiles_for(q.device, q.dtype, *sizes, causal, dropout=mask is not None)
            self._tiles[name] = tiles
            self._saved[name] = _module("forward").attention_forward(q, k, v, *self._given, tiles.forward, dropout=mask)

    def calls(self) -> dict[str, Callable[[], object]]:
        """By how the mask is kept: a function that runs the backward pass."""
        return {name: lambda name=name: self._run(name) for name in self._masks}  # type: ignore[misc]

    def resources(self) -> dict[tuple[str, str], Resources]:
        """(how the mask is kept, name of a kernel) -> what the compiled kernel takes."""
        found = {}
        for name in self._masks:
            with _launched() as compiled:
                self._run(name)
            for kernel in KERNELS:
                one = compiled[kernel]
                found[name, kernel] = Resources(one.n_regs, one.n_spills, one.metadata.shared)
        return found

    def _run(self, name: str) -> tuple[torch.Tensor, ...]:
        q, k, v, dout = self._tensors
        (out, lse), tiles = self._saved[name], self._tiles[name]
        run = _module("backward").attention_backward
        gradients: tuple[torch.Tensor, ...] = run(
            dout, None, q, k, v, out, lse, *self._given, tiles.dkdv, tiles.dq, dropout=self._masks[name]
        )
        return gradients[:3]


@contextmanager
def _launched() -> Iterator[dict[str, Any]]:
    """Within, the compiled kernels that are launched are kept, by their function's name."""
    from triton.runtime.jit import JITFunction

    launch = JITFunction.run
    found: dict[str, Any] = {}

    def keep(kernel, *arguments, **options):  # type: ignore[no-untyped-def]
        compiled = launch(kernel, *arguments, **options)
        found[kernel.__name__] = compiled
        return compiled

    JITFunction.run = keep
    try:
        yield found
    finally:
        JITFunction.run = launch


def _module(name: str):  # type: ignore[no-untyped-def]  # the package is imported late
    return importlib.import_module(f"{PACKAGE}.{name}")
