"""The command line: certify, axioms, replay, report, gate, bench, claims, mutants, list, env.

Exit codes: 0 certified; 1 a kernel failed; 2 regression against the baseline; 3 inconclusive, or this program crashed; 4 usage;
5 nothing ran; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    import torch

    from flashverify.cases.case import AttentionCase
    from flashverify.lanes import Lane
    from flashverify.numerics.axioms.arithmetic import Arithmetic
    from flashverify.records.certificate import Certificate

USAGE = 4
INCONCLUSIVE = 3
INTERRUPTED = 130
OUTPUT = Path("certificates")

app = typer.Typer(
    name="flashverify",
    help="Certifies that an attention kernel computes exact attention, with rounding as good as its arithmetic allows.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)

KernelOption = Annotated[
    str, typer.Option("--kernel", help="triton, sdpa:flash|cudnn|efficient, mutant:NAME, or package.module:function.")
]
LaneOption = Annotated[str, typer.Option("--lane", help="auto, gpu or interpreter.")]


def main() -> None:
    """Run the command line; errors of usage end with exit code 4 and one line."""
    sys.path.append(os.getcwd())  # a kernel of one's own is mostly a file in the current folder
    try:
        sys.exit(app(standalone_mode=False))  # typer.Exit comes back as its code, or is raised, by typer's version
    except typer.Exit as exit_request:
        sys.exit(exit_request.exit_code)
    except ValueError as error:
        _usage_error(str(error))
    except OSError as error:
        _usage_error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except Exception as error:
        # typer's own usage errors come from click, which typer may vendor: known by their method
        show = getattr(error, "format_message", None)
        if show is None:
            traceback.print_exc()
            sys.exit(INCONCLUSIVE)  # Python's own code would be 1, which says that a kernel failed
        _usage_error(show())


def _usage_error(message: str) -> None:
    print(f"flashverify: {message}", file=sys.stderr)
    sys.exit(USAGE)


@app.command()
def certify(
    kernel: KernelOption = "triton",
    matrix: Annotated[
        str | None, typer.Option(help="smoke, standard or full; by default smoke in the interpreter, standard on a GPU.")
    ] = None,
    select: Annotated[list[str] | None, typer.Option(help="Only cases whose id or features contain this; repeatable.")] = None,
    case: Annotated[list[str] | None, typer.Option(help="Only this case id (instead of a matrix); repeatable.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for certificate and reports.")] = OUTPUT,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; by default up to 16, one a core.")] = None,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds that one case may take.")] = 300.0,
    lane: LaneOption = "auto",
) -> None:
    """Certify a kernel on this machine, and write a certificate and reports."""
    from flashverify.campaign.campaign import Campaign
    from flashverify.campaign.journal import Journal
    from flashverify.campaign.plan import select as select_cases
    from flashverify.cases.matrices import matrix as cases_of
    from flashverify.console.campaign import run_watched
    from flashverify.kernels import load
    from flashverify.lanes import enter_lane
    from flashverify.records.measurement import CaseRecord
    from flashverify.records.summary import exit_code

    chosen = enter_lane(lane)
    console.print(f"lane: {chosen.reason}")
    name = matrix or ("standard" if chosen.name == "gpu" else "smoke")
    if case:
        if matrix is not None:
            raise ValueError("--matrix and --case: got both, accepted is one of them")
        name, cases = "cases", tuple(dict.fromkeys(_case(text) for text in case))
    else:
        cases = cases_of(name)
    campaign = Campaign(
        kernel=kernel,
        matrix=name,
        cases=select_cases(cases, select or []),
        lane=chosen.name,
        factory=load,
        workers=workers,
        timeout=timeout,
        options=tuple(f"select={word}" for word in select or []),
    )
    campaign.load()  # what cannot be loaded is said before anything is measured or written
    stem = f"{kernel.replace(':', '-')}-{name}"
    kept = 0
    with Journal(output / f"{stem}.journal.jsonl") as journal:

        def keep(record: CaseRecord) -> None:
            nonlocal kept
            journal.append(record)
            kept += 1

        try:
            certificate = run_watched(console, campaign, keep)
        except KeyboardInterrupt:
            print(f"flashverify: interrupted; {kept} of {len(campaign.cases)} records are in {journal.path}", file=sys.stderr)
            raise
    _write(certificate, output, stem)
    journal.path.unlink()
    raise typer.Exit(exit_code(certificate))


@app.command()
def axioms(
    lane: LaneOption = "auto",
    output: Annotated[Path | None, typer.Option(help="File for what was measured (JSON).")] = None,
) -> None:
    """Measure this device's own arithmetic: tensor cores, exp2, log2, division, casts, sums."""
    from flashverify.console.axioms import print_axioms
    from flashverify.lanes import enter_lane
    from flashverify.records.axioms import to_axioms
    from flashverify.records.files import write_atomically

    chosen = enter_lane(lane)
    console.print(f"lane: {chosen.reason}")
    started = time.perf_counter()
    measured = to_axioms(_measure(chosen))
    print_axioms(console, measured)
    console.print(f"{len(measured.observations)} observations; {time.perf_counter() - started:.0f} s")
    if output is not None:
        write_atomically(output, measured.to_json())
        console.print(str(output), soft_wrap=True)
    raise typer.Exit(INCONCLUSIVE if measured.unexplained else 0)


