"""The acceptance rules by which other projects test attention kernels, put to a kernel on a case.

They judge the same kernel on the same problem as our checks, so that a table can say which planted defects each of them
catches, and which healthy kernels it fails. Constants and forms are the projects' own. Their inputs are drawn in the case's
shapes and dtype; scale, mask and features stay the case's. Comparisons are made in the dtypes that the projects make them in:
NaN and infinity, and what underflows there, count as they do with them. Rows of no sequence are left out.

A rule says nothing (None) where its project tests nothing like the case: decoding from a cache, float64, empty sizes, a dtype
or a feature that its tests lack. Masks of any alignment, grouped heads, lengths, scales and layouts are no reason.
"""

from __future__ import annotations

import dataclasses

import torch

from flashverify.adapters.kernel import Kernel, KernelDefectError
from flashverify.cases import layouts
from flashverify.cases.case import AttentionCase
from flashverify.cases.lengths import lengths
from flashverify.cases.tensors import Inputs, Outputs
from flashverify.mutants.rival_formulas import plain
from flashverify.mutants.rival_rules import RULES, Rule

__all__ = ["RULES", "Rule", "plain", "real_rows", "verdicts"]


def verdicts(kernel: Kernel, case: AttentionCase) -> dict[str, bool | None]:
    """Whether each rule accepts the kernel on the case's problem with the rule's inputs; None: the rule says nothing of it.

    The kernel runs once for rules whose inputs are equal. What it declines, no rule says anything of; nor of a dropout mask
    that the host can't predict, which the projects read off their kernels. A kernel that gives no proper outputs is not
    accepted, and an lse that is not its own is not compared.
    """
    found: dict[str, bool | None] = dict.fromkeys(RULES)
    if kernel.declines(case) is not None or (case.dropout is not None and not kernel.predictable):
        return found
    problems: list[tuple[Inputs, Outputs | None]] = []
    for name, rule in RULES.items():
        if rule.says_nothing_of(case):
            continue
        drawn = rule.draw(case, kernel.device)
        known = next((problem for problem in problems if _equal(problem[0], drawn)), None)
        if known is None:
            known = (drawn, _run(kernel, case, drawn))
            problems.append(known)
        found[name] = known[1] is not None and _accepted(rule, kernel, case, drawn, known[1])
    return found


def _run(kernel: Kernel, case: AttentionCase, inputs: Inputs) -> Outputs | None:
    try:
        return kernel.run(case, layouts.apply(case, inputs))
    except KernelDefectError:
        return None


def _accepted(rule: Rule, kernel: Kernel, case: AttentionCase, inputs: Inputs, outputs: Outputs) -> bool:
    reference = rule.reference(case, inputs, outputs.out)
    same = None if rule.same_precision is None else real_rows(case, rule.same_precision(case, inputs))
    own = outputs if kernel.returns_lse else dataclasses.replace(outputs, lse=reference.lse)
    return rule.accepts(real_rows(case, own), real_rows(case, reference), same)


def real_rows(case: AttentionCase, outputs: Outputs) -> Outputs:
    """Outputs without rows of no sequence: (rows, heads, ...), entry after entry; as they are if all sequences are equal."""
    if case.lengths is None:
        return outputs
    of_rows = lengths(case)

    def real(name: str, x: torch.Tensor) -> torch.Tensor:
        if name == "dsink":
            return x
        side = 1 if name in {"dk", "dv"} else 0
        return torch.cat([x[entry].transpose(0, 1)[: pair[side]] for entry, pair in enumerate(of_rows)])

    return Outputs(**{name: real(name, x) for name, x in outputs.items()})


def _equal(one: Inputs, other: Inputs) -> bool:
    return all(
        a is b or (a is not None and b is not None and torch.equal(a, b))
        for a, b in ((getattr(one, name), getattr(other, name)) for name in ("q", "k", "v", "dout", "dlse", "bias", "sink"))
    )
