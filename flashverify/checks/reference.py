"""What the float64 oracle says of a case: truth, its own radius, and the kernel's budget, for every tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flashverify.cases.case import AttentionCase
from flashverify.cases.tensors import Inputs, Outputs
from flashverify.checks.examination import Examination
from flashverify.numerics.contract import ORACLE_FLOAT64, Contract
from flashverify.numerics.hard import ForwardBudget, backward_budget, feature_budget, forward_budget, range_violation
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
        truth = _truth(case, inputs, out, lse)
    with stage("budget"):
        budget = forward_budget(case, inputs, out, lse, contract)
        radius = forward_budget(case, inputs, out, lse, ORACLE_FLOAT64)
        return Reference(
            truth=truth,
            radius=_allowed(case, inputs, out, lse, ORACLE_FLOAT64, radius),
            budget=_allowed(case, inputs, out, lse, contract, budget),
        )


def _modular(examination: Examination) -> Reference:
    case, inputs, contract, stage = examination.case, examination.inputs, examination.contract, examination.stopwatch.stage
    out, lse = examination.outputs.out.double(), examination.outputs.lse.double()
    with stage("oracle"):
        truth = _truth(case, inputs, out, lse)
    with stage("budget"):
        return Reference(
            truth=truth,
            radius=_allowed(case, inputs, out, lse, ORACLE_FLOAT64, None),
            budget=_allowed(case, inputs, out, lse, contract, None),
        )


def _truth(case: AttentionCase, inputs: Inputs, out: torch.Tensor, lse: torch.Tensor) -> Outputs:
    """Out and lse as given, with the gradients that follow from them, where the case has any."""
    if case.forward_only:
        return Outputs(out, lse)
    gradients = tiled.backward(case, inputs, out, lse)
    return Outputs(out, lse, *gradients, *tiled.feature_gradients(case, inputs, out, lse))


def _allowed(
    case: AttentionCase,
    inputs: Inputs,
    out: torch.Tensor,
    lse: torch.Tensor,
    contract: Contract,
    forward: ForwardBudget | None,
) -> Outputs:
    """Hard budgets of all outputs under a contract; without one of the forward pass, out and lse are exact."""
    exact = forward or ForwardBudget(torch.zeros_like(out), torch.zeros_like(lse))
    if case.forward_only:
        return Outputs(exact.out, exact.lse)
    gradients = backward_budget(case, inputs, out, lse, contract, forward)
    return Outputs(exact.out, exact.lse, *gradients, *feature_budget(case, inputs, out, lse, contract, forward))
