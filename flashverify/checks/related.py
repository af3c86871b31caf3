"""What relations between outputs have in common: whose turn a case is, transformed problems, and how two tensors are judged.

Bits are the same where values are equal or both NaN: the sign of a zero and the payload of a NaN are nobody's. Where a kernel
does not promise that, both values lie within their budgets of the same truth, so that they differ by at most the sum of these.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from flashverify.adapters.kernel import promises
from flashverify.cases import dense_bias, layouts
from flashverify.cases.case import AttentionCase
from flashverify.cases.lengths import lengths
from flashverify.cases.semantics import visible_mask
from flashverify.cases.tensors import Inputs, Outputs
from flashverify.checks.examination import Examination
from flashverify.checks.reference import end_to_end
from flashverify.records.measurement import CheckResult, Verdict
from flashverify.records.relations import BOUNDED, EXACT, OBSERVED, Relation

TURNS = {"cuda": 4, "cpu": 48}
"""One in so many cases has the turn of a relation; in Triton's interpreter, where a call takes a second, few have."""

LARGEST = {"cuda": 2**20, "cpu": 2**12}
"""Scores of a case, at most."""

SALT = 2294
"""Which cases: ones among which every relation has its turn in both matrices and lanes."""


Views = Mapping[str, Callable[[torch.Tensor], torch.Tensor]]
"""Of each tensor that is compared, what of the original corresponds to the transformed one."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One relation.

    Attributes:
        name: how it is named.
        formula: what is claimed.
        applies: whether a case can have it, by the case alone.
        examine: what was found on an examination; nothing where the kernel or its formats leave nothing to compare.
        costs: whether it runs the kernel again: such a relation waits for its turn.
    """

    name: str
    formula: str
    applies: Callable[[AttentionCase], bool]
    examine: Callable[[Examination], Iterator[Relation]]
    costs: bool = True


def scores(case: AttentionCase) -> int:
    """Number of pairs of query row and key column, over heads and batch entries."""
    return case.batch * case.heads_q * case.seqlen_q * case.seqlen_k


def in_turn(claim: Claim, case: AttentionCase, device: str) -> bool:
    """Whether a claim is examined on a case: it can be, the case is small, and a digest of both says so."""
    if not 0 < scores(case) <= LARGEST[device] or not claim.applies(case):
        return False
    digest = hashlib.sha256(f"{SALT}/{claim.name}/{case.id}".encode()).digest()
    return not claim.costs or int.from_bytes(digest[:8], "little") % TURNS[device] == 0


def examine(check: str, claims: Iterable[Claim], examination: Examination) -> CheckResult | None:
    """What the claims whose turn it is find of a kernel; None if nothing was compared."""
    if examination.draws_its_own is not None:
        return None
    case, device = examination.case, examination.kernel.device.type
    every = examination.every_turn
    asked = [claim for claim in claims if (claim.applies(case) if every else in_turn(claim, case, device))]
    found = tuple(one for claim in asked for one in claim.examine(examination) if one.elements)
    return judge(check, found) if found else None


def judge(check: str, found: tuple[Relation, ...]) -> CheckResult:
    """The verdict: a fail where a relation that is judged does not hold."""
    wrong = [one for one in found if one.differing and one.mode != OBSERVED]
    verdict = Verdict.FAIL if wrong else Verdict.PASS
    return CheckResult(check=check, verdict=verdict, reason="; ".join(map(describe, wrong)), relations=found)


def describe(one: Relation) -> str:
    """What does not hold, in words."""
    how = "have other bits" if one.mode == EXACT else "differ by more than the bound"
    by = "" if one.worst is None else f", by up to {one.worst:.3g} times it"
    return f"{one.name}: {one.differing} of {one.elements} elements of {one.tensor} {how}{by}, first at {one.first}"


def same(
    name: str,
    tensor: str,
    value: torch.Tensor,
    expected: torch.Tensor,
    where: torch.Tensor | None = None,
    mode: str = EXACT,
) -> Relation:
    """Whether two tensors hold the same values.

    Args:
        name: of the relation.
        tensor: name of the tensor.
        value: the one, any shape.
        expected: the other, of the same shape.
        where: bool, broadcasts against them: what is compared; None: everything.
        mode: `EXACT` or `OBSERVED`.
    """
    wrong = ~((value == expected) | (value.isnan() & expected.isnan()))
    return _counted(name, tensor, mode, wrong, where, None)


def close(
    name: str,
    tensor: str,
    value: torch.Tensor,
    expected: torch.Tensor,
    bound: torch.Tensor,
    where: torch.Tensor | None = None,
) -> Relation:
    """Whether two tensors differ by no more than a bound; where it is no finite number, nothing can be told.

    Args:
        name: of the relation.
        tensor: name of the tensor.
        value: the one, any shape.
        expected: the other.
        bound: of |value - expected|, float64; all of the same shape.
        where: as in `same`.
    """
    a, b = value.double(), expected.double()
    difference = torch.where(a == b, 0.0, (a - b).abs())
    told = bound.isfinite() if where is None else bound.isfinite() & where
    wrong = ~(difference <= bound)
    ratio = torch.where(difference == 0.0, 0.0, difference / bound)[told]
    ratio = ratio[ratio.isfinite()]
    return _counted(name, tensor, BOUNDED, wrong, told, float(ratio.max()) if ratio.numel() else None)


