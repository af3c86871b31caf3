"""A certificate as a reader meets it: the same words and rows for every form of report."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from flashverify.records.axioms import Axioms
from flashverify.records.certificate import Certificate
from flashverify.records.measurement import CaseRecord, Element, Measurement, Verdict
from flashverify.records.summary import (
    CERTIFIED,
    FAILED,
    INCONCLUSIVE,
    NOTHING_RAN,
    Summary,
    Worst,
    settled_verdict,
    severity,
    summarise,
    table_order,
)
from flashverify.report.conclusion import verdict_caveats, verdict_sentence, verdict_word
from flashverify.report.text import count, duration, exact, number, replay_command

PROBLEMS_SHOWN = 50
"""Failures and inconclusive cases described one by one; the certificate holds them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A worst value in a table: what it belongs to, the value, where it was attained, and how to see it again."""

    labels: tuple[str, ...]
    value: str
    element: str
    case: str
    replay: str
    second_value: str = ""
    second_case: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AxiomRow:
    """One line of the device's arithmetic: primitive, what was measured, the model or limit, how many inputs."""

    name: str
    value: str
    text: str
    inputs: str
    fits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A failed or inconclusive case, with its worst tensor."""

    case: str
    verdict: str
    reasons: tuple[str, ...]
    replay: str
    tensors: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Everything that a report shows, as text.

    Attributes:
        word: the verdict of the whole in a word.
        kind: the same as a class of style: certified, failed, inconclusive or nothing.
        sentence: what was certified and where, or what went wrong.
        caveats: what is not covered.
        facts: the environment.
        plan: what was to be done.
        counts: cases by verdict, and those not run.
        checks: per check: name and results by verdict.
        distances: largest relative distance from the enclosures, forward and backward.
        problems: failures first, then inconclusive cases.
        problems_left_out: how many more there are.
        tensors: worst known error of every tensor; labels are dtype, tensor, mode, relative error.
        regimes: worst by regime; labels are the regime and its counts.
        groups: rows of dtype, features, tensor, mode, cases, elements, ulp, rms, bias, headroom, unsupported.
        unsupported: reason and number of cases.
        contracts: (dtype, number of cases, parameters); a parameter lists every value that it took.
        axioms: what the device's arithmetic was measured to do; empty if it was not measured.
    """

    kernel: str
    word: str
    kind: str
    sentence: str
    created: str
    planned: str
    duration: str
    caveats: tuple[str, ...]
    facts: dict[str, str]
    plan: dict[str, str]
    counts: dict[str, int]
    checks: tuple[tuple[str, ...], ...]
    distances: tuple[Row, ...]
    problems: tuple[Problem, ...]
    problems_left_out: int
    tensors: tuple[Row, ...]
    regimes: tuple[Row, ...]
    groups: tuple[tuple[str, ...], ...]
    unsupported: dict[str, int]
    contracts: tuple[tuple[str, int, dict[str, str]], ...]
    axioms: tuple[AxiomRow, ...]


def build_view(certificate: Certificate) -> View:
    """The certificate as a reader meets it."""
    summary = summarise(certificate)
    problems = sorted(
        (record for record in certificate.records if settled_verdict(record) in _PROBLEM_ORDER), key=_problem_order
    )
    plan = certificate.plan
    return View(
        kernel=plan.kernel,
        word=verdict_word(summary),
        kind=_KINDS[summary.exit_code],
        sentence=verdict_sentence(certificate, summary),
        created=certificate.created,
        planned=count(plan.cases, "case"),
        duration=duration(certificate.seconds),
        caveats=verdict_caveats(certificate, summary),
        facts=certificate.environment.describe(),
        plan={
            "kernel": plan.kernel,
            "matrix": plan.matrix,
            "cases planned": f"{plan.cases:,}",
            "checks": ", ".join(plan.checks) or "none",
            "lane": plan.lane,
            "seed": str(plan.seed),
            "options": " ".join(plan.options) or "none",
        },
        counts={**{str(verdict): summary.verdicts[verdict] for verdict in Verdict}, "not run": summary.not_run},
        checks=tuple((name, *(f"{verdicts[verdict]:,}" for verdict in Verdict)) for name, verdicts in summary.checks.items()),
        distances=tuple(
            _row(plan.kernel, (direction,), worst)
            for direction, worst in (
                ("forward", summary.forward_distance),
                ("backward", summary.backward_distance),
            )
            if worst is not None
        ),
        problems=tuple(_problem(record) for record in problems[:PROBLEMS_SHOWN]),
        problems_left_out=max(0, len(problems) - PROBLEMS_SHOWN),
        tensors=tuple(
            _row(plan.kernel, (*key, number(summary.tensor_relative[key].value)), worst, summary.tensor_headroom[key])
            for key, worst in summary.tensors.items()
        ),
        regimes=_regimes(plan.kernel, summary),
        groups=_groups(summary),
        unsupported=summary.unsupported,
        contracts=_contracts(certificate.records),
        axioms=_axioms(certificate.axioms),
    )


