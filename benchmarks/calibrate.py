"""How far the sharp model is from a kernel: predicted against measured errors, over seeds, sizes, formats and regimes.

    PYTHONPATH=.:kernels python3 benchmarks/calibrate.py --seeds 20 --output DIR

Every number is one that the checks judge (`checks/sharp.py`, `checks/distribution.py`). Written are calibration.json (each
case), calibration.md (the tables of docs/numerics.md, section 15) and predicted-rms.svg (its figure). On a GPU kernels are
compiled; elsewhere they run in Triton's interpreter. `--kernel simulated` is the arithmetic of tests/numerics/simulator.py,
truncating tensor core included.

    PYTHONPATH=.:kernels python3 benchmarks/calibrate.py --certificate FILE ... --output DIR

reads the scores of certificates instead of running anything; they hold no predicted sizes, so there is no second table.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from flashverify.adapters.kernel import Kernel
from flashverify.cases.case import AttentionCase
from flashverify.checks.distribution import not_generic, statistics
from flashverify.checks.examination import Examination
from flashverify.checks.reference import end_to_end
from flashverify.checks.sharp import compared
from flashverify.checks.views import View, views
from flashverify.lanes import enter_lane
from flashverify.numerics.sharp import inapplicable_to
from flashverify.records.certificate import Certificate
from flashverify.records.measurement import CaseRecord

Row = dict[str, object]

DTYPES = ("fp16", "bf16", "fp32")
TENSORS = ("out", "lse", "dq", "dk", "dv")
SECONDS_BETWEEN_WRITES = 20.0


def main(arguments: list[str]) -> None:
    asked = _parser().parse_args(arguments)
    asked.output.mkdir(parents=True, exist_ok=True)
    if asked.certificate:
        text = certified(asked.certificate, asked.lengths, asked.regimes)
        (asked.output / "calibration.md").write_text(text)
        print(text)
        return
    lane = enter_lane(asked.lane)
    device = torch.device(lane.device)
    kernel = _kernel(asked.kernel, device)
    arithmetic = None
    if asked.kernel != "simulated" and not asked.published:
        from flashverify.numerics.axioms.measure import measure

        arithmetic = measure(device)
    where: dict[str, object] = {
        "kernel": asked.kernel,
        "device": torch.cuda.get_device_name() if lane.name == "gpu" else f"cpu, {_emulation(asked.kernel)}",
        "torch": torch.__version__,
        "arithmetic": "published" if arithmetic is None else "measured",
    }
    rows: list[Row] = []
    started = written = time.perf_counter()
    for case in _cases(asked):
        rows += _examine(Examination(kernel, case, arithmetic))
        now = time.perf_counter()
        where["seconds"] = round(now - started, 1)
        if now - started > asked.time_limit:
            break
        if now - written > SECONDS_BETWEEN_WRITES:
            _write(asked.output, where, rows)
            written = now
    print(_write(asked.output, where, rows))


def _write(folder: Path, where: dict[str, object], rows: list[Row]) -> str:
    """Write what is known so far; the tables are returned."""
    (folder / "calibration.json").write_text(json.dumps({"where": where, "rows": rows}, indent=0) + "\n")
    text = markdown(where, rows)
    (folder / "calibration.md").write_text(text)
    (folder / "predicted-rms.svg").write_text(figure(where, rows))
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kernel", default="triton", help='"triton", "simulated", or any other name that certify takes')
    parser.add_argument("--lane", default="auto", help="auto, gpu or interpreter")
    parser.add_argument("--published", action="store_true", help="take published constants of the device, not measured ones")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--certificate", type=Path, nargs="+", help="certificates to read, instead of running a kernel")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--time-limit", type=float, default=math.inf, help="seconds after which no further case is begun")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--queries", type=int, help="number of query rows, if not that of keys")
    parser.add_argument("--head-dims", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--dtypes", nargs="+", default=DTYPES)
    parser.add_argument("--masks", nargs="+", default=["full", "causal"])
    parser.add_argument("--regimes", nargs="+", default=["normal"])
    return parser


def _kernel(name: str, device: torch.device) -> Kernel:
    if name == "simulated":
        from tests.numerics.simulated import SimulatedKernel

        return SimulatedKernel()
    from flashverify.kernels import load

    return load(name, device)


def _emulation(kernel: str) -> str:
    return "tensor core emulated" if kernel == "simulated" else "Triton's interpreter"


def _cases(asked: argparse.Namespace) -> Iterator[AttentionCase]:
    """Seeds change last: a run that is cut short has all configurations, with fewer seeds."""
    sizes = itertools.product(range(asked.seeds), asked.dtypes, asked.regimes, asked.masks, asked.lengths, asked.head_dims)
    for seed, dtype, regime, mask, length, head_dim in sizes:
        queries = asked.queries or length
        yield AttentionCase(
            dtype=dtype, seqlen_q=queries, seqlen_k=length, head_dim=head_dim, mask=mask, regime=regime, seed=seed
        )


def _examine(examination: Examination) -> list[Row]:
    """A row for each tensor, or one that says why there is none."""
    case = examination.case
    declined = examination.kernel.declines(case)
    reason = declined or examination.not_sharp or end_to_end(examination).range_violation(examination)
    if reason is not None:
        return [{"case": case.id, "unsupported": reason}]
    return [_row(examination, view) for view in views(examination)]


def _row(examination: Examination, view: View) -> Row:
    case, contract = examination.case, examination.walked
    row: Row = {
        "case": case.id,
        **{name: getattr(case, name) for name in ("dtype", "regime", "mask", "seqlen_k", "head_dim", "seed")},
        "tensor": view.tensor,
        "mode": view.mode,
        "predicted": float(view.spread.size(view.truth, view.stored).square().mean().sqrt()),
        "measured": float(view.error().square().mean().sqrt()),
        "sharp": float(compared(view).headroom().max()),
    }
    reason = inapplicable_to(view.tensor, case, contract) or not_generic(view)
    if reason is not None:
        return row | {"unsupported": reason}
    found = statistics(view, contract)
    return (
        row
        | {name: value for name, value in dataclasses.asdict(found).items() if name not in row}
        | {"defects": list(found.defects)}
    )


def certified(paths: list[Path], lengths: list[int], regimes: list[str]) -> str:
    """The first table, of the scores in certificates: square cases of these lengths and regimes."""
    rows: list[Row] = []
    for certificate in map(Certificate.read, paths):
        for record in certificate.records:
            case = AttentionCase.from_id(record.case)
            if case.seqlen_q == case.seqlen_k and case.seqlen_k in lengths and case.regime in regimes:
                rows += _of_record(case, record)
    environment = certificate.environment
    heading = (
        f"{certificate.plan.kernel} on {environment.gpu}, torch {environment.torch}, from certificates: {len(rows)} tensors "
        f"with scores of {len({row['case'] for row in rows})} cases, {sum(bool(row['defects']) for row in rows)} outside of "
        "their range."
    )
    return "\n".join([heading, "", *_scores(rows)]) + "\n"


def _of_record(case: AttentionCase, record: CaseRecord) -> Iterator[Row]:
    sharp = {(x.tensor, x.mode): x.headroom for result in record.results for x in result.sharp}
    for found in (x for result in record.results for x in result.distributions):
        yield {
            "case": case.id,
            **{name: getattr(case, name) for name in ("dtype", "regime", "mask")},
            **dataclasses.asdict(found),
            "sharp": sharp[found.tensor, found.mode],
            "defects": list(found.defects),
        }


def markdown(where: dict[str, object], rows: list[Row]) -> str:
    """Tables for docs/numerics.md."""
    judged = [row for row in rows if "rms" in row]
    lines = [
        f"{where['kernel']} on {where['device']}, torch {where['torch']}, {where['arithmetic']} constants: "
        f"{len(judged)} tensors with scores of {len({row['case'] for row in rows})} cases, "
        f"{sum(bool(row['defects']) for row in judged)} outside of their range, in {where['seconds']} s.",
        "",
        *_scores(judged),
        "",
        "Measured / predicted rms error, over all seeds, masks and regimes:",
        "",
    ]
    lines += ["| N | D | " + " | ".join(f"{dtype} {tensor}" for dtype in DTYPES for tensor in TENSORS) + " |"]
    lines.append("|---|---|" + "---|" * (len(DTYPES) * len(TENSORS)))
    for (length, head_dim), group in _grouped(_rounded(rows), "seqlen_k", "head_dim"):
        quotients = {key: _quotient(part) for key, part in _grouped(group, "dtype", "tensor")}
        cells = [quotients.get((dtype, tensor), "–") for dtype in DTYPES for tensor in TENSORS]
        lines.append(f"| {length} | {head_dim} | " + " | ".join(cells) + " |")
    left_out = [row for row in rows if "unsupported" in row]
    lines += ["", "Without scores (one reason of several):", ""]
    for (tensor,), group in _grouped([{"tensor": "all of a case"} | row for row in left_out], "tensor"):
        lines.append(f"- {tensor}, {len(group)} times: {group[0]['unsupported']}")
    return "\n".join(lines).rstrip() + "\n"


def _scores(judged: list[Row]) -> list[str]:
    """A table of scores by dtype, regime, mask and tensor."""
    lines = [
        "| dtype | regime, mask | tensor | tensors | rms(z): mean | least | most | sd | largest \\|t\\| | \\|t_sign\\| "
        "| share of limits | largest T2 |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (dtype, regime, mask, tensor, mode), group in _grouped(judged, "dtype", "regime", "mask", "tensor", "mode"):
        rms = torch.tensor([row["rms"] for row in group], dtype=torch.float64)
        deviation = float(rms.std()) if len(group) > 1 else math.nan
        used = max(max(abs(row["t"]) / row["largest_t"], abs(row["t_sign"]) / row["largest_t_sign"]) for row in group)
        lines.append(
            f"| {dtype} | {regime}, {mask} | {tensor} ({mode}) | {len(group)} "
            f"| {float(rms.mean()):.3f} | {float(rms.min()):.3f} | {float(rms.max()):.3f} | {deviation:.3f} "
            f"| {max(abs(row['t']) for row in group):.1f} | {max(abs(row['t_sign']) for row in group):.1f} "
            f"| {used:.2f} | {max(row['sharp'] for row in group):.2f} |"
        )
    return lines


def _rounded(rows: list[Row]) -> list[Row]:
    """Rows of tensors as they are stored."""
    return [row for row in rows if "measured" in row and row["mode"] != "unrounded"]


def _quotient(group: list[Row]) -> str:
    measured, predicted = (sum(row[name] ** 2 for row in group) for name in ("measured", "predicted"))
    return f"{math.sqrt(measured / predicted):.3f}" if predicted else "–"


def _grouped(rows: list[Row], *names: str) -> Iterator[tuple[tuple[object, ...], list[Row]]]:
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    yield from groups.items()


COLOURS = {"fp16": "#1f77b4", "bf16": "#d95f02", "fp32": "#2a9d50"}
WIDTH, HEIGHT, MARGIN = 440.0, 380.0, 60.0


def figure(where: dict[str, object], rows: list[Row]) -> str:
    """Left: measured against predicted rms error, one mark a tensor of one size, over all seeds. Right: their quotient."""
    points = [row for row in _over_seeds(rows) if row["predicted"] > 0.0 and row["measured"] > 0.0]
    if not points:
        return '<svg xmlns="http://www.w3.org/2000/svg"/>\n'
    logs = [math.log10(row[name]) for row in points for name in ("predicted", "measured")]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    most = 0.2 * math.ceil(5.0 * max(1.2, *(row["measured"] / row["predicted"] for row in points)))

    def across(row: Row) -> float:
        return MARGIN + WIDTH * (math.log10(row["predicted"]) - low) / (high - low)

    def absolute(value: float) -> float:
        return MARGIN + HEIGHT * (1.0 - (math.log10(value) - low) / (high - low))

    def relative(value: float) -> float:
        return MARGIN + HEIGHT * (1.0 - value / most)

    total, second = 2 * WIDTH + 4 * MARGIN, WIDTH + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total:g} {HEIGHT + 2 * MARGIN:g}" font-family="sans-serif" '
        'font-size="13">',
        f'<rect width="{total:g}" height="{HEIGHT + 2 * MARGIN:g}" fill="white"/>',
        f"<title>Predicted and measured rms errors: {where['kernel']} on {where['device']}</title>",
        *_frame(0.0, "measured rms error", low, high, [(absolute(10.0**e), f"1e{e}") for e in range(low, high + 1)]),
        *_frame(
            second, "measured / predicted", low, high, [(relative(x / 5), f"{x / 5:g}") for x in range(round(5 * most) + 1)]
        ),
        f'<line x1="{MARGIN}" y1="{MARGIN + HEIGHT}" x2="{MARGIN + WIDTH}" y2="{MARGIN}" stroke="#888"/>',
        f'<path d="M{second + MARGIN:g} {relative(1.0):.1f}h{WIDTH:g}" stroke="#888"/>',
    ]
    for row in points:
        colour = COLOURS[str(row["dtype"])]
        parts.append(_mark(across(row), absolute(row["measured"]), str(row["tensor"]), colour))
        parts.append(_mark(second + across(row), relative(row["measured"] / row["predicted"]), str(row["tensor"]), colour))
    entries: list[tuple[str, str, str]] = [(dtype, "out", colour) for dtype, colour in COLOURS.items()]
    entries += [(label, tensor, "#444") for label, tensor in (("out", "out"), ("lse", "lse"), ("dq, dk, dv", "dq"))]
    for place, (label, tensor, colour) in enumerate(entries):
        x = MARGIN + 150.0 * place
        parts.append(_mark(x, 0.5 * MARGIN, tensor, colour))
        parts.append(f'<text x="{x + 10:g}" y="{0.5 * MARGIN + 4.5:g}">{label}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _over_seeds(rows: list[Row]) -> Iterator[Row]:
    """Rows that differ in their seed alone as one."""
    described = ("dtype", "regime", "mask", "seqlen_k", "head_dim", "tensor", "mode")
    for key, group in _grouped([row for row in rows if "measured" in row], *described):
        sizes = {name: math.sqrt(sum(row[name] ** 2 for row in group) / len(group)) for name in ("predicted", "measured")}
        yield dict(zip(described, key, strict=True)) | sizes


def _frame(left: float, name: str, low: int, high: int, ticks: list[tuple[float, str]]) -> list[str]:
    x, bottom = left + MARGIN, MARGIN + HEIGHT
    parts = [f'<rect x="{x:g}" y="{MARGIN:g}" width="{WIDTH:g}" height="{HEIGHT:g}" fill="none" stroke="#444"/>']
    for y, label in ticks:
        parts.append(f'<line x1="{x:g}" y1="{y:.1f}" x2="{x + WIDTH:g}" y2="{y:.1f}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{x - 6:g}" y="{y + 4.5:.1f}" text-anchor="end">{label}</text>')
    for exponent in range(low, high + 1):
        place = x + WIDTH * (exponent - low) / (high - low)
        parts.append(f'<text x="{place:.1f}" y="{bottom + 18:g}" text-anchor="middle">1e{exponent}</text>')
    parts.append(f'<text x="{x + WIDTH / 2:g}" y="{bottom + 40:g}" text-anchor="middle">predicted rms error</text>')
    parts.append(f'<text x="{x + 8:g}" y="{MARGIN + 18:g}">{name}</text>')
    return parts


def _mark(x: float, y: float, tensor: str, colour: str) -> str:
    shapes: dict[str, Callable[[], str]] = {
        "out": lambda: f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"',
        "lse": lambda: f'<rect x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6"',
    }
    triangle = f'<path d="M{x:.1f} {y - 4:.1f}l4 7h-8z"'
    return shapes.get(tensor, lambda: triangle)() + f' fill="{colour}" fill-opacity="0.55"/>'


if __name__ == "__main__":
    main(sys.argv[1:])
