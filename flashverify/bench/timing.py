"""Timing by CUDA events: peers take turns, so that a GPU that throttles does so for all of them; medians of a few repeats."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from flashverify.bench.peers import OURS, Attention
from flashverify.bench.problems import Pass, Problem

WARM_UPS = 2
REPEATS = 7


@dataclass(frozen=True, slots=True)
class Timing:
    """What one problem took.

    Attributes:
        problem: the problem.
        direction: forward or backward.
        seconds: median by peer; a peer that does not take the problem is left out.
    """

    problem: Problem
    direction: Pass
    seconds: dict[str, float]

    def rate(self, peer: str) -> float | None:
        """TFLOP/s of a peer, or None."""
        taken = self.seconds.get(peer)
        return None if taken is None else self.problem.operations(self.direction) / taken / 1e12

    def ratio(self, peer: str, other: str) -> float | None:
        """How many times as fast as another a peer is, or None where one of them is left out."""
        taken, others = self.seconds.get(peer), self.seconds.get(other)
        return None if taken is None or others is None else others / taken


def take_turns(
    functions: Mapping[str, Callable[[], object]], repeats: int = REPEATS, cycles_ahead: int = 0
) -> dict[str, float]:
    """Median seconds of each function on the GPU; launches run ahead of it, so that they are not timed.

    Args:
        functions: what is timed, by name.
        repeats: how many times each.
        cycles_ahead: cycles that the GPU waits before each call, in which the host launches what a short function runs; 0: the
            functions before it take long enough for that.
    """
    for function in functions.values():
        for _ in range(WARM_UPS):
            function()
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in functions}
    torch.cuda.synchronize()
    for _ in range(repeats):
        for name, function in functions.items():
            start, end = _event(), _event()
            if cycles_ahead:
                torch.cuda._sleep(cycles_ahead)  # type: ignore[no-untyped-call]
            start.record()
            function()
            end.record()
            events[name].append((start, end))
    torch.cuda.synchronize()
    # The first turn of the first function finds an idle GPU, and pays for its launch.
    return {
        name: statistics.median(start.elapsed_time(end) / 1e3 for start, end in pairs[1:]) for name, pairs in events.items()
    }


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def time_problem(problem: Problem, peers: Mapping[str, Attention], directions: tuple[Pass, ...]) -> list[Timing]:
    """Time the peers that take the problem, in each direction."""
    q, k, v, dout = inputs(problem)
    with torch.no_grad():
        usable = {name: peer for name, peer in peers.items() if _takes(name, peer, q, k, v, problem.causal)}
    timings = []
    if "forward" in directions:
        with torch.no_grad():
            calls = {name: _call(peer, q, k, v, problem.causal) for name, peer in usable.items()}
            timings.append(Timing(problem, "forward", take_turns(calls)))
    if "backward" in directions:
        leaves = (q.requires_grad_(), k.requires_grad_(), v.requires_grad_())
        outs = {name: peer(q, k, v, problem.causal) for name, peer in usable.items()}
        calls = {name: _backward(out, leaves, dout) for name, out in outs.items()}
        timings.append(Timing(problem, "backward", take_turns(calls)))
    return timings


def inputs(problem: Problem) -> tuple[torch.Tensor, ...]:
    """Normal q, k, v and dO (B, H, N, D) on the GPU."""
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[problem.dtype]
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (problem.batch, problem.heads, problem.seqlen, problem.head_dim)
    return tuple(torch.randn(shape, generator=generator, device="cuda").to(dtype) for _ in range(4))


def _takes(name: str, peer: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> bool:
    """Whether a peer takes the problem; where ours does not, that is an error."""
    try:
        peer(q, k, v, causal)
        torch.cuda.synchronize()
    except (RuntimeError, NotImplementedError):
        if name.startswith(OURS):
            raise
        return False
    return True


def _call(peer: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> Callable[[], object]:
    return lambda: peer(q, k, v, causal)


def _backward(out: torch.Tensor, leaves: tuple[torch.Tensor, ...], dout: torch.Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True)
