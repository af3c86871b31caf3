"""What a certificate says: counts of verdicts, and the worst known errors with the cases that attain them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from flashverify.records.certificate import Certificate
from flashverify.records.measurement import CaseRecord, Element, Measurement, Verdict

K = TypeVar("K")

FORWARD_TENSORS = ("out", "lse")
TENSOR_ORDER = (*FORWARD_TENSORS, "dq", "dk", "dv", "dbias", "dsink")
MODE_ORDER = ("forward", "modular", "end-to-end", "unrounded", "enclosure")
DTYPE_ORDER = ("fp16", "bf16", "fp32", "fp64")

ENCLOSURE = "enclosure"
"""Mode of the function check's measurements: distances from rigorous enclosures, not rounding errors."""

CERTIFIED, FAILED, REGRESSED, INCONCLUSIVE, USAGE, NOTHING_RAN = range(6)
"""Exit codes of a campaign. `REGRESSED` and `USAGE` are not for a certificate alone to decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worst:
    """A largest value, and where it was attained.

    Attributes:
        value: the largest value; NaN counts as larger than infinity.
        case: id of the case that attains it.
        tensor: the tensor.
        mode: how truth was formed.
        element: the element, if it was kept.
    """

    value: float
    case: str
    tensor: str
    mode: str
    element: Element | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Errors of one tensor over the cases of one dtype and one set of features.

    Attributes:
        tensor: the tensor.
        mode: how truth was formed.
        dtype: short name of the cases' dtype.
        features: the cases' features, joined by "+".
        cases: cases measured.
        elements: elements compared.
        ulp: largest error in ulps of the dtype.
        headroom: largest error / budget.
        rms_ulp: root mean square error in ulps, over all elements.
        bias_ulp: mean signed error in ulps, over all elements; negative means shrinkage.
        violations: elements beyond doubt outside their budgets.
        unsupported: cases of this dtype and these features that the kernel declined, by reason.
    """

    tensor: str
    mode: str
    dtype: str
    features: str
    cases: int
    elements: int
    ulp: Worst
    headroom: Worst
    rms_ulp: float
    bias_ulp: float
    violations: int
    unsupported: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """The cases that have a feature, whatever else they have.

    Attributes:
        cases: by verdict.
        headroom: largest error / budget, or None if nothing was measured.
        ulp: largest error in ulps, or None.
        forward: largest relative distance of out and lse from their enclosures, or None.
        backward: the same of the gradients.
    """

    cases: dict[Verdict, int]
    headroom: Worst | None
    ulp: Worst | None
    forward: Worst | None
    backward: Worst | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The certificate in numbers.

    Attributes:
        verdicts: cases by verdict; every verdict has an entry.
        not_run: cases planned that left no record.
        checks: results by check and verdict.
        groups: errors by tensor, mode, dtype and features, in the cases' own dtype (see `in_case_dtype`), as below.
        tensors: the worst known error in ulps of every (dtype, tensor, mode).
        tensor_headroom: largest error / budget of every (dtype, tensor, mode).
        tensor_relative: largest error relative to its row's largest true value, of every (dtype, tensor, mode).
        regime_headroom: largest error / budget of every regime.
        regime_ulp: largest error in ulps of every regime.
        regime_cases: records by regime and verdict.
        features: what is known of every feature, "plain" first, then by name.
        forward_distance: largest relative distance of out and lse from their enclosures, or None if none was measured.
        backward_distance: the same of dq, dk and dv.
        unsupported: cases declined, by reason.
        exit_code: 0 certified, 1 a kernel failed, 3 inconclusive, 5 nothing ran.
    """

    verdicts: dict[Verdict, int]
    not_run: int
    checks: dict[str, dict[Verdict, int]]
    groups: tuple[Group, ...]
    tensors: dict[tuple[str, str, str], Worst]
    tensor_headroom: dict[tuple[str, str, str], Worst]
    tensor_relative: dict[tuple[str, str, str], Worst]
    regime_headroom: dict[str, Worst]
    regime_ulp: dict[str, Worst]
    regime_cases: dict[str, dict[Verdict, int]]
    features: dict[str, Feature]
    forward_distance: Worst | None
    backward_distance: Worst | None
    unsupported: dict[str, int]
    exit_code: int


def settled_verdict(record: CaseRecord) -> Verdict:
    """The verdict that a record earns: its own, but no better than its checks', and no pass without a passed check."""
    results = [result.verdict for result in record.results]
    if record.verdict is Verdict.FAIL or Verdict.FAIL in results:
        return Verdict.FAIL
    if record.verdict is Verdict.PASS:
        return Verdict.PASS if results and Verdict.worst(results) is Verdict.PASS else Verdict.INCONCLUSIVE
    if record.verdict is Verdict.UNSUPPORTED and (Verdict.PASS in results or Verdict.INCONCLUSIVE in results):
        return Verdict.INCONCLUSIVE
    return record.verdict


