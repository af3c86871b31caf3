"""What the float64 oracle says of a case: truth, its own radius, and the kernel's budget, for every tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flashverify.cases.tensors import Outputs
from flashverify.checks.examination import Examination
from flashverify.numerics.contract import ORACLE_FLOAT64
from flashverify.numerics.hard import backward_budget, feature_budget, forward_budget, range_violation
from flashverify.oracles import tiled


@dataclass(frozen=True, slots=True)
class Reference:
    """Truth, radius and budget of a case; each holds one float64 tensor an output.

    Attributes:
        truth: the float64 oracle's values.
        radius: how far they may be from the exact ones: the hard budget of the oracle's own contract.
        budget: the hard budget of the kernel's contract.
    """

    truth: Outputs
    radius: Outputs
    budget: Outputs

    def range_violation(self, examination: Examination) -> str | None:
        """Why the case is beyond the range of the kernel's formats, or None."""
        inputs, contract = examination.inputs, examination.contract
        with examination.stopwatch.stage("budget"):
            return range_violation(examination.case, inputs, self.truth, self.budget, contract)


def end_to_end(examination: Examination) -> Reference:
    """The case as a function of its inputs alone."""
    return examination.once("end-to-end", lambda: _end_to_end(examination))


def modular(examination: Examination) -> Reference:
    """The backward pass as a function of the kernel's own out and lse, which are exact here."""
    return examination.once("modular", lambda: _modular(examination))


def is_usable(examination: Examination, reference: Reference) -> bool:
    """Whether the kernel's own out and lse can serve as inputs of the modular oracle; if not, the forward check has failed."""
    out, lse, true_lse = examination.outputs.out, examination.outputs.lse, reference.truth.lse
    return bool(out.isfinite().all()) and bool(torch.equal(lse.isfinite(), true_lse.isfinite()))


def _end_to_end(examination: Examination) -> Reference:
    case, inputs, contract, stage = examination.case, examination.inputs, examination.contract, examination.stopwatch.stage
    with stage("oracle"):
        out, lse = tiled.forward(case, inputs)
        truth = _outputs(out, lse, tiled.backward(case, inputs, out, lse), tiled.feature_gradients(case, inputs, out, lse))
    with stage("budget"):
        budget = forward_budget(case, inputs, out, lse, contract)
        radius = forward_budget(case, inputs, out, lse, ORACLE_FLOAT64)
        return Reference(
            truth=truth,
            radius=_outputs(
                radius.out,
                radius.lse,
                backward_budget(case, inputs, out, lse, ORACLE_FLOAT64, radius),
                feature_budget(case, inputs, out, lse, ORACLE_FLOAT64, radius),
            ),
            budget=_outputs(
                budget.out,
                budget.lse,
                backward_budget(case, inputs, out, lse, contract, budget),
                feature_budget(case, inputs, out, lse, contract, budget),
            ),
        )


def _modular(examination: Examination) -> Reference:
    case, inputs, contract, stage = examination.case, examination.inputs, examination.contract, examination.stopwatch.stage
    out, lse = examination.outputs.out.double(), examination.outputs.lse.double()
    zero_out, zero_lse = out.new_zeros(out.shape), lse.new_zeros(lse.shape)
    with stage("oracle"):
        truth = _outputs(out, lse, tiled.backward(case, inputs, out, lse), tiled.feature_gradients(case, inputs, out, lse))
    with stage("budget"):
        return Reference(
            truth=truth,
            radius=_outputs(
                zero_out,
                zero_lse,
                backward_budget(case, inputs, out, lse, ORACLE_FLOAT64, None),
                feature_budget(case, inputs, out, lse, ORACLE_FLOAT64, None),
            ),
            budget=_outputs(
                zero_out,
                zero_lse,
                backward_budget(case, inputs, out, lse, contract, None),
                feature_budget(case, inputs, out, lse, contract, None),
            ),
        )


def _outputs(
    out: torch.Tensor,
    lse: torch.Tensor,
    gradients: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    of_features: tuple[torch.Tensor | None, torch.Tensor | None],
) -> Outputs:
    (dq, dk, dv), (dbias, dsink) = gradients, of_features
    return Outputs(out=out, lse=lse, dq=dq, dk=dk, dv=dv, dbias=dbias, dsink=dsink)
