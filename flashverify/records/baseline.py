"""The gate: a certificate beside the baseline that it must not fall behind (docs/gate.md).

A deterministic kernel gives the same bits on the same platform, so equal is the normal outcome. Worse is: coverage or a verdict
that is lost; a number that exceeds the baseline's worst known; a trend upwards that chance does not explain.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from flashverify.cases.case import AttentionCase
from flashverify.records.certificate import Certificate
from flashverify.records.measurement import CaseRecord, Verdict
from flashverify.records.quantities import Entry, Key, by_key, coverage_lost, entries, quantities
from flashverify.records.summary import (
    CERTIFIED,
    INCONCLUSIVE,
    NOTHING_RAN,
    REGRESSED,
    Group,
    exit_code,
    settled_verdict,
    severity,
    summarise,
)
from flashverify.records.trend import Draw, Trend, significant, votes

WHOLE_CASE = ("case", "verdict")
"""What a loss of a whole case is called; a loss of a part names its check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A verdict that got worse, or something that is no longer examined.

    Attributes:
        case: id of the case.
        what: what was lost.
        old: what the baseline says.
        new: what the new certificate says.
    """

    case: str
    what: str
    old: str
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A number of a case that differs from the baseline's.

    Attributes:
        case: id of the case.
        draw: its regime and seed.
        dtype: short name of its dtype.
        check: the check that measured it.
        tensor: the tensor.
        mode: how truth was formed.
        quantity: a name that `quantities` gives.
        old: the baseline's number.
        new: the new certificate's number.
        known: the baseline's worst known number of the same dtype, check, tensor, mode and regime; -inf if there is none.
    """

    case: str
    draw: Draw
    dtype: str
    check: str
    tensor: str
    mode: str
    quantity: str
    old: float
    new: float
    known: float

    @property
    def rose(self) -> bool:
        """Whether the new number is worse than the case's own old one; NaN is worse than infinity."""
        return severity(self.new) > severity(self.old)

    @property
    def exceeds(self) -> bool:
        """Whether it is worse than every number that the baseline knows for its like, and than its own: a regression."""
        return self.rose and severity(self.new) > severity(self.known)

    @property
    def growth(self) -> float:
        """The quotient new / old; infinite where it is no number."""
        return _quotient(self.new, self.old)

    @property
    def excess(self) -> float:
        """The quotient of the new number and the worst known one, or the case's own if that is worse."""
        return _quotient(self.new, max(self.known, self.old))


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineComparison:
    """A certificate beside its baseline.

    Attributes:
        refusals: why the two cannot be compared; if there is one, everything else is empty.
        losses: verdicts and coverage that got worse.
        exceeded: numbers beyond the baseline's worst known, worst first.
        trends: quantities that rose in too many draws for chance, least likely first.
        moved: numbers that rose and stay within the worst known, worst first.
        fallen: how many numbers fell.
        equal: how many are the same.
        undecided: numbers that are not finite in the new certificate, and had no finite one before: they never pass.
        added: ids of cases that the baseline lacks; not judged here, but by the new certificate's own verdict.
        added_checks: names of checks that ran on no case of the baseline; the same holds for them.
        contracts: ids of cases whose numerical contract, on which budgets stand, differs.
        groups: pooled figures before and after, of (dtype, features, tensor, mode) whose rms differs; worst first.
        own: exit code of the new certificate by itself.
        empty: why nothing could be compared, or "".
    """

    refusals: tuple[str, ...] = ()
    losses: tuple[Loss, ...] = ()
    exceeded: tuple[Move, ...] = ()
    trends: tuple[Trend, ...] = ()
    moved: tuple[Move, ...] = ()
    fallen: int = 0
    equal: int = 0
    undecided: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    added_checks: tuple[str, ...] = ()
    contracts: tuple[str, ...] = ()
    groups: tuple[tuple[Group, Group], ...] = ()
    own: int = CERTIFIED
    empty: str = ""

    def exit_code(self, strict: bool = False) -> int:
        """The gate's exit code: 0 only if the new certificate is certified and nothing got worse.

        3 if the two cannot be compared; 5 if nothing ran in one of them, or they have no number in common; 2 for a regression;
        else the new certificate's own code; 3 for a number that is not finite.

        Args:
            strict: whether any number that rose is a regression.
        """
        if self.refusals:
            return INCONCLUSIVE
        if self.empty:
            return NOTHING_RAN
        if self.losses or self.exceeded or self.trends or (strict and self.moved):
            return REGRESSED
        return self.own or (INCONCLUSIVE if self.undecided else CERTIFIED)


