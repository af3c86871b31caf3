"""Planted defects of rounding against the acceptance rules in use: our three tiers, and the rules of other projects.

    PYTHONPATH=.:kernels python benchmarks/acceptance_rules.py [--case ID ...] [--output FILE.md]

The other projects' rules are `flashverify.mutants.rivals`: each judges the case's problem on inputs of its own, whatever the
case's regime, and has a dash where it says nothing of the problem.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from flashverify.campaign.worker import examine_with
from flashverify.cases.case import AttentionCase
from flashverify.kernels import load
from flashverify.lanes import enter_lane
from flashverify.mutants.rivals import RULES, verdicts
from flashverify.mutants.rounding import ROUNDING
from flashverify.numerics.axioms.measure import measure
from flashverify.records.measurement import CaseRecord, Verdict

CASES = (
    "bf16_b1_h2x2_n1024x1024_d64_full_normal_contiguous_s0",
    "bf16_b1_h2x2_n1024x1024_d64_full_large_contiguous_s0",
    "bf16_b1_h2x2_n1024x1024_d64_causal_small-gradient_contiguous_s0",
)
TIERS = {"accuracy": "T1", "sharp": "T2", "distribution": "T3"}
WORDS = {True: "pass", False: "fail", None: "-"}


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
        f"| defect | case | seen by | largest error / hard, / sharp | {' | '.join(RULES)} |",
        f"|---|---|---|---:|{'---|' * len(RULES)}",
    ]
    print("\n".join(lines), flush=True)
    for case in map(AttentionCase.from_id, asked.case):
        for name in asked.defect:
            kernel = load("triton" if name == "none" else f"mutant:{name}", device)
            record = examine_with(kernel, case, tuple(TIERS), arithmetic)
            hard = max(entry.headroom for result in record.results for entry in result.measurements)
            sharp = max((entry.headroom for result in record.results for entry in result.sharp), default=float("nan"))
            words = " | ".join(WORDS[accepted] for accepted in verdicts(kernel, case).values())
            lines.append(f"| {name} | {case.id} | {tiers(record)} | {hard:.3g}, {sharp:.3g} | {words} |")
            print(lines[-1], flush=True)
    if asked.output:
        asked.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
