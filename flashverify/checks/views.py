"""What the checks of rounding look at: each tensor of a case in each mode, beside its truth and its predicted spread."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from flashverify.cases.tensors import BACKWARD, FORWARD
from flashverify.checks.examination import Examination
from flashverify.checks.reference import Reference, end_to_end, is_usable, modular
from flashverify.numerics.formats import Format
from flashverify.numerics.scores import FEWEST_ELEMENTS, FEWEST_ROWS
from flashverify.numerics.sharp import ForwardSpread, Spread, backward_spread, forward_spread


@dataclass(frozen=True, slots=True)
class View:
    """One tensor in one mode; all tensors have one shape.

    Attributes:
        tensor: out, lse, dq, dk or dv.
        mode: "forward", "modular", "end-to-end" or "unrounded".
        value: the kernel's.
        truth: float64.
        radius: float64, how far the oracle's truth may be from the exact value.
        spread: predicted bias and deviation before the final rounding.
        stored: format of the final rounding.
        exact: bool, where any error is one: rows that see no key, keys that no row sees.
    """

    tensor: str
    mode: str
    value: torch.Tensor
    truth: torch.Tensor
    radius: torch.Tensor
    spread: Spread
    stored: Format
    exact: torch.Tensor

    def error(self) -> torch.Tensor:
        """The difference value - truth, float64; 0 where both are the same infinity."""
        value = self.value.double()
        return torch.where(value == self.truth, 0.0, value - self.truth)


def views(examination: Examination) -> Iterator[View]:
    """Every tensor once: forward, then backward, as a function of the kernel's own out and lse where it is one.

    Where a debug mode leaves the final rounding out, out and the gradients come once more, in mode "unrounded": what the final
    rounding hides is seen there. Not for a few rows, since what is hidden is small and takes many to be seen; and for
    contiguous tensors alone, since a layout changes addresses and no rounding.
    """
    reference = end_to_end(examination)
    forward = examination.once("forward spread", lambda: _forward_spread(examination, reference))
    spreads = {"out": forward.out, "lse": forward.lse}
    has_lse = examination.kernel.returns_lse
    for tensor in FORWARD if has_lse else FORWARD[:1]:
        yield _view(examination, reference, tensor, "forward", spreads[tensor])
    if examination.case.forward_only:
        return
    by_outputs = has_lse and examination.kernel.saves_outputs and is_usable(examination, reference)
    judged, mode = (modular(examination), "modular") if by_outputs else (reference, "end-to-end")
    gradients = examination.once(
        "backward spread", lambda: _backward_spread(examination, judged, None if by_outputs else forward)
    )
    spreads |= dict(zip(BACKWARD, gradients, strict=True))
    for tensor in BACKWARD:
        yield _view(examination, judged, tensor, mode, spreads[tensor])
    unrounded = examination.unrounded if by_outputs and _is_worth_a_lens(examination) else None
    if unrounded is not None:
        for tensor, of in (("out", reference), *((name, judged) for name in BACKWARD)):
            view = _view(examination, of, tensor, "unrounded", spreads[tensor])
            yield replace(view, value=getattr(unrounded, tensor), stored=examination.walked.accumulator)


def _is_worth_a_lens(examination: Examination) -> bool:
    """Whether the debug mode runs: where out has the rows and elements that statistics take, on contiguous tensors."""
    out = examination.inputs.dout
    large = out.numel() >= FEWEST_ELEMENTS and out.numel() // out.shape[-1] >= FEWEST_ROWS
    return large and examination.case.layout == "contiguous"


def _view(examination: Examination, reference: Reference, tensor: str, mode: str, spread: Spread) -> View:
    contract = examination.walked
    return View(
        tensor=tensor,
        mode=mode,
        value=getattr(examination.outputs, tensor),
        truth=getattr(reference.truth, tensor),
        radius=getattr(reference.radius, tensor),
        spread=spread,
        stored=contract.accumulator if tensor == "lse" else contract.stored,
        exact=getattr(reference.budget, tensor) == 0.0,
    )


def _forward_spread(examination: Examination, reference: Reference) -> ForwardSpread:
    truth = reference.truth
    return forward_spread(examination.case, examination.inputs, truth.out, truth.lse, examination.walked)


def _backward_spread(
    examination: Examination, reference: Reference, forward: ForwardSpread | None
) -> tuple[Spread, Spread, Spread]:
    truth, contract = reference.truth, examination.walked
    if forward is not None:  # the backward pass takes out after its final rounding
        forward = replace(forward, out=Spread(forward.out.bias, forward.out.size(truth.out, contract.stored)))
    return backward_spread(examination.case, examination.inputs, truth.out, truth.lse, contract, forward)