def _counted(
    name: str, tensor: str, mode: str, wrong: torch.Tensor, where: torch.Tensor | None, worst: float | None
) -> Relation:
    told = torch.ones_like(wrong) if where is None else where.expand(wrong.shape)
    places = (wrong & told).nonzero()
    return Relation(
        name=name,
        tensor=tensor,
        mode=mode,
        elements=int(told.sum()),
        differing=len(places),
        worst=worst,
        first=tuple(int(place) for place in places[0]) if len(places) else None,
    )


def equal(
    name: str,
    examination: Examination,
    value: Outputs,
    expected: Outputs,
    where: Mapping[str, torch.Tensor | None],
    needed: frozenset[str],
) -> Iterator[Relation]:
    """Whether tensors that have the same truth are the same: in bits where the kernel promises that, else within two budgets.

    Args:
        name: of the relation.
        examination: the kernel on the case whose budgets hold for both.
        value: outputs of one call.
        expected: outputs of another one.
        where: of each tensor to be compared, where; None: everywhere.
        needed: promises that make bits the same.
    """
    promised = needed <= promises(examination.kernel)
    allowed = None if promised else bounded(examination)
    for tensor, place in where.items():
        one, other = getattr(value, tensor), getattr(expected, tensor)
        if one is None or other is None or (tensor == "lse" and not examination.kernel.returns_lse):
            continue
        if promised:
            yield same(name, tensor, one, other, place)
        elif allowed is not None:
            yield close(name, tensor, one, other, 2.0 * getattr(allowed, tensor), place)


def compared(
    name: str, value: Examination, original: Examination, views: Views, needed: set[str], where: torch.Tensor | None = None
) -> Iterator[Relation]:
    """Whether outputs of one problem are views of those of another: in bits, where that is promised, else in budgets of both.

    Args:
        name: of the relation.
        value: the kernel on the one problem.
        original: the kernel on the other.
        views: of each tensor that is compared, what of the original corresponds to it.
        needed: promises that make bits the same.
        where: as in `same`.
    """
    promised = needed <= promises(value.kernel)
    allowed = None if promised else (bounded(value), bounded(original))
    for tensor, view in views.items():
        one, other = getattr(value.outputs, tensor), getattr(original.outputs, tensor)
        if one is None or other is None or (tensor == "lse" and not value.kernel.returns_lse):
            continue
        if allowed is None:
            yield same(name, tensor, one, view(other), where)
            continue
        mine, theirs = allowed
        if mine is not None and theirs is not None:
            bound = getattr(mine, tensor) + view(getattr(theirs, tensor))
            yield close(name, tensor, one, view(other.double()), bound, where)


def whole(x: torch.Tensor) -> torch.Tensor:
    """The tensor itself: the view of what stays where it is."""
    return x


def bounded(examination: Examination) -> Outputs | None:
    """The hard budgets of a case's outputs, of their distance from the exact values.

    None where a number on the way may be out of range: then nothing is bounded.
    """
    out_of_range = examination.once("range", lambda: end_to_end(examination).range_violation(examination))
    return None if out_of_range else end_to_end(examination).budget


def on(examination: Examination, inputs: Inputs, case: AttentionCase | None = None) -> Examination:
    """The same kernel on other inputs, laid out as the case says; it has run already."""
    other = examination.probe(case or examination.case)
    other.inputs = layouts.apply(other.case, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # Triton's interpreter warns of numbers that are not finite
        _ = other.outputs
    return other


def seen_pairs(case: AttentionCase, inputs: Inputs) -> torch.Tensor:
    """Which pairs take part, bool (batch, heads_q, seqlen_q, seqlen_k)."""
    device = inputs.q.device
    entries, rows, columns = (torch.arange(n, device=device) for n in (case.batch, case.seqlen_q, case.seqlen_k))
    seen = visible_mask(case, entries[:, None, None, None], rows, columns)
    seen = seen.expand(case.batch, case.heads_q, case.seqlen_q, case.seqlen_k)
    bias = dense_bias.expanded(case, inputs)
    return seen if bias is None else seen & dense_bias.shown(bias)


def real_rows(case: AttentionCase, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Which query rows and which keys are of their entry's sequence, bool (batch, 1, seqlen_q) and (batch, 1, seqlen_k)."""
    used = torch.tensor(lengths(case), dtype=torch.int64, device=device).reshape(case.batch, 1, 2)
    rows, keys = (torch.arange(n, device=device) for n in (case.seqlen_q, case.seqlen_k))
    return rows < used[..., :1], keys < used[..., 1:]


def power_below(limit: float) -> float:
    """The largest power of two that does not exceed a positive number."""
    return 2.0 ** math.floor(math.log2(limit))