@app.command()
def replay(
    case: Annotated[str, typer.Argument(help="The case's id, as a report or `flashverify list` prints it.")],
    kernel: KernelOption = "triton",
    lane: LaneOption = "auto",
) -> None:
    """Run one case again, here, and show where the worst element of each tensor is, and its row."""
    from flashverify.campaign.worker import examine_with
    from flashverify.checks.examination import Examination
    from flashverify.checks.registry import all_checks
    from flashverify.console.replay import print_replay
    from flashverify.console.tables import verdict_text
    from flashverify.kernels import load
    from flashverify.lanes import enter_lane
    from flashverify.records.measurement import Verdict

    chosen = enter_lane(lane)
    console.print(f"lane: {chosen.reason}")
    asked = _case(case)
    examined = load(kernel, _device(chosen))
    arithmetic = _explained(chosen)
    try:
        record = examine_with(examined, asked, tuple(all_checks()), arithmetic)
    except Exception as error:  # the kernel's, most likely: one replays it to see where
        traceback.print_exc()
        console.print(f"{asked.id}: {verdict_text(Verdict.INCONCLUSIVE)}", soft_wrap=True)
        console.print(f"{type(error).__name__}: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(INCONCLUSIVE) from error
    print_replay(console, record, Examination(examined, asked, arithmetic))
    codes = {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.INCONCLUSIVE: 3, Verdict.UNSUPPORTED: 5}
    raise typer.Exit(codes[record.verdict])


@app.command()
def report(
    certificate: Annotated[Path, typer.Argument(help="A certificate (JSON, or compressed by gzip).")],
    output: Annotated[Path | None, typer.Option(help="Folder for the reports; by default the certificate's.")] = None,
    claims: Annotated[Path | None, typer.Option(help="What `flashverify claims` wrote (JSON), for a chapter of it.")] = None,
) -> None:
    """Write the HTML and the Markdown report of a certificate."""
    from flashverify.console.tables import print_summary
    from flashverify.records.certificate import Certificate
    from flashverify.records.claims import Claims
    from flashverify.report.render import write_report

    read = Certificate.read(certificate)
    chapter = None if claims is None else Claims.read(claims)
    folder = output or certificate.parent
    folder.mkdir(parents=True, exist_ok=True)
    stem = certificate.name.removesuffix(".gz").removesuffix(".json")
    html, markdown = folder / f"{stem}.html", folder / f"{stem}.md"
    write_report(read, html, markdown, chapter)
    print_summary(console, read)
    console.print(f"{html}\n{markdown}", soft_wrap=True)


@app.command()
def gate(
    certificate: Annotated[Path, typer.Argument(help="The new certificate (JSON).")],
    baseline: Annotated[Path, typer.Option(help="The certificate that it must not fall behind.")],
    allow_kernel: Annotated[bool, typer.Option("--allow-kernel", help="The two may be of different kernels.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Any number that rose is a regression.")] = False,
) -> None:
    """Compare a certificate with a baseline: did any number get worse?"""
    from flashverify.console.gate import print_gate
    from flashverify.records.baseline import compare
    from flashverify.records.certificate import Certificate

    new, old = Certificate.read(certificate), Certificate.read(baseline)
    found = compare(new, old, allow_kernel)
    print_gate(console, new, old, found, strict)
    raise typer.Exit(found.exit_code(strict))


@app.command()
def bench(
    certificate: Annotated[
        list[Path] | None,
        typer.Option(help="A certificate of this machine, one a kernel; repeatable. By default each is made first."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes of the certification.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for certificates that are made, and for the tables.")] = OUTPUT,
) -> None:
    """Time our kernels beside their peers on this machine's GPU; a kernel that is not certified on it gets no speed."""
    from flashverify.bench import run
    from flashverify.bench.peers import PRECISIONS
    from flashverify.bench.permission import refusal
    from flashverify.bench.table import half_table, single_table
    from flashverify.console.bench import campaign_of
    from flashverify.console.campaign import run_watched
    from flashverify.kernels import load
    from flashverify.lanes import enter_lane
    from flashverify.records.certificate import Certificate
    from flashverify.records.environment import Environment
    from flashverify.records.files import write_atomically
    from flashverify.records.summary import FAILED

    chosen = enter_lane("gpu")
    console.print(f"lane: {chosen.reason}")
    given = {read.plan.kernel: read for read in map(Certificate.read, certificate or [])}
    here = Environment.capture(False, load("triton", _device(chosen)).sources)
    shown = []
    for name in PRECISIONS:
        made = given.get(name)
        if certificate is None:
            made = run_watched(console, campaign_of(name, load, workers), lambda record: None)
            _write(made, output, f"{name.replace(':', '-')}-bench")
        reason = f"no certificate of {name} was given" if made is None else refusal(made, here, name)
        if reason is None:
            shown.append(name)
        else:
            console.print(f"no speed of {name} is shown: {reason}", markup=False, soft_wrap=True)
    if "triton" not in shown:
        raise typer.Exit(FAILED)
    run.compile_ahead(shown)
    timings = run.measure(shown)
    where = f"{here.gpu}; torch {here.torch}, Triton {here.triton}, commit {here.commit}"
    tables = "\n".join((where, "", *half_table(timings), "", *single_table(timings, shown)))
    console.print(tables, markup=False, soft_wrap=True)
    write_atomically(output / "triton-bench-tables.md", f"{tables}\n".encode())


@app.command("claims")
def claims_(
    output: Annotated[Path, typer.Option(help="Folder for what was measured (JSON) and the reports.")] = OUTPUT,
) -> None:
    """Measure what FlashAttention claims, on this machine's GPU: memory, bytes moved, time, exactness, the sign bit."""
    from flashverify.claims.measure import measure
    from flashverify.console.claims import print_claim
    from flashverify.lanes import enter_lane
    from flashverify.records.files import write_atomically
    from flashverify.report.render import render_claims_html, render_claims_markdown

    chosen = enter_lane("gpu")
    console.print(f"lane: {chosen.reason}")
    arithmetic = _explained(chosen)
    measured = measure(arithmetic, lambda claim: print_claim(console, claim))
    stem = output / f"{measured.kernel}-claims"
    measured.write(stem.with_suffix(".json"))
    write_atomically(stem.with_suffix(".html"), render_claims_html(measured).encode())
    write_atomically(stem.with_suffix(".md"), render_claims_markdown(measured).encode())
    console.print("\n".join(str(stem.with_suffix(f".{suffix}")) for suffix in ("json", "html", "md")), soft_wrap=True)
    raise typer.Exit(measured.exit_code)


@app.command("mutants")
def mutants_(
    select: Annotated[list[str] | None, typer.Option(help="Only defects whose name contains this; repeatable.")] = None,
    least: Annotated[float, typer.Option(min=0.0, max=1.0, help="The share of defects that has to be seen.")] = 0.95,
    output: Annotated[Path, typer.Option(help="Folder for what was found (JSON, Markdown).")] = OUTPUT,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; by default up to 16, one a core.")] = None,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds that one trial may take.")] = 120.0,
    lane: LaneOption = "auto",
) -> None:
    """Measure what the suite sees: planted defects on their cases, with all checks, beside the healthy kernel."""
    import msgspec

    from flashverify.campaign.campaign import number_of_workers
    from flashverify.console.detection import print_detection, watched
    from flashverify.kernels import load
    from flashverify.lanes import enter_lane
    from flashverify.mutants import detection
    from flashverify.mutants.verifier import VERIFIER_MUTANTS, examine_verifiers
    from flashverify.records.files import write_atomically
    from flashverify.report.detection import render_detection

    chosen = enter_lane(lane)
    console.print(f"lane: {chosen.reason}")
    mutants = detection.chosen(select or [])
    arithmetic = _explained(chosen)
    with watched(console, len(detection.plan(mutants))) as on_trial:
        found = detection.detect(
            mutants,
            chosen.device,
            load,
            arithmetic,
            workers=number_of_workers(workers),
            timeout=timeout,
            on_trial=on_trial,
        )
    if not select:
        verifiers = examine_verifiers(VERIFIER_MUTANTS, chosen.device, number_of_workers(workers))
        found = msgspec.structs.replace(found, verifiers=verifiers)
    print_detection(console, found)
    found.write(output / "mutants.json")
    write_atomically(output / "mutants.md", render_detection(found).encode())
    console.print("\n".join(str(output / f"mutants.{suffix}") for suffix in ("json", "md")), soft_wrap=True)
    raise typer.Exit(found.exit_code(least))


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="cases, regimes, layouts, checks, matrices or mutants.")] = "cases",
    matrix: Annotated[str, typer.Option(help="Matrix whose cases are listed.")] = "smoke",
    select: Annotated[list[str] | None, typer.Option(help="Only cases whose id or features contain this; repeatable.")] = None,
) -> None:
    """List what can be asked for."""
    from flashverify.console.listing import listing

    for line in listing(what, matrix, select or []):
        console.print(line, soft_wrap=True, markup=False)