_KINDS = {CERTIFIED: "certified", FAILED: "failed", INCONCLUSIVE: "inconclusive", NOTHING_RAN: "nothing"}

_PROBLEM_ORDER = (Verdict.FAIL, Verdict.INCONCLUSIVE)


def _axioms(axioms: Axioms | None) -> tuple[AxiomRow, ...]:
    """The table of the device's arithmetic; what fits no model stands first."""
    lines = () if axioms is None else sorted(axioms.observations, key=lambda line: line.fits)
    return tuple(
        AxiomRow(
            name=line.name,
            value=line.value,
            text=line.text,
            inputs=("all " if line.exhaustive else "") + (f"{line.inputs:,}" if line.inputs else ""),
            fits=line.fits,
        )
        for line in lines
    )


def _problem_order(record: CaseRecord) -> tuple[int, float]:
    excess = [severity(entry.headroom) for result in record.results for entry in result.measurements]
    return (_PROBLEM_ORDER.index(settled_verdict(record)), -max(excess, default=0.0))


def _place(element: Element | None) -> str:
    if element is None:
        return ""
    index = ", ".join(map(str, element.index))
    return f"[{index}]: {exact(element.value)} for {exact(element.truth)}"


def _row(kernel: str, labels: tuple[str, ...], worst: Worst, second: Worst | None = None) -> Row:
    return Row(
        labels=labels,
        value=number(worst.value),
        element=_place(worst.element),
        case=worst.case,
        replay=replay_command(worst.case, kernel),
        second_value="" if second is None else number(second.value),
        second_case="" if second is None else second.case,
    )


def _regimes(kernel: str, summary: Summary) -> tuple[Row, ...]:
    """Worst by regime: the regime that comes closest to its budget first."""
    rows = []
    for regime, worst in summary.regime_headroom.items():
        counts = summary.regime_cases[regime]
        given = ", ".join(f"{counts[verdict]:,} {verdict}" for verdict in Verdict if counts[verdict])
        rows.append(_row(kernel, (regime, given, worst.tensor), worst, summary.regime_ulp[regime]))
    return tuple(rows)


def _groups(summary: Summary) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (
            group.dtype,
            group.features,
            group.tensor,
            group.mode,
            f"{group.cases:,}",
            f"{group.elements:,}",
            number(group.ulp.value),
            number(group.rms_ulp),
            number(group.bias_ulp),
            number(group.headroom.value),
            f"{sum(group.unsupported.values()):,}",
        )
        for group in summary.groups
    )


def _problem(record: CaseRecord) -> Problem:
    results = [result for result in record.results if result.verdict in _PROBLEM_ORDER]
    reasons = dict.fromkeys(f"{result.check}: {result.reason}" for result in results if result.reason)
    if record.reason and not any(record.reason in reason for reason in reasons):
        reasons = {record.reason: None, **reasons}
    entries = sorted(
        (entry for result in results for entry in result.measurements if entry.worst is not None and _suspect(entry)),
        key=lambda entry: -severity(entry.headroom),
    )
    return Problem(
        case=record.case,
        verdict=str(settled_verdict(record)),
        reasons=tuple(reasons) or ("no reason given",),
        replay=replay_command(record.case, record.kernel),
        tensors=tuple(_suspect_row(entry, entry.worst) for entry in entries if entry.worst is not None),
    )


def _suspect(entry: Measurement) -> bool:
    return entry.violations > 0 or not entry.headroom <= 1.0


def _suspect_row(entry: Measurement, worst: Element) -> tuple[str, ...]:
    return (
        entry.tensor,
        entry.mode,
        f"[{', '.join(map(str, worst.index))}]",
        exact(worst.value),
        exact(worst.truth),
        number(worst.budget),
        number(entry.headroom),
        f"{entry.violations:,} of {entry.elements:,}",
    )


def _contracts(records: tuple[CaseRecord, ...]) -> tuple[tuple[str, int, dict[str, str]], ...]:
    """What the budgets were derived from: by dtype, every parameter with the values that it took."""
    uses: Counter[str] = Counter()
    values: dict[str, dict[str, dict[str, None]]] = {}
    for record in records:
        if record.contract:
            uses[record.dtype] += 1
            parameters = values.setdefault(record.dtype, {})
            for name, value in record.contract.items():
                parameters.setdefault(name, {})[value] = None
    return tuple(
        (dtype, uses[dtype], {name: "; ".join(sorted(found, key=_natural)) for name, found in values[dtype].items()})
        for dtype in sorted(values, key=table_order)
    )


def _natural(text: str) -> tuple[int, str]:
    """A key that sorts whole numbers by value."""
    return (int(text) if text.isdecimal() else -1, text)