def compare(new: Certificate, baseline: Certificate, allow_kernel: bool = False) -> BaselineComparison:
    """Compare a certificate with its baseline.

    Args:
        new: the certificate to be judged.
        baseline: what it is judged by.
        allow_kernel: whether the two may be of different kernels.

    Raises:
        ValueError: if a certificate has two records of a case, two results of a check or two measurements of a tensor and
            mode, or a case id that is none.
    """
    refusals = tuple(_refusals(new, baseline, allow_kernel))
    if refusals:
        return BaselineComparison(refusals=refusals)
    records, before = _by_case(new, "the new certificate"), _by_case(baseline, "the baseline")
    common = {case: (before[case], records[case]) for case in before if case in records}
    both = {case: (by_key(old), by_key(record)) for case, (old, record) in common.items()}
    losses = [loss for case, old in before.items() for loss in _losses(old, records.get(case))]
    moves = list(_moves(common, both, _worst_known(before.values())))
    rises = sorted((move for move in moves if move.rose), key=lambda move: (-move.growth, move.case))
    finite = {case: after for case, (_, after) in both.items()}
    finite |= {case: by_key(record) for case, record in records.items() if case not in before}
    measured_before = {case: earlier for case, (earlier, _) in both.items()}
    return BaselineComparison(
        losses=tuple(sorted(losses, key=lambda loss: (loss.what not in WHOLE_CASE, loss.what, loss.case))),
        exceeded=tuple(sorted((move for move in moves if move.exceeds), key=lambda move: -move.excess)),
        trends=significant(_trends(moves)),
        moved=tuple(move for move in rises if not move.exceeds),
        fallen=sum(severity(move.new) < severity(move.old) for move in moves),
        equal=sum(severity(move.new) == severity(move.old) for move in moves),
        undecided=tuple(_undecided(finite, measured_before)),
        added=tuple(case for case in records if case not in before),
        added_checks=tuple(sorted(_checks(new) - _checks(baseline))),
        contracts=tuple(case for case, (old, record) in common.items() if _contract_differs(old, record)),
        groups=_pooled(new, baseline, common),
        own=exit_code(new),
        empty=_emptiness(new, baseline, bool(moves or losses)),
    )


def _refusals(new: Certificate, baseline: Certificate, allow_kernel: bool) -> Iterator[str]:
    pairs = [
        ("platform", new.environment.platform, baseline.environment.platform),
        ("lane", new.plan.lane, baseline.plan.lane),
    ]
    if not allow_kernel:
        pairs.append(("kernel", new.plan.kernel, baseline.plan.kernel))
    for name, got, accepted in pairs:
        if got != accepted:
            yield f"{name}: got {got!r}, the baseline holds for {accepted!r}"


def _checks(certificate: Certificate) -> set[str]:
    return {result.check for record in certificate.records for result in record.results}


def _emptiness(new: Certificate, baseline: Certificate, anything: bool) -> str:
    if exit_code(new) == NOTHING_RAN:
        return "the new certificate holds no case that ran"
    if exit_code(baseline) == NOTHING_RAN:
        return "the baseline holds no case that ran"
    return "" if anything else "the two have no number in common"


def _by_case(certificate: Certificate, name: str) -> dict[str, CaseRecord]:
    found: dict[str, CaseRecord] = {}
    for record in certificate.records:
        if record.case in found:
            raise ValueError(f"{name}: got two records of case {record.case}, accepted is one")
        if len({result.check for result in record.results}) < len(record.results):
            raise ValueError(f"{name}, case {record.case}: got two results of a check, accepted is one")
        found[record.case] = record
    return found


def _verdict_lost(old: Verdict, new: Verdict) -> bool:
    """Whether less is known to be right: neither the same nor a pass, nor a crash that became a stated limit."""
    return new not in (old, Verdict.PASS) and (old, new) != (Verdict.INCONCLUSIVE, Verdict.UNSUPPORTED)


def _losses(old: CaseRecord, new: CaseRecord | None) -> Iterator[Loss]:
    """What a case of the baseline has lost."""
    verdict = settled_verdict(old)
    if new is None:
        yield Loss(case=old.case, what="case", old=verdict.value, new="not run")
        return
    if _verdict_lost(verdict, settled_verdict(new)):
        yield Loss(case=old.case, what="verdict", old=verdict.value, new=_because(settled_verdict(new), new.reason))
        if not new.results:
            return
    checks = {result.check: result for result in new.results}
    gone = set()
    for result in old.results:
        found = checks.get(result.check)
        what = f"check {result.check}"
        if found is None:
            gone.add(result.check)
            # a declined case runs no check: one that had decided nothing is no loss
            if new.results or _verdict_lost(result.verdict, settled_verdict(new)):
                yield Loss(case=old.case, what=what, old=result.verdict.value, new="not run")
        elif _verdict_lost(result.verdict, found.verdict):
            if not any(entries(found)):
                gone.add(result.check)  # its tensors need no lines of their own
            yield Loss(case=old.case, what=what, old=result.verdict.value, new=_because(found.verdict, found.reason))
    measured = by_key(new)
    for key, entry in by_key(old).items():
        check, tensor, mode, _ = key
        lost = None if check in gone else coverage_lost(entry, measured.get(key))
        if lost is not None:
            yield Loss(case=old.case, what=f"{check}: {tensor} ({mode})", old=lost[0], new=lost[1])


