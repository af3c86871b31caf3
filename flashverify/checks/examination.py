"""One kernel on one case, with what checks share: inputs and outputs are made once, when first asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TypeVar

import torch

from flashverify.adapters.kernel import Kernel, KernelDefectError
from flashverify.cases import layouts, regimes
from flashverify.cases.case import AttentionCase
from flashverify.cases.tensors import FORWARD, OF_FEATURES, TENSORS, Inputs, Outputs, has_gradients
from flashverify.checks.inference import inferred_contract
from flashverify.checks.stopwatch import Stopwatch
from flashverify.numerics.axioms.arithmetic import Arithmetic
from flashverify.numerics.contract import Contract
from flashverify.numerics.formats import TORCH_DTYPES
from flashverify.numerics.sharp import inapplicable

Shared = TypeVar("Shared")


class Examination:
    """A kernel and a case; what they give together is computed once."""

    def __init__(
        self,
        kernel: Kernel,
        case: AttentionCase,
        arithmetic: Arithmetic | None = None,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        """One kernel on one case.

        Args:
            kernel: the kernel.
            case: the case.
            arithmetic: what the device was measured to do, or None: then contracts stand on published figures.
            stopwatch: what its stages are timed by; by default one of its own.
        """
        self.stopwatch = stopwatch or Stopwatch(kernel.device)
        self.kernel = kernel
        self.case = case
        self.arithmetic = arithmetic
        self._shared: dict[str, object] = {}

    def once(self, name: str, make: Callable[[], Shared]) -> Shared:
        """What `make` gives, made when it is first asked for under that name: checks share it."""
        if name not in self._shared:
            self._shared[name] = make()
        return self._shared[name]  # type: ignore[return-value]  # what was stored under the name

    @cached_property
    def inputs(self) -> Inputs:
        """The case's inputs, laid out as it says, on the kernel's device."""
        with self.stopwatch.stage("inputs"):
            return layouts.apply(self.case, regimes.draw(self.case, self.kernel.device))

    @cached_property
    def outputs(self) -> Outputs:
        """What the kernel gives: tensors of the shapes and dtypes that the case asks for, with its inputs left as they were.

        Raises:
            KernelDefectError: if it gives something else, or writes into the memory of its inputs, the guard bands included.
        """
        with self.stopwatch.stage("inputs"):
            before = {name: layouts.memory(tensor).clone() for name, tensor in _named(self.inputs)}
        with self.stopwatch.stage("kernel"):
            outputs = self.kernel.run(self.case, self.inputs)
        with self.stopwatch.stage("inputs"):
            written = [name for name, tensor in _named(self.inputs) if not torch.equal(layouts.memory(tensor), before[name])]
        if written:
            for name, tensor in _named(self.inputs):
                layouts.memory(tensor).copy_(before[name])  # the next check starts from what was drawn
            raise KernelDefectError(f"{written[0]}: the kernel wrote into the memory of its input")
        self._require_form(outputs)
        return outputs

    @cached_property
    def contract(self) -> Contract:
        """The kernel's numerical contract on this case, with the device's constants where they were measured."""
        stated = self.kernel.contract(self.case)
        return stated if self.arithmetic is None else self.arithmetic.refine(stated)

    @cached_property
    def walked(self) -> Contract:
        """The contract that the sharp model takes: with the walk inferred where the kernel does not state it."""
        with self.stopwatch.stage("sharp"):
            return inferred_contract(self)

    @cached_property
    def unrounded(self) -> Outputs | None:
        """What the kernel's debug mode writes before the final rounding, or None if there is none."""
        debug = getattr(self.kernel, "unrounded", None)
        inputs = self.inputs
        with self.stopwatch.stage("kernel"):
            outputs: Outputs | None = None if debug is None else debug(self.case, inputs)
        return outputs

    @property
    def inferred(self) -> dict[str, str]:
        """What was inferred of the kernel for the checks that ran, in words; empty if nothing was."""
        walked = self.__dict__.get("walked")
        return {"walk": walked.inferred} if walked is not None and walked.inferred else {}

    def probe(self, case: AttentionCase) -> Examination:
        """The same kernel on another case."""
        return Examination(self.kernel, case, self.arithmetic, self.stopwatch)

    @property
    def draws_its_own(self) -> str | None:
        """Why no oracle knows what the kernel drops, or None: it drops nothing, or what the host predicts."""
        if self.case.dropout is None or self.kernel.predictable:
            return None
        return "the kernel's dropout mask is of a generator of its own"

    @cached_property
    def not_sharp(self) -> str | None:
        """Why the sharp model says nothing of this case, or None."""
        return inapplicable(self.case, self.inputs, self.walked)

    @cached_property
    def doubled(self) -> Examination:
        """The same problem and the same input values with the kernel instantiated in float64."""
        if self.case.dtype == "fp64":
            return self
        double = self.probe(self.case.replace(dtype="fp64"))
        with self.stopwatch.stage("inputs"):
            double.inputs = layouts.apply(double.case, self.inputs.double())
        return double

    def _require_form(self, outputs: Outputs) -> None:
        dtype, given = TORCH_DTYPES[self.case.dtype], self.inputs
        gradients = {"dq": given.q.shape, "dk": given.k.shape, "dv": given.v.shape}
        gradients |= {f"d{name}": x.shape for name, x in (("bias", given.bias), ("sink", given.sink)) if x is not None}
        shapes = {"out": given.dout.shape, "lse": given.dout.shape[:3], **gradients}
        wanted = {name for name, has in zip(OF_FEATURES, has_gradients(given), strict=True) if has}
        wanted |= set(FORWARD if self.case.forward_only else TENSORS) - (set() if self.kernel.returns_lse else {"lse"})
        for name in wanted - {name for name, _ in outputs.items()}:
            raise KernelDefectError(f"{name}: the kernel gives none")
        of_lse = (torch.float64,) if dtype == torch.float64 else (torch.float32, torch.float64)
        for name, tensor in outputs.items():
            if name == "lse" and not self.kernel.returns_lse:
                continue
            if not isinstance(tensor, torch.Tensor):
                raise KernelDefectError(f"{name}: got {type(tensor).__name__}, accepted are tensors")
            if tensor.shape != shapes[name]:
                raise KernelDefectError(f"{name}: got shape {tuple(tensor.shape)}, accepted is {tuple(shapes[name])}")
            accepted = of_lse if name in {"lse", "dsink"} else (dtype,)
            if tensor.dtype not in accepted:
                raise KernelDefectError(f"{name}: got {tensor.dtype}, accepted is {' or '.join(map(str, accepted))}")
            if tensor.device != given.q.device:
                raise KernelDefectError(f"{name}: got a tensor on {tensor.device}, accepted is {given.q.device}")


def _named(inputs: Inputs) -> list[tuple[str, torch.Tensor]]:
    named = [("q", inputs.q), ("k", inputs.k), ("v", inputs.v), ("dout", inputs.dout)]
    optional = (("dlse", inputs.dlse), ("bias", inputs.bias), ("sink", inputs.sink))
    return [*named, *((name, tensor) for name, tensor in optional if tensor is not None)]
