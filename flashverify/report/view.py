"""A certificate as a reader meets it: the same words and rows for every form of report."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from flashverify.records.axioms import Axioms
from flashverify.records.certificate import Certificate
from flashverify.records.measurement import CaseRecord, Element, Verdict
from flashverify.records.summary import (
    CERTIFIED,
    FAILED,
    INCONCLUSIVE,
    NOTHING_RAN,
    Summary,
    Worst,
    summarise,
    table_order,
)
from flashverify.records.tiers import tiers
from flashverify.records.timings import STAGES, UNTIMED, UNTIMED_MEANING, spent
from flashverify.report.conclusion import verdict_caveats, verdict_sentence, verdict_word
from flashverify.report.dropout import bits_rows, statistics_rows
from flashverify.report.problems import Problem, describe, worst_first
from flashverify.report.rounding import TierLine, tier_lines
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
        features: by feature: its name and counts, error / budget and its tensor, error in ulp, distances of the function
            forward and backward, and the command that replays the largest error / budget.
        regimes: worst by regime; labels are the regime and its counts.
        groups: rows of dtype, features, tensor, mode, cases, elements, ulp, rms, bias, headroom, unsupported.
        unsupported: reason and number of cases.
        contracts: (dtype, number of cases, parameters); a parameter lists every value that it took.
        axioms: what the device's arithmetic was measured to do; empty if it was not measured.
        tiers: errors against hard and sharp budgets, and statistics of their scores; empty if none beyond the hard ran.
        inapplicable: rows of check, reason why it did not apply, and number of cases.
        mask_bits: rows of tensor, what its dropout mask was compared with, cases, bits, those that differ, those that can't be
            told, and those that signs read by value would have lost.
        mask_statistics: rows of question, cases, tests, bits, the least likely outcome, its p-value, the limit, and its replay.
        time: rows of stage, seconds summed over cases, share, and what belongs to it; empty if it was not measured.
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
    features: tuple[tuple[str, ...], ...]
    regimes: tuple[Row, ...]
    groups: tuple[tuple[str, ...], ...]
    unsupported: dict[str, int]
    contracts: tuple[tuple[str, int, dict[str, str]], ...]
    axioms: tuple[AxiomRow, ...]
    tiers: tuple[TierLine, ...]
    inapplicable: tuple[tuple[str, str, str], ...]
    mask_bits: tuple[tuple[str, ...], ...]
    mask_statistics: tuple[tuple[str, ...], ...]
    time: tuple[tuple[str, str, str, str], ...]


def build_view(certificate: Certificate) -> View:
    """The certificate as a reader meets it."""
    summary = summarise(certificate)
    problems = worst_first(certificate.records)
    rounding = tiers(certificate.records)
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
        problems=tuple(map(describe, problems[:PROBLEMS_SHOWN])),
        problems_left_out=max(0, len(problems) - PROBLEMS_SHOWN),
        tensors=tuple(
            _row(plan.kernel, (*key, number(summary.tensor_relative[key].value)), worst, summary.tensor_headroom[key])
            for key, worst in summary.tensors.items()
        ),
        features=_features(plan.kernel, summary),
        regimes=_regimes(plan.kernel, summary),
        groups=_groups(summary),
        unsupported=summary.unsupported,
        contracts=_contracts(certificate.records),
        axioms=_axioms(certificate.axioms),
        tiers=tier_lines(rounding, plan.kernel),
        inapplicable=tuple(
            (check, reason, f"{cases:,}")
            for check, reasons in rounding.inapplicable.items()
            for reason, cases in reasons.items()
        ),
        mask_bits=bits_rows(certificate.records),
        mask_statistics=statistics_rows(certificate.records, plan.kernel),
        time=_time(certificate.records),
    )


_KINDS = {CERTIFIED: "certified", FAILED: "failed", INCONCLUSIVE: "inconclusive", NOTHING_RAN: "nothing"}


def _time(records: tuple[CaseRecord, ...]) -> tuple[tuple[str, str, str, str], ...]:
    seconds = spent(records)
    total = sum(seconds.values())
    meanings = STAGES | {UNTIMED: UNTIMED_MEANING}
    return tuple(
        (stage, duration(x), f"{x / total:.1%}" if total > 0.0 else number(None), meanings.get(stage, ""))
        for stage, x in seconds.items()
    )


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


def _features(kernel: str, summary: Summary) -> tuple[tuple[str, ...], ...]:
    """Rows by feature; a dash where nothing was measured."""
    return tuple(
        (
            name,
            _given(found.cases),
            _value(found.headroom),
            found.headroom.tensor if found.headroom else "-",
            _value(found.ulp),
            _value(found.forward),
            _value(found.backward),
            replay_command(found.headroom.case, kernel) if found.headroom else "-",
        )
        for name, found in summary.features.items()
    )


def _value(worst: Worst | None) -> str:
    return "-" if worst is None else number(worst.value)


def _given(counts: dict[Verdict, int]) -> str:
    """Verdicts that were given, counted."""
    return ", ".join(f"{counts[verdict]:,} {verdict}" for verdict in Verdict if counts[verdict])


def _regimes(kernel: str, summary: Summary) -> tuple[Row, ...]:
    """Worst by regime: the regime that comes closest to its budget first."""
    rows = []
    for regime, worst in summary.regime_headroom.items():
        given = _given(summary.regime_cases[regime])
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
