"""Claim: the memory of attention grows linearly with the length, not quadratically."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch

from flashverify.claims.problems import DROPPING, ELEMENT, HEADS, LENGTHS, OURS, STANDARD, Subject, forward_backward, inputs
from flashverify.records.claims import Claim, Outcome, Series

QUANTITY = "peak memory, forward and backward"
GRANULE = 512
"""Bytes that torch's caching allocator rounds every allocation up to (kMinBlockSize of c10/cuda/CUDACachingAllocator)."""

WHOLE_MATRICES = 2
"""Tensors of a number a pair, of scores and probabilities or of their gradients, that standard attention holds at its peak."""


def measure(subjects: Iterable[Subject], lengths: tuple[int, ...] = LENGTHS) -> Claim:
    """Peak memory of each subject at each length that the device's memory is enough for."""
    series, allocations = [], {}
    for subject in subjects:
        found: dict[int, int] = {}
        for seqlen in lengths:
            try:
                found[seqlen], allocations[subject.name, seqlen] = peak(subject, seqlen)
            except torch.OutOfMemoryError:
                break
            finally:
                torch.cuda.empty_cache()
        values = tuple(map(float, found.values()))
        series.append(Series(subject=subject.name, quantity=QUANTITY, unit="bytes", lengths=tuple(found), values=values))
    return judge(tuple(series), allocations)


def peak(subject: Subject, seqlen: int) -> tuple[int, int]:
    """Bytes that one forward and backward pass takes at most beyond its inputs, and how many allocations it makes."""
    tensors = inputs(seqlen)
    forward_backward(subject, tensors)  # what is kept from call to call (workspaces of cuBLAS) belongs to no call
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, made = torch.cuda.memory_allocated(), torch.cuda.memory_stats()["allocation.all.allocated"]
    results = forward_backward(subject, tensors)
    torch.cuda.synchronize()
    del results
    return torch.cuda.max_memory_allocated() - before, torch.cuda.memory_stats()["allocation.all.allocated"] - made


def judge(series: tuple[Series, ...], allocations: dict[tuple[str, int], int]) -> Claim:
    """The claim.

    Args:
        series: one a subject.
        allocations: (subject, length) -> how many allocations a call makes, of which each is rounded up to `GRANULE`.
    """
    faults = []
    for one in series:
        if one.subject.startswith(OURS):
            faults += [
                f"{one.subject}: {larger:,.0f} bytes at {n} tokens, {smaller:,.0f} at {m}"
                for (m, smaller), (n, larger) in _neighbours(one)
                if larger > n / m * smaller + GRANULE * allocations[one.subject, n]
            ]
        else:
            faults += [
                f"{one.subject}: {value:,.0f} bytes at {n} tokens, fewer than its matrices have"
                for n, value in zip(one.lengths, one.values, strict=True)
                if value < WHOLE_MATRICES * HEADS * n * n * ELEMENT
            ]
    by_name = {one.subject: one for one in series}
    for n, plain in zip(by_name[OURS].lengths, by_name[OURS].values, strict=True):
        dropping = by_name[OURS + DROPPING].at(n)
        if dropping is not None and dropping > plain + GRANULE * allocations[OURS + DROPPING, n]:
            faults.append(f"{OURS}: {plain:,.0f} bytes at {n} tokens, {dropping:,.0f} with dropout")
    outcome: Outcome = "does not hold" if faults else "holds"
    if {one.subject.removesuffix(DROPPING) for one in series if len(one.lengths) > 1} != {OURS, STANDARD}:
        outcome = "not decided"
    slopes = ", ".join(f"{one.subject} {one.slope:.2f}" for one in series)
    largest = ", ".join(
        f"{one.subject} {one.values[-1] / 2**20:,.0f} MiB at {one.lengths[-1]:,} tokens" for one in series if one.lengths
    )
    return Claim(
        name="memory",
        statement="The memory of attention grows linearly with the number of tokens, where that of standard attention grows "
        "quadratically; dropout adds no mask to it.",
        method="Peak of torch's allocator during one forward and backward pass, beyond its inputs. Decides: from each length "
        "to the next, ours grows by no more than the length does, and dropout adds nothing, but for the allocator's rounding "
        f"to {GRANULE} bytes; standard attention takes at least {WHOLE_MATRICES} numbers of {ELEMENT} bytes a pair. Slopes "
        "are least squares on logarithms.",
        outcome=outcome,
        finding=f"Slopes: {slopes}. {largest[:1].upper()}{largest[1:]}." + (f" {'; '.join(faults)}." if faults else ""),
        series=series,
    )


def _neighbours(series: Series) -> list[tuple[tuple[int, float], tuple[int, float]]]:
    points = list(zip(series.lengths, series.values, strict=True))
    return list(itertools.pairwise(points))