@app.command()
def env(kernel: KernelOption = "triton", lane: LaneOption = "auto") -> None:
    """Show the environment that a certificate made here would hold for."""
    from flashverify.kernels import load
    from flashverify.lanes import enter_lane
    from flashverify.records.environment import Environment

    chosen = enter_lane(lane)
    console.print(f"lane: {chosen.reason}")
    sources = load(kernel, _device(chosen)).sources
    for name, value in Environment.capture(chosen.name == "interpreter", sources).describe().items():
        console.print(f"{name:24} {value}", markup=False, soft_wrap=True)


def _case(case_id: str) -> AttentionCase:
    from flashverify.cases.case import AttentionCase
    from flashverify.cases.layouts import LAYOUTS
    from flashverify.cases.regimes import REGIMES

    case = AttentionCase.from_id(case_id)
    for field, known in (("regime", REGIMES), ("layout", LAYOUTS)):
        if getattr(case, field) not in known:
            raise ValueError(f"case id: got {field} {getattr(case, field)!r} in {case_id!r}, accepted are {', '.join(known)}")
    return case


def _device(lane: Lane) -> torch.device:
    import torch

    return torch.device(lane.device)


def _measure(lane: Lane) -> Arithmetic:
    from flashverify.numerics.axioms.measure import measure

    return measure(_device(lane))


def _explained(lane: Lane) -> Arithmetic:
    """The device's arithmetic; where it fits no known model, that is printed, and nothing is examined on it."""
    from flashverify.console.axioms import print_unexplained
    from flashverify.records.axioms import to_axioms

    arithmetic = _measure(lane)
    print_unexplained(console, to_axioms(arithmetic))
    if arithmetic.unexplained:
        raise typer.Exit(INCONCLUSIVE)
    return arithmetic


def _write(certificate: Certificate, folder: Path, stem: str) -> None:
    from flashverify.report.render import write_report

    paths = tuple(folder / f"{stem}.{suffix}" for suffix in ("json", "html", "md"))
    certificate.write(paths[0])
    write_report(certificate, paths[1], paths[2])
    for path in paths:
        console.print(str(path), soft_wrap=True)
