"""Planted defects of rounding against the acceptance rules in use: our three tiers, flash-attention's 2x rule, allclose(1e-2).

    PYTHONPATH=.:kernels python benchmarks/acceptance_rules.py [--case ID ...] [--output FILE.md]

- 2x: max|x - ref| <= 2 max|pt - ref| + 1e-5, ref in float32 rounded to the dtype, pt the same formula in the dtype (the tests
  of Dao-AILab/flash-attention).
- allclose: |x - ref| <= 1e-2 everywhere (Triton's attention tutorial).
Both look at out, dq, dk and dv; neither at lse.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from flashverify.campaign.worker import examine_with
from flashverify.cases.case import AttentionCase
from flashverify.cases.semantics import visible_mask
from flashverify.cases.tensors import Inputs, Outputs
from flashverify.checks.examination import Examination
from flashverify.kernels import load
from flashverify.lanes import enter_lane
from flashverify.mutants.rounding import ROUNDING
from flashverify.numerics.axioms.measure import measure
from flashverify.records.measurement import CaseRecord, Verdict

CASES = (
    "bf16_b1_h2x2_n1024x1024_d64_full_normal_contiguous_s0",
    "bf16_b1_h2x2_n1024x1024_d64_full_large_contiguous_s0",
    "bf16_b1_h2x2_n1024x1024_d64_causal_small-gradient_contiguous_s0",
)
TENSORS = ("out", "dq", "dk", "dv")
TIERS = {"accuracy": "T1", "sharp": "T2", "distribution": "T3"}


def plain(case: AttentionCase, inputs: Inputs, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Attention and its gradients by the plain formula, every step in one dtype; results in the case's."""
    q, k, v = (x.to(dtype).requires_grad_() for x in (inputs.q, inputs.k, inputs.v))
    keys, values = (x.repeat_interleave(case.group_size, 1) for x in (k, v))
    rows, columns = (torch.arange(n, device=q.device) for n in (case.seqlen_q, case.seqlen_k))
    scores = (q * case.softmax_scale) @ keys.mT
    scores = scores.masked_fill(~visible_mask(case, torch.tensor(0, device=q.device), rows, columns), -torch.inf)
    out = torch.softmax(scores, -1) @ values
    gradients = torch.autograd.grad(out, (q, k, v), inputs.dout.to(dtype))
    given = inputs.q.dtype
    return {name: x.detach().to(given).float() for name, x in zip(TENSORS, (out, *gradients), strict=True)}


def verdicts(outputs: Outputs, reference: dict[str, torch.Tensor], same: dict[str, torch.Tensor]) -> tuple[bool, bool]:
    """Whether the 2x rule passes, and whether allclose does."""
    doubled = close = True
    for name in TENSORS:
        error = (getattr(outputs, name).float() - reference[name]).abs().max()
        doubled &= bool(error <= 2 * (same[name] - reference[name]).abs().max() + 1e-5)
        close &= bool(error <= 1e-2)
    return doubled, close


def tiers(record: CaseRecord) -> str:
    """The tiers that fail."""
    seen = [TIERS[result.check] for result in record.results if result.verdict is Verdict.FAIL]
    return ", ".join(sorted(seen)) or "none"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", default=list(CASES))
    parser.add_argument("--defect", nargs="+", default=["none", *(mutant.name for mutant in ROUNDING)], help="only these")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    device = torch.device(enter_lane("auto").device)
    arithmetic = measure(device)
    lines = [
        "| defect | case | seen by | largest error / hard, / sharp | 2x rule | allclose(1e-2) |",
        "|---|---|---|---:|---|---|",
    ]
    for case in map(AttentionCase.from_id, asked.case):
        inputs = Examination(load("triton", device), case).inputs
        reference, same = plain(case, inputs, torch.float32), plain(case, inputs, inputs.q.dtype)
        for name in asked.defect:
            kernel = load("triton" if name == "none" else f"mutant:{name}", device)
            record = examine_with(kernel, case, tuple(TIERS), arithmetic)
            doubled, close = verdicts(kernel.run(case, inputs), reference, same)
            hard = max(entry.headroom for result in record.results for entry in result.measurements)
            sharp = max((entry.headroom for result in record.results for entry in result.sharp), default=float("nan"))
            words = ["pass" if passed else "fail" for passed in (doubled, close)]
            lines.append(f"| {name} | {case.id} | {tiers(record)} | {hard:.3g}, {sharp:.3g} | {words[0]} | {words[1]} |")
            print(lines[-1], flush=True)
    if asked.output:
        asked.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