def _because(verdict: Verdict, reason: str) -> str:
    return f"{verdict.value}: {reason}" if reason else verdict.value


Known = dict[tuple[str, Key, str, str], float]


def _worst_known(records: Iterable[CaseRecord]) -> Known:
    """The largest finite number of passed cases, by dtype, measurement, regime and quantity: a failure allows nothing."""
    known: Known = {}
    for record in records:
        if settled_verdict(record) is not Verdict.PASS:
            continue
        for key, entry in by_key(record).items():
            for quantity, value in quantities(entry).items():
                place = (record.dtype, key, record.regime, quantity)
                if math.isfinite(value):
                    known[place] = max(known.get(place, -math.inf), value)
    return known


def _moves(
    common: dict[str, tuple[CaseRecord, CaseRecord]],
    both: dict[str, tuple[dict[Key, Entry], dict[Key, Entry]]],
    known: Known,
) -> Iterator[Move]:
    """Every number that both have, moved or not."""
    for case, (record, _) in common.items():
        draw = (record.regime, AttentionCase.from_id(case).seed)
        before, after = both[case]
        for key, entry in before.items():
            if key not in after:
                continue
            check, tensor, mode, _ = key
            new = quantities(after[key])
            for quantity, old in quantities(entry).items():
                yield Move(
                    case=case,
                    draw=draw,
                    dtype=record.dtype,
                    check=check,
                    tensor=tensor,
                    mode=mode,
                    quantity=quantity,
                    old=old,
                    new=new[quantity],
                    known=known.get((record.dtype, key, record.regime, quantity), -math.inf),
                )


def _trends(moves: Iterable[Move]) -> Iterator[Trend]:
    groups: dict[tuple[str, str, str, str, str], list[tuple[Draw, float]]] = defaultdict(list)
    for move in moves:
        place = (move.dtype, move.check, move.tensor, move.mode, move.quantity)
        groups[place].append((move.draw, move.new - move.old))
    for (dtype, check, tensor, mode, quantity), changes in groups.items():
        rises, falls = votes(changes)
        yield Trend(dtype=dtype, check=check, tensor=tensor, mode=mode, quantity=quantity, rises=rises, falls=falls)


def _undecided(new: dict[str, dict[Key, Entry]], old: dict[str, dict[Key, Entry]]) -> Iterator[str]:
    """Numbers that are not finite, where the baseline has no finite one that they could be worse than."""
    for case, found in new.items():
        for key, entry in found.items():
            earlier = old.get(case, {}).get(key)
            before = {} if earlier is None else quantities(earlier)
            for quantity, value in quantities(entry).items():
                if not math.isfinite(value) and not math.isfinite(before.get(quantity, math.nan)):
                    yield f"{case}, {key[1]} ({key[2]}): {quantity} is {value}"


def _contract_differs(old: CaseRecord, new: CaseRecord) -> bool:
    return bool(old.results and new.results) and old.contract != new.contract


def _pooled(new: Certificate, baseline: Certificate, common: Iterable[str]) -> tuple[tuple[Group, Group], ...]:
    """Groups of the cases that both have, before and after, whose rms over all elements differs."""
    kept = set(common)

    def groups(certificate: Certificate) -> dict[tuple[str, str, str, str], Group]:
        shared = replace(certificate, records=tuple(record for record in certificate.records if record.case in kept))
        return {(group.dtype, group.features, group.tensor, group.mode): group for group in summarise(shared).groups}

    before, after = groups(baseline), groups(new)
    pairs = [(old, after[key]) for key, old in before.items() if key in after]
    moved = [pair for pair in pairs if severity(pair[0].rms_ulp) != severity(pair[1].rms_ulp)]
    return tuple(sorted(moved, key=_growth, reverse=True))


def _growth(pair: tuple[Group, Group]) -> float:
    return _quotient(pair[1].rms_ulp, pair[0].rms_ulp)


def _quotient(new: float, old: float) -> float:
    """The quotient of two numbers >= 0; infinite where it is none."""
    return new / old if old > 0.0 and math.isfinite(old) and math.isfinite(new) else math.inf
