"""Claims of the sign bit: one signed tensor in place of probabilities and their mask, in memory and in registers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch

from flashverify.adapters.triton import TritonKernel
from flashverify.adapters.triton_backward import KERNELS, NO_MASK, SEPARATE, SIGNED, Backward, Resources
from flashverify.bench.timing import take_turns
from flashverify.cases.tensors import Inputs
from flashverify.claims.problems import RATE, as_case, inputs
from flashverify.records.claims import Cell, Claim, Outcome, Series, Table

LENGTHS = (512, 1024, 2048, 4096)
SEPARATE_TENSORS = "probabilities and mask"
SIGNED_TENSOR = "one signed tensor"
QUANTITY = "memory of the returned tensors"

SEQLEN, TOKENS, WIDTH = 4096, 16384, 2048
"""Of the problems whose backward pass is timed: tokens of a sequence, of all, and columns of all heads."""

REPEATS = 21

RESOURCE_COLUMNS = (
    "problem",
    "kernel",
    "registers, no dropout",
    "spills",
    "registers, signed tile",
    "spills, signed",
    "registers, separate mask",
    "spills, separate",
)


def measure_bytes(kernel: TritonKernel, lengths: Sequence[int] = LENGTHS) -> Claim:
    """Memory of the tensors that carry probabilities and mask, as allocated."""
    held: dict[str, list[float]] = {SIGNED_TENSOR: [], SEPARATE_TENSORS: []}
    for seqlen in lengths:
        q, k, v, dout = (x.detach() for x in inputs(seqlen))
        given = as_case(seqlen, dropping=True), Inputs(q=q, k=k, v=v, dout=dout, dlse=None)
        for name, values in held.items():
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            kept = kernel.signed_probabilities(*given) if name == SIGNED_TENSOR else _separately(q, k)
            values.append(float(torch.cuda.memory_allocated() - before))
            del kept
    series = tuple(
        Series(subject=name, quantity=QUANTITY, unit="bytes", lengths=tuple(lengths), values=tuple(values))
        for name, values in held.items()
    )
    return judge_bytes(series)


def judge_bytes(series: tuple[Series, ...]) -> Claim:
    """The claim, of one series for the signed tensor and one for the two."""
    by_name = {one.subject: one for one in series}
    signed, separate = by_name[SIGNED_TENSOR], by_name[SEPARATE_TENSORS]
    ratios = [a / b for a, b in zip(signed.values, separate.values, strict=True)]
    outcome: Outcome = "holds" if max(ratios) < 1.0 else "does not hold"
    return Claim(
        name="sign-bit-memory",
        statement="One tensor whose sign bits are the dropout mask takes less memory than probabilities and a mask beside "
        "them.",
        method="Bytes of torch's allocator that the tensors hold: our signed probabilities (return_attn_probs=True), and what "
        "torch.nn.functional's dropout needs for its backward pass: probabilities before dropout and a byte of mask a pair. "
        "Decides: fewer at every length.",
        outcome=outcome,
        finding=f"{ratios[-1]:.3f} times the bytes at {signed.lengths[-1]:,} tokens "
        f"({signed.values[-1] / 2**20:,.0f} against {separate.values[-1] / 2**20:,.0f} MiB).",
        series=series,
    )


def _separately(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    probabilities = torch.softmax((q * q.shape[-1] ** -0.5) @ k.mT, dim=-1)
    _, mask = torch.native_dropout(probabilities, RATE, True)
    return probabilities, mask


def measure_backward() -> tuple[Claim, Claim]:
    """Registers and time of the backward kernels, with a signed tile and with a separate mask tile."""
    resources: dict[tuple[str, str, str], Resources] = {}
    seconds: dict[str, dict[str, float]] = {}
    for head_dim, causal in product((64, 128), (False, True)):
        q, k, v, dout = (x.detach() for x in inputs(SEQLEN, WIDTH // head_dim, head_dim, TOKENS // SEQLEN))
        backward = Backward(q, k, v, dout, causal=causal, rate=RATE, seed=head_dim)
        problem = f"D={head_dim} {'causal' if causal else 'full'}"
        resources |= {(problem, *key): found for key, found in backward.resources().items()}
        seconds[problem] = take_turns(backward.calls(), REPEATS)
        torch.cuda.empty_cache()
    return judge_resources(resources), judge_time(seconds)


def judge_resources(resources: dict[tuple[str, str, str], Resources]) -> Claim:
    """The claim, of (problem, how the mask is kept, kernel) -> what it takes."""
    problems = tuple(dict.fromkeys(problem for problem, _, _ in resources))
    rows: list[tuple[Cell, ...]] = []
    fewer = more = 0
    for problem, kernel in product(problems, KERNELS):
        signed, separate, without = (resources[problem, how, kernel] for how in (SIGNED, SEPARATE, NO_MASK))
        costs = [(one.spills, one.registers) for one in (signed, separate)]
        fewer, more = fewer + (costs[0] < costs[1]), more + (costs[0] > costs[1])
        rows.append((problem, kernel, *(n for one in (without, signed, separate) for n in (one.registers, one.spills))))
    outcome: Outcome = "holds" if fewer and not more else "does not hold"
    return Claim(
        name="sign-bit-registers",
        statement="A backward kernel that keeps the mask in the sign bits of P takes fewer registers than one with a mask "
        "beside P.",
        method="Registers of a thread and spilled words of the compiled kernels (255 registers are the most there are), of "
        "one source that differs in how the mask is kept between dV and dS. Decides: fewer somewhere (spills first, then "
        "registers), and nowhere more.",
        outcome=outcome,
        finding=f"Of {len(rows)} kernels, the signed tile takes less in {fewer}, as much in {len(rows) - fewer - more}, more "
        f"in {more}.",
        table=Table(columns=RESOURCE_COLUMNS, rows=tuple(rows)),
    )


def judge_time(seconds: dict[str, dict[str, float]]) -> Claim:
    """The claim, of problem -> how the mask is kept -> median seconds of the backward pass."""
    ratios = {problem: taken[SEPARATE] / taken[SIGNED] for problem, taken in seconds.items()}
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (problem, *(round(1e3 * taken[how], 3) for how in (NO_MASK, SIGNED, SEPARATE)), round(ratios[problem], 3))
        for problem, taken in seconds.items()
    )
    faster = sum(ratio > 1.0 for ratio in ratios.values())
    outcome: Outcome = "holds" if faster == len(rows) else "does not hold"
    return Claim(
        name="sign-bit-time",
        statement="A backward pass that keeps the mask in the sign bits of P is faster than one with a mask beside P.",
        method=f"Medians of {REPEATS} CUDA-event timings in turns, bfloat16, sequences of {SEQLEN:,}, {TOKENS:,} tokens, "
        f"{WIDTH:,} columns, drop rate {RATE}. Decides: faster in every problem.",
        outcome=outcome,
        finding=f"Faster in {faster} of {len(rows)} problems: "
        + ", ".join(f"{problem} {ratio:.3f} times" for problem, ratio in ratios.items())
        + " (separate / signed).",
        table=Table(columns=("problem", "ms, no dropout", "ms, signed", "ms, separate", "separate / signed"), rows=rows),
    )