def exit_code(certificate: Certificate) -> int:
    """The exit code of the campaign: 0 certified, 1 a kernel failed, 3 inconclusive, 5 nothing ran.

    A planned case without a record makes it inconclusive; cases that were all declined are nothing that ran. Arithmetic of the
    device that fits no model makes everything inconclusive: no budget has any ground then, to pass or to fail by.
    """
    if certificate.axioms is not None and certificate.axioms.unexplained:
        return INCONCLUSIVE
    verdicts = {settled_verdict(record) for record in certificate.records}
    if Verdict.FAIL in verdicts:
        return FAILED
    if Verdict.INCONCLUSIVE in verdicts:
        return INCONCLUSIVE
    if Verdict.PASS not in verdicts:
        return NOTHING_RAN
    return INCONCLUSIVE if len(certificate.records) < certificate.plan.cases else CERTIFIED


def severity(value: float) -> float:
    """A key that sorts errors by how bad they are: NaN, which no bound holds, after infinity."""
    return math.inf if math.isnan(value) else min(value, math.nextafter(math.inf, 0.0))


def summarise(certificate: Certificate) -> Summary:
    """Aggregate a certificate's records; which case is named depends on their order only between equals."""
    records = certificate.records
    verdicts = Counter(settled_verdict(record) for record in records)
    measured = [(record, entry) for record, entry in measurements(records) if in_case_dtype(record, entry)]
    keyed = [((record.dtype, entry.tensor, entry.mode), record, entry) for record, entry in measured]
    keyed.sort(key=lambda item: table_order(*item[0]))
    distances = _worst_by(
        (entry.tensor in FORWARD_TENSORS, _worst_distance(record, entry))
        for record, entry in measurements(records)
        if entry.mode == ENCLOSURE
    )
    return Summary(
        verdicts={verdict: verdicts[verdict] for verdict in Verdict},
        not_run=max(0, certificate.plan.cases - len(records)),
        checks=_count((result.check, result.verdict) for record in records for result in record.results),
        groups=_groups(records),
        tensors=_worst_by((key, _worst_ulp(record, entry)) for key, record, entry in keyed),
        tensor_headroom=_worst_by((key, _worst_headroom(record, entry)) for key, record, entry in keyed),
        tensor_relative=_worst_by((key, _worst_distance(record, entry)) for key, record, entry in keyed),
        regime_headroom=_worst_first(_worst_by((record.regime, _worst_headroom(record, entry)) for record, entry in measured)),
        regime_ulp=_worst_first(_worst_by((record.regime, _worst_ulp(record, entry)) for record, entry in measured)),
        regime_cases=_count((record.regime, settled_verdict(record)) for record in records),
        features=_features(records),
        forward_distance=distances.get(True),
        backward_distance=distances.get(False),
        unsupported=_unsupported(records),
        exit_code=exit_code(certificate),
    )


def measurements(records: Iterable[CaseRecord]) -> Iterator[tuple[CaseRecord, Measurement]]:
    """Every measurement with its case; `tiers.py` has those against sharp budgets."""
    for record in records:
        for result in record.results:
            for measurement in result.measurements:
                yield record, measurement


def in_case_dtype(record: CaseRecord, entry: Measurement) -> bool:
    """Whether a measurement is of the case's own dtype: distances from enclosures are always of a float64 kernel."""
    return entry.mode != ENCLOSURE or record.dtype == "fp64"


def table_order(*names: str) -> tuple[tuple[int, str], ...]:
    """A key that sorts by dtype, tensor and mode in the order of tables, and unknown names after the known ones."""
    orders = (DTYPE_ORDER, TENSOR_ORDER, MODE_ORDER)
    return tuple((order.index(name) if name in order else len(order), name) for order, name in zip(orders, names, strict=False))


def _features(records: Iterable[CaseRecord]) -> dict[str, Feature]:
    """Each feature of any case; a case counts for every feature that it has."""
    having: dict[str, list[CaseRecord]] = defaultdict(list)
    for record in records:
        for feature in record.features.split("+"):
            having[feature].append(record)
    return {name: _feature(having[name]) for name in sorted(having, key=lambda name: (name != "plain", name))}


