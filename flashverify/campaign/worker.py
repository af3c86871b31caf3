"""One worker process: examines one case at a time, and always answers with a record."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Mapping

import torch

from flashverify.adapters.kernel import Kernel
from flashverify.cases.case import AttentionCase
from flashverify.checks.examination import Examination
from flashverify.checks.registry import all_checks
from flashverify.numerics.axioms.arithmetic import Arithmetic
from flashverify.records.measurement import CaseRecord, CheckResult, Verdict

RETIRED = 86
"""Exit code of a worker whose GPU context is lost: CUDA errors are sticky, so a fresh process takes over."""

KernelFactory = Callable[[str, torch.device], Kernel]

_kernels: dict[tuple[str, str], Kernel] = {}
_fault: list[str] = []


def examine(
    case_id: str,
    kernel_name: str,
    device: str,
    factory: KernelFactory,
    checks: tuple[str, ...],
    arithmetic: Arithmetic | None = None,
) -> CaseRecord:
    """Examine one case; whatever happens, a record comes back, unless the process itself dies.

    Args:
        case_id: the case.
        kernel_name: the kernel, as the factory knows it.
        device: "cuda" or "cpu".
        factory: makes the kernel; a module-level function, since it crosses to another process.
        checks: names of the checks to run.
        arithmetic: what the device was measured to do, or None if it was not measured.
    """
    if _fault:
        os._exit(RETIRED)
    case = AttentionCase.from_id(case_id)
    started = time.perf_counter()
    try:
        return examine_with(kernel_of(kernel_name, device, factory), case, checks, arithmetic)
    except Exception as error:  # a crash of any kind is a finding about one case
        if device == "cuda" and _is_sticky(error):
            _fault.append(str(error))
        return _record(
            case,
            kernel_name,
            Verdict.INCONCLUSIVE,
            reason=f"{type(error).__name__}: {_first_line(error)} ({_place(error)})",
            seconds=time.perf_counter() - started,
        )


def kernel_of(name: str, device: str, factory: KernelFactory) -> Kernel:
    """The kernel of that name on a device, made once a process."""
    key = (name, device)
    if key not in _kernels:
        _kernels[key] = factory(name, torch.device(device))
    return _kernels[key]


def examine_with(
    kernel: Kernel, case: AttentionCase, checks: tuple[str, ...], arithmetic: Arithmetic | None = None
) -> CaseRecord:
    """Run the checks of one case on a kernel, in this process.

    Raises:
        ValueError: if there is no check of one of the names.
        Exception: whatever the kernel, an oracle or a check raises.
    """
    started = time.perf_counter()
    declined = kernel.declines(case)
    if declined is not None:
        return _record(case, kernel.name, Verdict.UNSUPPORTED, reason=declined)
    on_gpu = kernel.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    examination = Examination(kernel, case, arithmetic)
    registered = all_checks()
    unknown = [name for name in checks if name not in registered]
    if unknown:
        raise ValueError(f"checks: got {', '.join(unknown)}, accepted are {', '.join(registered)}")
    results = [result for name in checks if (result := registered[name](examination)) is not None]
    timings = examination.stopwatch.seconds()
    verdict = Verdict.worst([result.verdict for result in results])
    return _record(
        case,
        kernel.name,
        verdict,
        reason=next((result.reason for result in results if result.verdict is verdict), "no check applies"),
        results=tuple(results),
        contract=examination.contract.describe(),
        configuration=kernel.configuration(case) | examination.inferred,
        seconds=time.perf_counter() - started,
        timings=timings,
        peak_bytes=torch.cuda.max_memory_allocated() if on_gpu else None,
    )


def lost(case_id: str, kernel_name: str, reason: str, seconds: float) -> CaseRecord:
    """The record of a case whose worker died or ran out of time."""
    case = AttentionCase.from_id(case_id)
    return _record(case, kernel_name, Verdict.INCONCLUSIVE, reason=reason, seconds=seconds)


def _record(
    case: AttentionCase,
    kernel_name: str,
    verdict: Verdict,
    *,
    reason: str = "",
    results: tuple[CheckResult, ...] = (),
    contract: Mapping[str, str] | None = None,
    configuration: Mapping[str, str] | None = None,
    seconds: float = 0.0,
    timings: Mapping[str, float] | None = None,
    peak_bytes: int | None = None,
) -> CaseRecord:
    return CaseRecord(
        case=case.id,
        kernel=kernel_name,
        verdict=verdict,
        reason=reason,
        dtype=case.dtype,
        features="+".join(case.features),
        regime=case.regime,
        results=results,
        contract=dict(contract or {}),
        configuration=dict(configuration or {}),
        seconds=seconds,
        timings=dict(timings or {}),
        peak_bytes=peak_bytes,
    )


def _is_sticky(error: BaseException) -> bool:
    """Whether the GPU context is lost after this error: everything CUDA says but being out of memory."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        torch.cuda.empty_cache()
        return False
    return "CUDA" in str(error) or "Triton Error" in str(error)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300]


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return "unknown place"
    frame = frames[-1]
    return f"{os.path.basename(frame.filename)}:{frame.lineno} in {frame.name}"
