"""One kernel on one case, with what checks share: inputs and outputs are made once, when first asked for."""

from __future__ import annotations

from functools import cached_property

from flashverify.adapters.kernel import Kernel
from flashverify.cases import layouts, regimes
from flashverify.cases.case import AttentionCase
from flashverify.cases.tensors import Inputs, Outputs
from flashverify.numerics.contract import Contract


class Examination:
    """A kernel and a case; what they give together is computed once."""

    def __init__(self, kernel: Kernel, case: AttentionCase) -> None:
        self.kernel = kernel
        self.case = case

    @cached_property
    def inputs(self) -> Inputs:
        """The case's inputs, laid out as it says, on the kernel's device."""
        return layouts.apply(self.case, regimes.draw(self.case, self.kernel.device))

    @cached_property
    def outputs(self) -> Outputs:
        """What the kernel gives."""
        return self.kernel.run(self.case, self.inputs)

    @cached_property
    def contract(self) -> Contract:
        """The kernel's numerical contract on this case."""
        return self.kernel.contract(self.case)

    @cached_property
    def doubled(self) -> Examination:
        """The same problem and the same input values with the kernel instantiated in float64."""
        if self.case.dtype == "fp64":
            return self
        double = Examination(self.kernel, self.case.replace(dtype="fp64"))
        double.inputs = layouts.apply(double.case, self.inputs.double())
        return double
