"""Schedule: the dropout mask is the same under every schedule of a kernel.

    Z(tiles, warps, stages) = Z      for every schedule that the kernel can be run under

Each schedule's masks of out, dq, dk and dv are read off a few probes (`probes.py`) and held against the host's prediction,
which knows no schedule. Nor does it know the size of a batch: that a mask is the same wherever a sequence's batch ends needs
no more than the *mask* check of every case.

A schedule means three more kernels to compile, so a share of the plain cases has to do.
"""

from __future__ import annotations

import dataclasses

from flashverify.cases.case import AttentionCase
from flashverify.cases.digest import number
from flashverify.checks import mask
from flashverify.checks.examination import Examination
from flashverify.checks.mask import TENSORS, describe, predicted_bits
from flashverify.checks.probes import Probes
from flashverify.checks.registry import register
from flashverify.records.dropout import Bits
from flashverify.records.measurement import CheckResult

MODE = "schedules"

TURNS = 32
"""Of so many plain cases with dropout, one is run under every schedule: a digest of its id decides."""

MOST_PAIRS = 2**18
PLAIN = {"dropout", "causal", "causal-topleft", "gqa", "mqa", "cross-length", "lse-grad"}
"""Features that change no mask, and no kernel beyond what causal masks do."""


@register("schedule")
def schedule(examination: Examination) -> CheckResult | None:
    """All schedules of a plain case whose turn it is; None for other cases and for kernels of one schedule."""
    case, kernel = examination.case, examination.kernel
    offered = getattr(kernel, "schedules", None)
    if offered is None or not kernel.predictable or not is_examined(case):
        return None
    found: dict[str, tuple[Bits, ...]] = {}
    for name, scheduled in offered(case).items():
        other = Examination(scheduled, case, examination.arithmetic, examination.stopwatch)
        other.inputs = examination.inputs
        found[name] = predicted_bits(other, Probes(other, few=True), MODE)
    return judge(found) if found else None


def is_examined(case: AttentionCase) -> bool:
    """Whether the case is a plain one with dropout, not too large, and has its turn."""
    pairs = case.batch * case.heads_q * case.seqlen_q * case.seqlen_k
    plain = set(case.features) <= PLAIN and case.layout == "contiguous" and case.scale is None
    dropping = bool(case.dropout) and case.dropout != 1.0
    return dropping and plain and 0 < pairs <= MOST_PAIRS and number(f"schedule/{case.id}") % TURNS == 0


def judge(found: dict[str, tuple[Bits, ...]]) -> CheckResult:
    """The verdict over name of a schedule -> bits of every tensor, and their sums."""
    wrong = [f"{name}: {describe(bits)}" for name, of in found.items() for bits in of if bits.differing]
    every = [bits for of in found.values() for bits in of]
    totals = (_total(tensor, [bits for bits in every if bits.tensor == tensor]) for tensor in TENSORS)
    result = mask.judge("schedule", tuple(totals))
    return dataclasses.replace(result, reason="; ".join(wrong)) if wrong else result


def _total(tensor: str, parts: list[Bits]) -> Bits:
    return Bits(
        tensor=tensor,
        mode=MODE,
        compared=sum(bits.compared for bits in parts),
        differing=sum(bits.differing for bits in parts),
        untold=sum(bits.untold for bits in parts),
        first=next((bits.first for bits in parts if bits.first is not None), None),
    )
