"""Kernels and cases examined in this process, and the verdicts printed as JSON: `python -m flashverify.mutants.selftest`."""

from __future__ import annotations

import json
import sys

import torch

from flashverify.adapters import registry
from flashverify.campaign.worker import examine_with
from flashverify.cases.case import AttentionCase
from flashverify.checks.registry import all_checks
from flashverify.mutants.catalogue import load as load_mutant
from flashverify.mutants.mutant import PREFIX

WHOLE = "whole"
"""The name that stands for the verdict of all checks together."""


def verdicts(device: str, pairs: list[tuple[str, str]]) -> dict[str, dict[str, str]]:
    """Kernel and case, joined by a space -> check -> verdict.

    Args:
        device: "cuda" or "cpu".
        pairs: names of kernels, "mutant:NAME" among them, and ids of cases.
    """
    found = {}
    for name, case in pairs:
        on = torch.device(device)
        kernel = load_mutant(name.removeprefix(PREFIX), on) if name.startswith(PREFIX) else registry.load(name, on)
        record = examine_with(kernel, AttentionCase.from_id(case), tuple(all_checks()))
        said = {result.check: str(result.verdict) for result in record.results}
        found[f"{name} {case}"] = said | {WHOLE: str(record.verdict)}
    return found


if __name__ == "__main__":
    print(json.dumps(verdicts(sys.argv[1], json.loads(sys.argv[2]))))
