"""Detection power as Markdown: the score, the kill matrix, survivors, what one check alone sees, and other projects' rules."""

from __future__ import annotations

from collections.abc import Iterator

from flashverify.records.detection import Detection
from flashverify.records.measurement import Verdict
from flashverify.report.text import duration, markdown_cell, markdown_code

SEEN, NOT_SEEN, NOT_APPLIED = "●", "·", " "


def render_detection(detection: Detection) -> str:
    """The report."""
    parts = (_head, _survivors, _alone, _rivals, _verifiers, _matrix)
    return "\n".join(line for part in parts for line in (*part(detection), ""))


def _head(detection: Detection) -> Iterator[str]:
    environment = detection.environment
    yield f"# Detection power on {markdown_cell(environment.gpu or environment.platform)}"
    yield ""
    yield (
        f"**{detection.seen} of {len(detection.counted)} planted defects are seen: {100 * detection.score:.1f} %.** The "
        f"healthy kernel passes {len(detection.healthy)} of {len(detection.controls)} cases. {duration(detection.seconds)}, "
        f"finished {detection.created}."
    )
    yield ""
    yield (
        f"torch {environment.torch}, Triton {environment.triton}; kernel sources {(environment.kernel_sources or 'none')[:8]}, "
        f"verifier {environment.verifier_sources[:8]}. A defect counts as seen where a check fails on a case that the healthy "
        "kernel passes; where a case gets no verdict (a crash, a hang), the campaign as a whole is not certified, and that "
        "column says so."
    )
    for alarm in detection.false_alarms:
        yield f"\n**False alarm:** {markdown_code(alarm.case)}, {alarm.verdict}: {markdown_cell(alarm.reason)}"


def _survivors(detection: Detection) -> Iterator[str]:
    yield "## Survivors"
    yield ""
    if not detection.survivors:
        yield "None."
    for mutant in detection.survivors:
        why = f"equivalent: {mutant.equivalent}" if mutant.equivalent else "a gap"
        yield f"- {markdown_code(mutant.name)}: {markdown_cell(mutant.story)} {markdown_cell(why)}"


def _alone(detection: Detection) -> Iterator[str]:
    """Defects that one check alone sees, by check."""
    yield "## What one check alone sees"
    yield ""
    alone: dict[str, list[str]] = {}
    for mutant in detection.mutants:
        checks = detection.seen_by(mutant.name)
        if len(checks) == 1:
            alone.setdefault(checks[0], []).append(mutant.name)
    for check, names in sorted(alone.items()):
        yield f"- **{markdown_cell(check)}**: {', '.join(map(markdown_code, names))}"
    if not alone:
        yield "Nothing."


def _rivals(detection: Detection) -> Iterator[str]:
    """Other projects' rules on the same kernels and problems."""
    if not detection.rules:
        return
    alarms = len(detection.false_alarms), len(detection.controls)
    rows = [("all checks of this suite", detection.seen, len(detection.counted), *alarms)]
    rows += [(rule, *detection.rival(rule)) for rule in detection.rules]
    yield "## Other acceptance rules, on the same problems"
    yield ""
    yield (
        'Each with the inputs that its project uses; "tried" leaves out what it has nothing for. What they are: '
        "`flashverify/mutants/rivals.py`."
    )
    yield ""
    yield "| rule | defects caught | tried | share | false alarms | healthy cases |"
    yield "|---|---:|---:|---:|---:|---:|"
    for rule, caught, of, rejected, healthy in rows:
        share = f"{100 * caught / of:.0f} %" if of else "–"
        yield f"| {markdown_cell(rule)} | {caught} | {of} | {share} | {rejected} | {healthy} |"


def _verifiers(detection: Detection) -> Iterator[str]:
    """Defects of the verifier itself."""
    if not detection.verifiers:
        return
    caught = sum(bool(verifier.differing) for verifier in detection.verifiers)
    yield "## The verifier with a defect"
    yield ""
    yield (
        f"{caught} of {len(detection.verifiers)} are caught: some verdict differs from what the sound verifier says of the "
        "same kernel and case."
    )
    yield ""
    yield "| defect | what is wrong | caught by |"
    yield "|---|---|---|"
    for verifier in detection.verifiers:
        first = markdown_cell(verifier.differing[0]) if verifier.differing else "**not caught**"
        yield f"| {markdown_code(verifier.name)} | {markdown_cell(verifier.story)} | {first} |"


def _matrix(detection: Detection) -> Iterator[str]:
    """Defects by checks, and by other projects' rules."""
    checks, rules = detection.checks, detection.rules
    yield "## Kill matrix"
    yield ""
    yield f"{SEEN} seen, {NOT_SEEN} applied and not seen. The thread is where the defect was seen."
    yield ""
    yield f"| defect | thread | {' | '.join(map(markdown_cell, (*checks, *rules)))} | case |"
    yield f"|---|---|{':-:|' * len((*checks, *rules))}---|"
    for mutant in detection.mutants:
        trials = [trial for trial in detection.trials if trial.mutant == mutant.name]
        seen = detection.seen_by(mutant.name)
        marks = []
        for check in checks:
            applied = any(check in trial.checks for trial in trials)
            marks.append(SEEN if check in seen else NOT_SEEN if applied else NOT_APPLIED)
        for rule in rules:
            accepted = [trial.rivals[rule] for trial in trials if trial.rivals.get(rule) is not None]
            marks.append(NOT_APPLIED if not accepted else NOT_SEEN if all(accepted) else SEEN)
        cases = ", ".join(markdown_code(trial.case) for trial in trials)
        yield f"| {markdown_code(mutant.name)} | {markdown_cell(mutant.source)} | {' | '.join(marks)} | {cases} |"
    unsupported = [trial for trial in detection.trials if trial.verdict is Verdict.UNSUPPORTED]
    if unsupported:
        yield f"\nDeclined: {', '.join(f'{markdown_code(t.mutant)} ({markdown_cell(t.reason)})' for t in unsupported)}"
