"""Mask: forward pass, dQ and dK/dV drop the same pairs, bit for bit, and those that the host predicts.

The masks are read off out, dq, dk and dv of probing inputs (`probes.py`), so a kernel that returns no mask is examined too, and
nothing that it returns as one is taken on trust. A kernel with a generator of its own is compared with the mask of its out.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from flashverify.checks.examination import Examination
from flashverify.checks.probes import Probes, Reading, forward_mask, probes
from flashverify.checks.registry import register
from flashverify.dropout.of_case import kept
from flashverify.records.dropout import Bits
from flashverify.records.measurement import CheckResult, Verdict

TENSORS = ("out", "dq", "dk", "dv")
"""Where masks are seen: dq and dk show the one of dS, each in its own kernel; dv that of P."""


@register("mask")
def mask(examination: Examination) -> CheckResult | None:
    """Every bit that can be told; None for cases without dropout."""
    case = examination.case
    if case.dropout is None:
        return None
    if 0 in (case.batch, case.seqlen_q, case.seqlen_k):
        return CheckResult(check="mask", verdict=Verdict.UNSUPPORTED, reason="no pairs")
    if examination.kernel.predictable:
        return judge("mask", predicted_bits(examination, probes(examination)))
    counts = {name: Count(name, "forward") for name in TENSORS[1:]}
    for reading in _readings(probes(examination)):
        if reading.tensor != "out":
            counts[reading.tensor].add(reading, *forward_mask(examination).at(reading))
    return judge("mask", tuple(count.bits() for count in counts.values()))


def predicted_bits(examination: Examination, made: Probes, mode: str = "predicted") -> tuple[Bits, ...]:
    """The masks of all tensors, read by these probes, beside the host's prediction."""
    counts = {name: Count(name, mode) for name in TENSORS}
    for reading in _readings(made):
        counts[reading.tensor].add(reading, _predicted(examination, reading))
    return tuple(count.bits() for count in counts.values())


def _readings(made: Probes) -> Iterator[Reading]:
    yield from made.of_keys()
    yield from made.of_queries()


def judge(check: str, found: tuple[Bits, ...]) -> CheckResult:
    """The verdict: a fail if a bit differs, unsupported if no bit of a tensor can be told."""
    wrong = [bits for bits in found if bits.differing]
    if wrong:
        return CheckResult(check=check, verdict=Verdict.FAIL, reason="; ".join(map(describe, wrong)), bits=found)
    untold = [bits.tensor for bits in found if not bits.compared]
    if untold:
        return CheckResult(
            check=check, verdict=Verdict.UNSUPPORTED, reason=f"no bit can be told from {', '.join(untold)}", bits=found
        )
    return CheckResult(check=check, verdict=Verdict.PASS, bits=found)


def describe(bits: Bits) -> str:
    """What differs, in words."""
    other = "the forward mask" if bits.mode == "forward" else "the host's prediction"
    return f"{bits.tensor}: {bits.differing} of {bits.compared} bits are not those of {other}, first at {bits.first}"


class Count:
    """Bits of one tensor, counted block by block."""

    def __init__(self, tensor: str, mode: str) -> None:
        self._tensor, self._mode = tensor, mode
        self._compared = self._differing = self._untold = 0
        self._first: tuple[int, ...] | None = None

    def add(self, reading: Reading, expected: torch.Tensor, known: torch.Tensor | None = None) -> None:
        """Compare a block.

        Args:
            reading: of the kernel.
            expected: bool tensor of its shape: which pairs it should keep.
            known: bool tensor of its shape: where that is known; None: everywhere.
        """
        told = reading.told if known is None else reading.told & known
        wrong = told & ((reading.kept != expected) | reading.broken)
        differing = int(wrong.sum())
        self._compared += int(told.sum())
        self._untold += int((reading.visible & ~told).sum())
        if differing and self._first is None:
            b, h, i, j = (int(place) for place in wrong.nonzero()[0])
            self._first = (b, int(reading.heads[h]), int(reading.rows[i]), int(reading.columns[j]))
        self._differing += differing

    def bits(self) -> Bits:
        """What was counted."""
        return Bits(
            tensor=self._tensor,
            mode=self._mode,
            compared=self._compared,
            differing=self._differing,
            untold=self._untold,
            first=self._first,
        )


def _predicted(examination: Examination, reading: Reading) -> torch.Tensor:
    case, device = examination.case, reading.rows.device
    with examination.stopwatch.stage("oracle"):
        entries = torch.arange(case.batch, device=device)[:, None, None, None]
        found = kept(case, entries, reading.heads[:, None, None], reading.rows[:, None], reading.columns)
    assert found is not None
    return found
