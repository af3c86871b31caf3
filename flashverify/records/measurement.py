"""What was measured: verdicts, measurements of one tensor, results of one check, the record of one case."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from flashverify.records.dropout import Bits, Rates, Statistic


class Verdict(StrEnum):
    """The verdict of a check or of a case. A case that was not run is never a pass."""

    PASS = "pass"
    FAIL = "fail"
    UNSUPPORTED = "unsupported"
    INCONCLUSIVE = "inconclusive"

    @staticmethod
    def worst(verdicts: list[Verdict]) -> Verdict:
        """The verdict of the whole: fail before inconclusive before pass; unsupported only if nothing else was said."""
        for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS):
            if verdict in verdicts:
                return verdict
        return Verdict.UNSUPPORTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """One element of a tensor, with what was expected of it.

    Attributes:
        index: its index in the logical B,H,N,D (lse: B,H,N) tensor.
        value: the kernel's value.
        truth: the oracle's value.
        budget: the error allowed, the oracle's radius not yet subtracted.
    """

    index: tuple[int, ...]
    value: float
    truth: float
    budget: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The error of one tensor of one case.

    Attributes:
        tensor: out, lse, dq, dk or dv.
        mode: how truth was formed: "forward", "modular" (backward as a function of the kernel's own out and lse),
            "end-to-end" (backward from the inputs alone) or "enclosure" (distance from rigorous balls).
        elements: number of elements compared.
        max_error: largest |value - truth|, in the tensor's own unit.
        max_ulp: largest |value - truth| in ulps of the output's dtype at the largest |truth| of its head;
            heads whose truth drowns in the budget, because it cancels, are left out.
        rms_error: root mean square of value - truth.
        rms_ulp: root mean square of the error in those ulps.
        bias_ulp: mean signed error in those ulps, (value - truth)·sign(truth): negative means shrinkage.
        headroom: largest (|value - truth| + oracle radius) / budget; above 1 the budget is exceeded.
        certain_excess: largest (|value - truth| - oracle radius) / budget; above 1 it is exceeded beyond doubt.
        max_relative: largest error beyond the oracle's radius, relative to the largest |truth| of its head, as for
            max_ulp; for "enclosure", the distance from the enclosure relative to the terms that make the element.
        violations: number of elements beyond doubt outside the budget (or not finite, or not exact where that is due).
        worst: the element with the largest headroom.
        worst_ulp: the element with the largest error in ulps.
    """

    tensor: str
    mode: str
    elements: int
    max_error: float
    max_ulp: float
    rms_error: float
    rms_ulp: float
    bias_ulp: float
    headroom: float
    certain_excess: float
    max_relative: float
    violations: int
    worst: Element | None
    worst_ulp: Element | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharp:
    """The error of one tensor of one case against its sharp budget, which no error exceeds by chance.

    Attributes:
        tensor: out, lse, dq, dk or dv.
        mode: how truth was formed, as in `Measurement`.
        elements: number of elements compared.
        headroom: largest (|value - truth| + oracle radius) / budget.
        certain_excess: largest (|value - truth| - oracle radius) / budget.
        violations: number of elements beyond doubt outside the budget.
        worst: the element with the largest headroom.
    """

    tensor: str
    mode: str
    elements: int
    headroom: float
    certain_excess: float
    violations: int
    worst: Element | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """The errors of one tensor of one case as predicted standard scores z = error / predicted deviation.

    Attributes:
        tensor: out, lse, dq, dk or dv.
        mode: how truth was formed, as in `Measurement`.
        elements: number of scores.
        rows: number of rows (query rows; of dk and dv, key rows) that they cluster in.
        rms: root mean square of z.
        smallest_rms: the least that is accepted; 0 where a smaller error is no defect.
        largest_rms: the most that is accepted.
        mean: mean of z.
        t: Student's t of the rows' mean z.
        largest_t: the largest |t| that is accepted: a quantile, and what the model's bias may explain.
        shrinkage: mean of z·sign(truth): negative means shrinkage.
        t_sign: Student's t of the rows' mean z·sign(truth).
        largest_t_sign: the largest |t_sign| that is accepted.
    """

    tensor: str
    mode: str
    elements: int
    rows: int
    rms: float
    smallest_rms: float
    largest_rms: float
    mean: float
    t: float
    largest_t: float
    shrinkage: float
    t_sign: float
    largest_t_sign: float

    @property
    def defects(self) -> tuple[str, ...]:
        """What lies outside of its range, in words; NaN lies outside."""
        found = []
        if not self.rms <= self.largest_rms:
            found.append(f"errors are {self.rms:.3g} times the predicted size, at most {self.largest_rms:.3g} is accepted")
        if not self.rms >= self.smallest_rms:
            found.append(f"errors are {self.rms:.3g} times the predicted size, at least {self.smallest_rms:.3g} is accepted")
        if not abs(self.t) <= self.largest_t:
            found.append(f"their mean is off by t = {self.t:.3g}, at most {self.largest_t:.3g} is accepted")
        if not abs(self.t_sign) <= self.largest_t_sign:
            direction = "toward" if self.t_sign < 0 else "away from"
            found.append(f"they point {direction} 0 with t = {self.t_sign:.3g}, at most {self.largest_t_sign:.3g} is accepted")
        return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What one check found on one case.

    Attributes:
        check: name of the check.
        verdict: its verdict.
        reason: why, for a reader; empty for a pass.
        measurements: one entry a tensor and mode, against hard budgets.
        sharp: the same against sharp budgets.
        distributions: one entry a tensor and mode, of checks that look at the distribution of errors.
        bits: one entry a tensor and mode, of checks that compare dropout masks.
        statistics: one entry a question, of checks that test dropout masks of other generators.
        rates: what a check of the effective rate found, or None.
    """

    check: str
    verdict: Verdict
    reason: str = ""
    measurements: tuple[Measurement, ...] = ()
    sharp: tuple[Sharp, ...] = ()
    distributions: tuple[Distribution, ...] = ()
    bits: tuple[Bits, ...] = ()
    statistics: tuple[Statistic, ...] = ()
    rates: Rates | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseRecord:
    """Everything kept of one case of a campaign.

    Attributes:
        case: the case's id (`AttentionCase.from_id` rebuilds it).
        kernel: name of the examined kernel.
        verdict: the worst verdict of its checks.
        reason: why, for a reader; empty for a pass.
        dtype: short name of the case's dtype.
        features: the case's features, joined by "+": the key of aggregation with dtype and tensor.
        regime: the case's input regime.
        results: one entry a check that ran.
        contract: the kernel's numerical contract for this case, as words.
        configuration: what the kernel says of how it ran (tile sizes and the like).
        seconds: wall time.
        timings: seconds by stage (`flashverify.records.timings`), which sum to the wall time; empty where they are not known.
        peak_bytes: peak device memory, or None where it is not measured.
    """

    case: str
    kernel: str
    verdict: Verdict
    reason: str = ""
    dtype: str
    features: str
    regime: str
    results: tuple[CheckResult, ...] = ()
    contract: dict[str, str] = field(default_factory=dict)
    configuration: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    timings: dict[str, float] = field(default_factory=dict)
    peak_bytes: int | None = None
