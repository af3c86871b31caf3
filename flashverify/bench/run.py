"""The whole measurement: compile ahead in parallel, then time problem by problem."""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor

import torch
import torch._dynamo

from flashverify.bench.peers import half_peers, single_peers
from flashverify.bench.problems import HALF, SINGLE, Pass, Problem
from flashverify.bench.timing import Timing, inputs, time_problem

BOTH: tuple[Pass, ...] = ("forward", "backward")
MOST_WORKERS = 12


def compile_ahead(kernels: Sequence[str], problems: Iterable[Problem] = (*HALF, *SINGLE)) -> None:
    """Fill the caches of Triton and of torch's compiler, one process a problem: what fails here is seen later."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(MOST_WORKERS, os.cpu_count() or 1), context) as pool:
        list(pool.map(functools.partial(_call_once, kernels), problems))


def measure(kernels: Sequence[str], on_timing: Callable[[Timing], None] = lambda timing: None) -> list[Timing]:
    """Timings of all problems: in 16 bits both directions, in float32 forward, of these kernels of ours and of the peers."""
    device = torch.device("cuda")
    plan = [(problem, half_peers(device), BOTH) for problem in HALF]
    plan += [(problem, single_peers(device, kernels), BOTH[:1]) for problem in SINGLE]
    timings: list[Timing] = []
    for problem, peers, directions in plan:
        for timing in time_problem(problem, peers, directions):
            timings.append(timing)
            on_timing(timing)
        torch._dynamo.reset()  # each problem is compiled for its own shape
    return timings


def _call_once(kernels: Sequence[str], problem: Problem) -> None:
    device = torch.device("cuda")
    q, k, v, dout = inputs(problem)
    half = problem.dtype == "bf16"
    for peer in (half_peers(device) if half else single_peers(device, kernels)).values():
        try:
            with torch.no_grad():
                peer(q, k, v, problem.causal)
            leaves = [x.detach().requires_grad_(half) for x in (q, k, v)]
            out = peer(leaves[0], leaves[1], leaves[2], problem.causal)
            if half:
                torch.autograd.grad(out, leaves, dout)
        except (RuntimeError, NotImplementedError):
            continue
