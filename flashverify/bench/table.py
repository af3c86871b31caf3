"""The table of speeds as text: TFLOP/s by peer, how ours compares, and the geometric means of that."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from flashverify.bench.peers import CUDNN, EFFICIENT, FLASH, FLEX, OURS, single_name
from flashverify.bench.timing import Timing

ABSENT = "-"


def geometric_mean(values: Iterable[float]) -> float:
    """The geometric mean of positive numbers; NaN of none.

    Raises:
        ValueError: if one is not positive.
    """
    listed = list(values)
    if any(not x > 0.0 for x in listed):
        raise ValueError(f"values: got {min(listed)}, accepted are positive numbers")
    return math.exp(math.fsum(map(math.log, listed)) / len(listed)) if listed else math.nan


def half_table(timings: Sequence[Timing]) -> list[str]:
    """Markdown lines: the shapes in 16 bits, and ours / each peer as geometric means."""
    peers = (OURS, FLEX, FLASH, CUDNN)
    lines = _header(("problem", "pass", *(f"{peer} TFLOP/s" for peer in peers), f"{OURS} / {FLEX}"))
    chosen = [timing for timing in timings if timing.problem.dtype == "bf16"]
    for direction in ("forward", "backward"):
        for timing in (timing for timing in chosen if timing.direction == direction):
            rates = [_number(timing.rate(peer), 0) for peer in peers]
            lines.append(_row((timing.problem.text, direction, *rates, _number(timing.ratio(OURS, FLEX), 2))))
    lines.append("")
    for direction in ("forward", "backward"):
        of_direction = [timing for timing in chosen if timing.direction == direction]
        for peer in peers[1:]:
            lines.append(_mean(of_direction, OURS, peer, f"{direction}: {OURS} / {peer}"))
    return lines


def single_table(timings: Sequence[Timing], kernels: Iterable[str]) -> list[str]:
    """Markdown lines: float32, forward, these kernels of ours beside the memory-efficient one."""
    ours = tuple(map(single_name, kernels))
    lines = _header(
        ("problem", *(f"{peer} TFLOP/s" for peer in (*ours, EFFICIENT)), *(f"{peer} / {EFFICIENT}" for peer in ours))
    )
    chosen = [timing for timing in timings if timing.problem.dtype == "fp32"]
    for timing in chosen:
        rates = [_number(timing.rate(peer), 1) for peer in (*ours, EFFICIENT)]
        lines.append(_row((timing.problem.text, *rates, *(_number(timing.ratio(peer, EFFICIENT), 2) for peer in ours))))
    lines.append("")
    lines += [_mean(chosen, peer, EFFICIENT, f"forward: {peer} / {EFFICIENT}") for peer in ours]
    return lines


def _mean(timings: Sequence[Timing], peer: str, other: str, name: str) -> str:
    ratios = [ratio for timing in timings if (ratio := timing.ratio(peer, other)) is not None]
    return (
        f"{name}: {_number(geometric_mean(ratios) if ratios else None, 3)} (geometric mean of {len(ratios)} of {len(timings)})"
    )


def _header(titles: Sequence[str]) -> list[str]:
    return [_row(titles), _row(["---"] + ["---:"] * (len(titles) - 1))]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(x: float | None, digits: int) -> str:
    return ABSENT if x is None or math.isnan(x) else f"{x:.{digits}f}"
