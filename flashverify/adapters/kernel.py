"""The protocol of a kernel under examination."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from flashverify.cases.case import AttentionCase
from flashverify.cases.tensors import Inputs, Outputs
from flashverify.numerics.contract import Contract


class KernelDefectError(Exception):
    """What a kernel did is wrong before any number is compared: a shape or dtype, a missing gradient, an input overwritten."""


class Kernel(Protocol):
    """A kernel under examination: an adapter around any callable.

    Attributes:
        name: what the user asked for, and reports show.
        device: where its tensors live.
        returns_lse: whether its lse is its own; otherwise lse is NaN, and nothing that needs it is checked.
        saves_outputs: whether its backward pass works from the out and lse that it returned, as FlashAttention's does: then it
            is also checked as a function of them ("modular"). A kernel that keeps more digits can't be held to that.
        predictable: whether its dropout mask is the one that docs/adr/0016 defines and the host predicts. One of another
            generator is held to itself alone: backward against forward, its rate and independence. Either way the mask follows
            from the case, and is the same whenever the case runs: a generator's state is set to the case's stream before.
        run_again: a method of case and inputs like `run`, if there is one, that leaves the generator's state as the call before
            left it: what a training step does after another one.
        signed_probabilities: a method of case and inputs, if there is one: the probabilities before dropout, in the case's
            dtype, (batch, heads_q, seqlen_q, seqlen_k), with the sign bit set where dropout drops a pair, visible or not; or
            None, where it returns none.
        schedules: a method of a case, if there is one: name -> the same kernel under another schedule (tile sizes, warps,
            stages) than the one that it has for the case; without those whose tiles are as long as the case.
        unrounded: a method, if there is one: outputs in the accumulator's format, before the final rounding, as a debug mode
            writes them; the gradients are still a function of out as users get it. None where there is nothing to leave out.
        sources: folder of the package that holds its source, to be hashed for the record, or None.
    """

    name: str
    device: torch.device
    returns_lse: bool
    saves_outputs: bool
    predictable: bool
    sources: Path | None

    def declines(self, case: AttentionCase) -> str | None:
        """Why the kernel does not take the case (the feature that it lacks), or None."""

    def contract(self, case: AttentionCase) -> Contract:
        """What the kernel states about its arithmetic on this case."""

    def configuration(self, case: AttentionCase) -> dict[str, str]:
        """How the kernel runs the case (tile sizes and the like), for the record."""

    def run(self, case: AttentionCase, inputs: Inputs) -> Outputs:
        """Forward and backward: out, lse, and the gradients that the cotangents in `inputs` give.

        Args:
            case: the case.
            inputs: laid out as the case says, on `device`, in the dtype of `case`.

        Returns:
            Outputs of logical shapes B,H,N,D in the dtype of the case; lse in float32 or float64 (float64 for float64 cases).

        Raises:
            KernelDefectError: if the kernel gives no such tensors.
        """