def _feature(records: list[CaseRecord]) -> Feature:
    verdicts = Counter(settled_verdict(record) for record in records)
    entries = list(measurements(records))
    measured = [(record, entry) for record, entry in entries if in_case_dtype(record, entry)]
    distances = _worst_by(
        (entry.tensor in FORWARD_TENSORS, _worst_distance(record, entry))
        for record, entry in entries
        if entry.mode == ENCLOSURE
    )
    return Feature(
        cases={verdict: verdicts[verdict] for verdict in Verdict},
        headroom=_worst_by((True, _worst_headroom(*item)) for item in measured).get(True),
        ulp=_worst_by((True, _worst_ulp(*item)) for item in measured).get(True),
        forward=distances.get(True),
        backward=distances.get(False),
    )


def _groups(records: Iterable[CaseRecord]) -> tuple[Group, ...]:
    members: dict[tuple[str, str, str, str], list[tuple[CaseRecord, Measurement]]] = defaultdict(list)
    declined: dict[tuple[str, str], list[CaseRecord]] = defaultdict(list)
    for record in records:
        if settled_verdict(record) is Verdict.UNSUPPORTED:
            declined[record.dtype, record.features].append(record)
    for record, entry in measurements(records):
        if in_case_dtype(record, entry):
            members[record.dtype, record.features, entry.tensor, entry.mode].append((record, entry))
    groups = []
    for (dtype, features, tensor, mode), found in members.items():
        entries = [entry for _, entry in found]
        elements = sum(entry.elements for entry in entries)
        filled = [entry for entry in entries if entry.elements]
        groups.append(
            Group(
                tensor=tensor,
                mode=mode,
                dtype=dtype,
                features=features,
                cases=len({record.case for record, _ in found}),
                elements=elements,
                ulp=max((_worst_ulp(*pair) for pair in found), key=lambda worst: severity(worst.value)),
                headroom=max((_worst_headroom(*pair) for pair in found), key=lambda worst: severity(worst.value)),
                rms_ulp=_root_mean_square((entry.rms_ulp, entry.elements) for entry in filled),
                bias_ulp=sum(entry.bias_ulp * (entry.elements / elements) for entry in filled),
                violations=sum(entry.violations for entry in entries),
                unsupported=_unsupported(declined[dtype, features]),
            )
        )
    return tuple(sorted(groups, key=_group_order))


def _group_order(group: Group) -> tuple[object, ...]:
    dtype, tensor, mode = table_order(group.dtype, group.tensor, group.mode)
    return (dtype, group.features, tensor, mode)


def _root_mean_square(parts: Iterable[tuple[float, int]]) -> float:
    """Root mean square over all elements, from those of the parts; scaled, so that no square overflows."""
    weighted = list(parts)
    total = sum(count for _, count in weighted)
    values = [value for value, _ in weighted]
    if any(not math.isfinite(value) for value in values):
        return math.nan if any(math.isnan(value) for value in values) else math.inf
    largest = max(values, default=0.0)
    if largest == 0.0:
        return 0.0
    return largest * math.sqrt(math.fsum((value / largest) ** 2 * (count / total) for value, count in weighted))


def _worst_ulp(record: CaseRecord, entry: Measurement) -> Worst:
    return Worst(value=entry.max_ulp, case=record.case, tensor=entry.tensor, mode=entry.mode, element=entry.worst_ulp)


def _worst_headroom(record: CaseRecord, entry: Measurement) -> Worst:
    return Worst(value=entry.headroom, case=record.case, tensor=entry.tensor, mode=entry.mode, element=entry.worst)


def _worst_distance(record: CaseRecord, entry: Measurement) -> Worst:
    return Worst(value=entry.max_relative, case=record.case, tensor=entry.tensor, mode=entry.mode, element=entry.worst)


def _worst_by(candidates: Iterable[tuple[K, Worst]]) -> dict[K, Worst]:
    """The worst of every key, in the order of the keys' first appearance."""
    found: dict[K, Worst] = {}
    for key, worst in candidates:
        if key not in found or severity(worst.value) > severity(found[key].value):
            found[key] = worst
    return found


def _worst_first(found: dict[str, Worst]) -> dict[str, Worst]:
    return dict(sorted(found.items(), key=lambda item: (-severity(item[1].value), item[0])))


def _count(pairs: Iterable[tuple[str, Verdict]]) -> dict[str, dict[Verdict, int]]:
    """How often every verdict was given, by key, sorted by key."""
    counts: dict[str, Counter[Verdict]] = defaultdict(Counter)
    for key, verdict in pairs:
        counts[key][verdict] += 1
    return {key: {verdict: counts[key][verdict] for verdict in Verdict} for key in sorted(counts)}


def _unsupported(records: Iterable[CaseRecord]) -> dict[str, int]:
    """Declined cases by reason, the most frequent first."""
    reasons = Counter(
        record.reason or "no reason given" for record in records if settled_verdict(record) is Verdict.UNSUPPORTED
    )
    return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
