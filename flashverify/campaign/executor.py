"""The executor: spreads cases over spawned worker processes, and answers for each of them with one record.

Workers are spawned, never forked: a CUDA context does not survive a fork. A worker that dies or runs out of time costs the case
that it worked on, which becomes inconclusive; a fresh process takes its place. A worker that retires gives its case back.
"""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait

import numpy as np
import torch
from pebble import ProcessExpired, ProcessPool

from flashverify.campaign.worker import RETIRED, KernelFactory, examine, lost
from flashverify.cases.case import AttentionCase
from flashverify.numerics.axioms.arithmetic import Arithmetic
from flashverify.records.measurement import CaseRecord

MAX_RETURNS = 100
"""How often a case may be given back: more workers than that do not retire around it, so it is the case that ends them."""


Work = tuple[str, AttentionCase]
"""Name of a kernel, and a case to examine it on."""


Examine = Callable[[str, str, str, KernelFactory, tuple[str, ...], Arithmetic | None], CaseRecord]
"""What a worker process does with one piece of work; `worker.examine` is the usual one, and names its arguments."""


def _start(threads: int) -> None:
    torch.set_num_threads(threads)
    np.seterr(all="ignore")  # the interpreter computes masked and padded elements too, then drops them


def execute(
    work: Iterable[Work],
    device: str,
    factory: KernelFactory,
    checks: tuple[str, ...],
    *,
    workers: int,
    timeout: float,
    on_record: Callable[[CaseRecord], None],
    arithmetic: Arithmetic | None = None,
    task: Examine = examine,
) -> None:
    """Examine kernels on cases in worker processes and hand over each record as it comes.

    Args:
        work: kernels, as the factory knows them, and cases, in the order in which they are to start.
        device: "cuda" or "cpu".
        factory: makes a kernel in a worker.
        checks: names of the checks.
        workers: number of processes.
        timeout: seconds that one case may take.
        on_record: called once for each, in this process.
        arithmetic: what the device was measured to do, or None if it was not measured.
        task: what a worker does with each; a module-level function.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPool(max_workers=workers, context=context, initializer=_start, initargs=(1,)) as pool:
        waiting: dict[Future[CaseRecord], tuple[str, str, float]] = {}
        returns: Counter[tuple[str, str]] = Counter()

        def submit(kernel_name: str, case_id: str) -> None:
            arguments = [case_id, kernel_name, device, factory, checks, arithmetic]
            waiting[pool.schedule(task, args=arguments, timeout=timeout)] = (kernel_name, case_id, time.perf_counter())

        try:
            for kernel_name, case in work:
                submit(kernel_name, case.id)
            while waiting:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    kernel_name, case_id, started = waiting.pop(future)
                    error = future.exception()
                    if error is None:
                        on_record(future.result())
                    elif (
                        isinstance(error, ProcessExpired)
                        and error.exitcode == RETIRED
                        and returns[kernel_name, case_id] < MAX_RETURNS
                    ):
                        returns[kernel_name, case_id] += 1
                        submit(kernel_name, case_id)
                    else:
                        # since it was planned: when the worker took it up is not known
                        seconds = min(time.perf_counter() - started, timeout)
                        on_record(lost(case_id, kernel_name, _explain(error, timeout), seconds))
        except BaseException:
            pool.stop()
            raise


def _explain(error: BaseException, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return f"timeout: took more than {timeout:g} s"
    if isinstance(error, ProcessExpired):
        return f"worker died with exit code {error.exitcode}"
    return f"{type(error).__name__}: {error}"
