"""What the suite sees of planted defects, as it is kept: one trial a defect and case, and the healthy kernel beside it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from flashverify.records.document import Document
from flashverify.records.environment import Environment
from flashverify.records.measurement import Verdict
from flashverify.records.summary import CERTIFIED, FAILED, INCONCLUSIVE

SCHEMA: Literal["flashverify/detection/1"] = "flashverify/detection/1"

CAMPAIGN = "campaign"
"""Who sees a defect by which a case gets no verdict, where the healthy kernel gets one: a campaign is not certified then."""


class Trial(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kernel with a planted defect on one case.

    Attributes:
        mutant: its name.
        case: the case's id.
        verdict: of all checks.
        reason: why, for a reader.
        checks: name of each check that applied -> its verdict.
        rivals: name of another project's rule -> whether it accepts the kernel; None: it has nothing like the case.
        seconds: wall time.
    """

    mutant: str
    case: str
    verdict: Verdict
    reason: str
    checks: dict[str, Verdict]
    rivals: dict[str, bool | None]
    seconds: float

    @property
    def seen_by(self) -> tuple[str, ...]:
        """The checks that fail; or the campaign, where there is no verdict."""
        if self.verdict is Verdict.INCONCLUSIVE and Verdict.FAIL not in self.checks.values():
            return (CAMPAIGN,)
        return tuple(name for name, verdict in self.checks.items() if verdict is Verdict.FAIL)


class Planted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A planted defect.

    Attributes:
        name: its name.
        story: what is wrong, in a sentence.
        source: the thread that it was seen in, or "control".
        equivalent: why no input shows it, or None.
    """

    name: str
    story: str
    source: str
    equivalent: str | None = None


class VerifierTrial(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A planted defect of the verifier itself.

    Attributes:
        name: its name.
        story: what is wrong, in a sentence.
        differing: kernel, case, check and both verdicts, wherever it says something else than the sound verifier; empty: the
            defect is not caught.
    """

    name: str
    story: str
    differing: tuple[str, ...]


class Detection(Document, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was seen of a catalogue of planted defects.

    Attributes:
        created: when: UTC, ISO 8601, to the second.
        environment: what it holds for.
        lane: "gpu" or "interpreter".
        seconds: wall time.
        mutants: the catalogue.
        trials: one a defect and case.
        controls: the healthy kernel on every case; its name stands where a defect's does.
        verifiers: defects of the verifier itself.
    """

    created: str
    environment: Environment
    lane: str
    seconds: float
    mutants: tuple[Planted, ...]
    trials: tuple[Trial, ...]
    controls: tuple[Trial, ...]
    verifiers: tuple[VerifierTrial, ...] = ()
    schema: Literal["flashverify/detection/1"] = SCHEMA

    @property
    def healthy(self) -> frozenset[str]:
        """The cases that the healthy kernel passes: a defect is seen on these alone."""
        return frozenset(control.case for control in self.controls if control.verdict is Verdict.PASS)

    def seen_by(self, mutant: str) -> tuple[str, ...]:
        """The checks that see a defect, on any of its cases that the healthy kernel passes."""
        of = (trial for trial in self.trials if trial.mutant == mutant and trial.case in self.healthy)
        return tuple(dict.fromkeys(check for trial in of for check in trial.seen_by))

    @property
    def survivors(self) -> tuple[Planted, ...]:
        """Defects that nothing sees, those among them that no input shows."""
        return tuple(mutant for mutant in self.mutants if not self.seen_by(mutant.name))

    @property
    def counted(self) -> tuple[Planted, ...]:
        """Defects that some input shows."""
        return tuple(mutant for mutant in self.mutants if mutant.equivalent is None)

    @property
    def seen(self) -> int:
        """How many of these are seen."""
        return sum(bool(self.seen_by(mutant.name)) for mutant in self.counted)

    @property
    def score(self) -> float:
        """The share of these that are seen; NaN of none."""
        return self.seen / len(self.counted) if self.counted else float("nan")

    @property
    def false_alarms(self) -> tuple[Trial, ...]:
        """Cases that the healthy kernel does not pass."""
        return tuple(control for control in self.controls if control.verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE))

    def exit_code(self, least: float) -> int:
        """3 if the healthy kernel does not pass; 1 if fewer than that share is seen, or one of the verifier is not; else 0."""
        if self.false_alarms:
            return INCONCLUSIVE
        caught = all(verifier.differing for verifier in self.verifiers)
        return CERTIFIED if caught and self.score >= least else FAILED

    @property
    def checks(self) -> tuple[str, ...]:
        """Every check that applied to any trial, and the campaign if it saw a defect."""
        named = dict.fromkeys(check for trial in (*self.controls, *self.trials) for check in trial.checks)
        return tuple(sorted(named)) + ((CAMPAIGN,) if any(CAMPAIGN in trial.seen_by for trial in self.trials) else ())

    @property
    def rules(self) -> tuple[str, ...]:
        """Other projects' rules, in their order."""
        return tuple(dict.fromkeys(rule for trial in (*self.controls, *self.trials) for rule in trial.rivals))

    def rival(self, rule: str) -> tuple[int, int, int, int]:
        """Of another project's rule: defects rejected, defects tried; healthy cases rejected, healthy cases tried."""
        tried = {t.mutant for t in self.trials if t.rivals.get(rule) is not None}
        rejected = {t.mutant for t in self.trials if t.rivals.get(rule) is False}
        return len(rejected), len(tried), *_rejections(self.controls, rule)


def _rejections(trials: Iterable[Trial], rule: str) -> tuple[int, int]:
    accepted = [trial.rivals[rule] for trial in trials if trial.rivals.get(rule) is not None]
    return sum(not one for one in accepted), len(accepted)
