"""All claims, one after another, on this machine's GPU."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from flashverify.adapters.triton import TritonKernel
from flashverify.claims import exactness, memory, sign_bit, speed, traffic
from flashverify.claims.problems import PROBLEM, Subject, as_case, subjects
from flashverify.claims.profiler import profile
from flashverify.numerics.axioms.arithmetic import Arithmetic
from flashverify.records.certificate import now
from flashverify.records.claims import Claim, Claims
from flashverify.records.environment import Environment


def measure(arithmetic: Arithmetic, on_claim: Callable[[Claim], None] = lambda claim: None) -> Claims:
    """Measure every claim.

    Args:
        arithmetic: what the device was measured to do.
        on_claim: called with each claim as it is measured.
    """
    kernel = TritonKernel(torch.device("cuda"))
    everyone = subjects(kernel)
    started, found = time.perf_counter(), []

    def keep(*claims: Claim) -> None:
        for claim in claims:
            found.append(claim)
            on_claim(claim)

    keep(memory.measure(everyone))
    keep(_bytes(kernel, everyone))
    keep(speed.measure(everyone))
    keep(exactness.measure(kernel, arithmetic), exactness.measure_errors(kernel))
    keep(sign_bit.measure_bytes(kernel), *sign_bit.measure_backward())
    return Claims(
        created=now(),
        environment=Environment.capture(False, kernel.sources),
        kernel=kernel.name,
        problem=PROBLEM,
        seconds=time.perf_counter() - started,
        claims=tuple(found),
    )


def _bytes(kernel: TritonKernel, everyone: tuple[Subject, ...]) -> Claim:
    torch.cuda.empty_cache()  # the profiled process needs memory too
    longest = traffic.LENGTHS[-1]
    plain, dropping = (kernel.blocks(as_case(longest, drops)) for drops in (False, True))
    return traffic.measure(plain, dropping, profile([subject.name for subject in everyone], traffic.LENGTHS))
