"""Claim: attention that moves fewer bytes is faster."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

from flashverify.bench.timing import take_turns
from flashverify.claims.problems import DROPPING, LENGTHS, OURS, STANDARD, Subject, forward_backward, inputs
from flashverify.records.claims import Claim, Outcome, Series

CYCLES_AHEAD = 10_000_000
"""Some 5 ms, in which the host launches a forward and a backward pass."""

FORWARD, BOTH = "time, forward", "time, forward and backward"


def measure(subjects: Sequence[Subject], lengths: tuple[int, ...] = LENGTHS) -> Claim:
    """Median times of each subject at each length, in turns; a subject is left out where memory is not enough for it."""
    found: dict[tuple[str, str], dict[int, float]] = {(s.name, q): {} for q in (FORWARD, BOTH) for s in subjects}
    for seqlen in lengths:
        tensors = inputs(seqlen)
        for quantity, call in ((FORWARD, _forward), (BOTH, _both)):
            able = {s.name: call(s, tensors) for s in subjects if _has_memory(call(s, tensors))}
            for name, seconds in take_turns(able, cycles_ahead=CYCLES_AHEAD).items():
                found[name, quantity][seqlen] = 1e3 * seconds
        torch.cuda.empty_cache()
    series = tuple(
        Series(subject=name, quantity=quantity, unit="ms", lengths=tuple(values), values=tuple(values.values()))
        for (name, quantity), values in found.items()
    )
    return judge(series)


def judge(series: tuple[Series, ...]) -> Claim:
    """The claim, of one series a subject and quantity."""
    by_name = {(one.subject, one.quantity): one for one in series}
    ratios: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for dropping in ("", DROPPING):
        for quantity in (FORWARD, BOTH):
            ours, theirs = by_name[OURS + dropping, quantity], by_name[STANDARD + dropping, quantity]
            pairs = [(n, ours.at(n), theirs.at(n)) for n in ours.lengths]
            ratios[dropping, quantity] = [(n, b / a) for n, a, b in pairs if a is not None and b is not None]
    slower = [
        f"{quantity.removeprefix('time, ')}{dropping} at {n:,} tokens ({ratio:.2f})"
        for (dropping, quantity), listed in ratios.items()
        for n, ratio in listed
        if ratio <= 1.0
    ]
    outcome: Outcome = "does not hold" if slower else "holds"
    if not all(ratios.values()):
        outcome = "not decided"
    means = "; ".join(
        f"{quantity.removeprefix('time, ')}{dropping}: {statistics.geometric_mean(ratio for _, ratio in listed):.2f} times as "
        f"fast (geometric mean), {listed[-1][1]:.2f} at {listed[-1][0]:,} tokens"
        for (dropping, quantity), listed in ratios.items()
        if listed
    )
    return Claim(
        name="time",
        statement="Attention that never writes scores and probabilities to memory is faster than standard attention, forward "
        "and backward, with and without dropout.",
        method="Medians of CUDA-event timings, subjects in turns, launches queued ahead: time on the GPU, not what launching "
        "costs the host, which is more than that for a few thousand tokens. Decides: ours is faster at every length.",
        outcome=outcome,
        finding=f"Ours is, {means}." + (f" Not faster: {', '.join(slower)}." if slower else ""),
        series=series,
    )


def _forward(subject: Subject, tensors: tuple[torch.Tensor, ...]) -> Callable[[], object]:
    q, k, v = (x.detach() for x in tensors[:3])
    return lambda: subject.attend(q, k, v)


def _both(subject: Subject, tensors: tuple[torch.Tensor, ...]) -> Callable[[], object]:
    return lambda: forward_backward(subject, tensors)


def _has_memory(call: Callable[[], object]) -> bool:
    try:
        call()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False
    return True
