"""Claims of exactness: the same function as standard attention, not an approximation of it; and no larger errors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flashverify.adapters.kernel import Kernel
from flashverify.campaign.worker import examine_with
from flashverify.cases import regimes
from flashverify.cases.case import AttentionCase
from flashverify.cases.matrices import matrix
from flashverify.cases.tensors import BACKWARD, Inputs
from flashverify.claims.problems import standard_attention
from flashverify.numerics.axioms.arithmetic import Arithmetic
from flashverify.oracles import dense
from flashverify.records.claims import Claim, Outcome, Table
from flashverify.records.measurement import CaseRecord, Verdict

FUNCTION = "function"
FEATURES = ("plain", "causal", "window", "gqa", "softcap", "alibi", "bias", "sink", "dropout")
LARGEST = 2**17
"""Pairs times columns of a case that stands for a feature: enclosures of small cases are the tightest."""

COMPARED = AttentionCase(dtype="bf16", heads_q=2, heads_kv=2, seqlen_q=1024, seqlen_k=1024, head_dim=64)


def representatives(cases: Sequence[AttentionCase] | None = None) -> dict[str, AttentionCase]:
    """For each feature the first small case of the matrix, in 16 bits, that has it and the fewest others."""
    found: dict[str, AttentionCase] = {}
    for feature in FEATURES:
        having = [case for case in cases or matrix("smoke") if feature in case.features and _is_small(case)]
        if having:
            found[feature] = min(having, key=lambda case: len(case.features))
    return found


def measure(kernel: Kernel, arithmetic: Arithmetic) -> Claim:
    """The function check of a case of each feature."""
    chosen = representatives()
    records = {feature: examine_with(kernel, case, (FUNCTION,), arithmetic) for feature, case in chosen.items()}
    return judge(records)


def judge(records: dict[str, CaseRecord]) -> Claim:
    """The claim, of one record of the function check a feature."""
    rows, failed = [], []
    for feature, record in records.items():
        distances = [m.max_relative for result in record.results for m in result.measurements]
        rows.append((feature, str(record.verdict), max(distances, default=float("inf")), record.case))
        if record.verdict is not Verdict.PASS:
            failed.append(f"{feature}: {record.verdict} ({record.reason})")
    outcome: Outcome = "holds"
    if failed:
        outcome = "does not hold" if any(r.verdict is Verdict.FAIL for r in records.values()) else "not decided"
    largest = max(float(row[2]) for row in rows)
    return Claim(
        name="exactness",
        statement="The kernel computes the same function as standard attention, forward and backward: nothing is approximated.",
        method="The function check: the kernel's float64 instantiation against rigorous enclosures of the true values, of out, "
        "lse and all gradients, a small case of each feature. Decides: every element lies inside, within the budget of float64 "
        "alone. Distances are relative to the terms that make each element; float64 has a roundoff of 1.1e-16.",
        outcome=outcome,
        finding=f"Largest distance {largest:.3g}." + (f" {'; '.join(failed)}." if failed else ""),
        table=Table(columns=("feature", "verdict", "largest distance", "case"), rows=tuple(rows)),
    )


def measure_errors(kernel: Kernel) -> Claim:
    """Errors of our kernel and of standard attention in bfloat16, against the float64 oracle."""
    drawn = regimes.draw(COMPARED, kernel.device)
    q, k, v = (x.detach().requires_grad_() for x in (drawn.q, drawn.k, drawn.v))
    out = standard_attention(q, k, v)
    theirs = (out.detach(), *torch.autograd.grad(out, (q, k, v), drawn.dout))
    outputs = kernel.run(COMPARED, drawn)
    ours = [x for x in (outputs.out, outputs.dq, outputs.dk, outputs.dv) if x is not None]
    truth = _truth(drawn)
    errors = {
        name: (_rms(our, exact), _rms(their, exact))
        for name, exact, our, their in zip(("out", *BACKWARD), truth, ours, theirs, strict=True)
    }
    return judge_errors(errors)


def judge_errors(errors: dict[str, tuple[float, float]]) -> Claim:
    """The claim, of tensor -> root mean square errors of ours and of standard attention."""
    ratios = [round(theirs / ours, 2) for ours, theirs in errors.values()]
    rows = tuple((name, *pair, ratio) for (name, pair), ratio in zip(errors.items(), ratios, strict=True))
    larger = [name for name, (ours, theirs) in errors.items() if ours > theirs]
    outcome: Outcome = "does not hold" if larger else "holds"
    return Claim(
        name="error",
        statement="Its rounding errors are no larger than those of standard attention in the same format.",
        method=f"Root mean square errors against the float64 oracle, from the inputs alone, case {COMPARED.id}. Decides: no "
        "tensor's is larger.",
        outcome=outcome,
        finding=f"Standard attention's are {min(ratios)} to {max(ratios)} times as large."
        + (f" Larger: {', '.join(larger)}." if larger else ""),
        table=Table(columns=("tensor", "ours, rms", "standard, rms", "standard / ours"), rows=rows),
    )


def _rms(value: torch.Tensor, exact: torch.Tensor) -> float:
    return float((value.double() - exact).square().mean().sqrt())


def _truth(drawn: Inputs) -> tuple[torch.Tensor, ...]:
    out, lse = dense.forward(COMPARED, drawn)
    return out, *dense.backward(COMPARED, drawn, out, lse)


def _is_small(case: AttentionCase) -> bool:
    pairs = case.batch * case.heads_q * case.seqlen_q * case.seqlen_k
    usual = case.cache is None and case.lengths is None and case.dtype in ("fp16", "bf16")
    return usual and 0 < pairs * case.head_dim <= LARGEST and case.dropout != 1.0
