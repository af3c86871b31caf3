"""Measure tile candidates on this machine's GPU, and print the best as entries of the tile tables.

    python benchmarks/tune_tiles.py                                   every dtype, head size and visibility
    python benchmarks/tune_tiles.py --dtype bf16 --head-dim 64 128 --kernel forward --list 5

Candidates are compiled by all cores at once, then timed one after the other. One whose results differ from the table's by more
than rounding is thrown out; what remains is only trusted once it is certified (`flashverify certify`).
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from multiprocessing import get_context

import torch
from flashverify_kernels import TileConfig, backward, delta, forward, launch
from flashverify_kernels.tiles import padded_head_dim, tiles_for

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
KERNELS = ("forward", "dkdv", "dq")
TOKENS, WIDTH = 16384, 2048
SEQLEN = {"fp16": 4096, "bf16": 4096, "fp32": 2048, "fp64": 1024}
"""Long enough for full waves; the slow formats take less."""

REPEATS = 8


@dataclass(frozen=True)
class Candidate:
    """One kernel with one tile configuration on one problem."""

    kernel: str
    dtype: str
    head_dim: int
    causal: bool
    descriptors: bool
    precision: str
    tile: TileConfig
    seqlen: int


def candidates(kernel: str, dtype: str, head_dim: int, precision: str) -> Iterator[TileConfig]:
    """Configurations worth a try: operands that fit shared memory, accumulators that fill registers but fit them.

    A program owns rows of one side (queries, or keys for dK and dV) and walks over the other. Tensor cores of compute
    capability 9.0 take 64 rows for each 4 warps.
    """
    padded, size = padded_head_dim(head_dim), DTYPES[dtype].itemsize
    tensor_cores = size == 2 or precision != "ieee"
    owned = (64, 128) if tensor_cores else ((32, 64, 128) if size == 4 else (16, 32, 64))
    walked = (32, 64, 128) if size == 2 else (16, 32, 64)
    for own, walk, warps, stages in itertools.product(owned, walked, (4, 8), (2, 3) if size == 2 else (1, 2)):
        if tensor_cores and warps > own // 16 and padded < 256:
            continue
        kept = (2 if kernel != "forward" else 1) * own * padded * size
        piped = 2 * stages * walk * padded * size
        accumulators = (2 if kernel == "dkdv" else 1) * own * padded + (2 if kernel != "forward" else 1) * own * walk
        registers = accumulators * max(4, size) // 4 / (32 * warps)
        if kept + piped <= 227 * 1024 and 24 <= registers <= 232:
            yield TileConfig(*((walk, own) if kernel == "dkdv" else (own, walk)), warps, stages)


def problem(candidate: Candidate, tokens: int) -> tuple[torch.Tensor, ...]:
    """q, k, v, dO (B, H, N, D), laid out as B,N,H,D."""
    seqlen = min(candidate.seqlen, tokens)
    heads = WIDTH // candidate.head_dim
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (tokens // seqlen, seqlen, heads, candidate.head_dim)
    return tuple(
        torch.randn(shape, generator=generator, device="cuda").to(DTYPES[candidate.dtype]).transpose(1, 2) for _ in range(4)
    )


class _Nothing:
    """Takes the place of a kernel that is not measured; delta's rows are zeroed instead of computed."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getitem__(self, grid: object):
        def launched(*arguments: object, **options: object) -> None:
            if self._name == "delta":
                arguments[4].zero_()
                arguments[5].zero_()

        return launched


@contextmanager
def only(kernel: str) -> Iterator[None]:
    """Let the backward launcher launch this kernel alone."""
    places = {"delta": delta, "dkdv": backward, "dq": backward}
    others = {name: getattr(module, f"{name}_kernel") for name, module in places.items() if name != kernel}
    for name in others:
        setattr(places[name], f"{name}_kernel", _Nothing(name))
    try:
        yield
    finally:
        for name, other in others.items():
            setattr(places[name], f"{name}_kernel", other)


def call(candidate: Candidate, tensors: tuple[torch.Tensor, ...], lse: torch.Tensor) -> list[torch.Tensor]:
    """One launch of the candidate; its outputs."""
    q, k, v, dout = tensors
    scale, offset, tile = candidate.head_dim**-0.5, 0 if candidate.causal else None, candidate.tile
    launch.DESCRIPTOR_PRODUCTS = 0 if candidate.descriptors else math.inf
    if candidate.kernel == "forward":
        return [forward.attention_forward(q, k, v, scale, offset, None, candidate.precision, tile)[0]]
    with only(candidate.kernel):
        dq, dk, dv, *_ = backward.attention_backward(
            dout, None, q, k, v, q, lse, scale, offset, None, candidate.precision, tile, tile
        )
    return [dq] if candidate.kernel == "dq" else [dk, dv]


def compile_candidate(candidate: Candidate) -> str | None:
    """Compile (into Triton's cache on disk); what went wrong, or None."""
    try:
        tensors = problem(candidate, 256)
        call(candidate, tensors, tensors[0][..., 0].to(launch.accumulator_of(tensors[0].dtype)))
        torch.cuda.synchronize()
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:90]}"
    return None


def teraflops(candidate: Candidate, seconds: float) -> float:
    """By the usual convention: 4·B·H·N²·D forward; the backward kernels' own matrix products; half if causal."""
    products = {"forward": 2, "dkdv": 4, "dq": 3}[candidate.kernel]
    count = 2 * products * TOKENS * WIDTH * candidate.seqlen
    return count / (2 if candidate.causal else 1) / seconds / 1e12


def measure(group: list[Candidate]) -> list[tuple[float, Candidate]]:
    """Candidates of one problem and their TFLOP/s, best first."""
    first = group[0]
    tensors = problem(first, TOKENS)
    q, k, v, _ = tensors
    table = tiles_for(q.device, q.dtype, first.head_dim, first.head_dim, first.causal, first.precision)
    offset = 0 if first.causal else None
    _, lse = forward.attention_forward(q, k, v, first.head_dim**-0.5, offset, None, first.precision, table.forward)
    expected = call(replace(first, tile=getattr(table, first.kernel)), tensors, lse)
    results = []
    for candidate in group:
        try:
            outputs = call(candidate, tensors, lse)
            torch.cuda.synchronize()
        except Exception as error:
            print(f"  {describe(candidate)}: {type(error).__name__}: {str(error)[:90]}", flush=True)
            continue
        if not all(alike(x, y) for x, y in zip(outputs, expected, strict=True)):
            print(f"  {describe(candidate)}: WRONG", flush=True)
            continue
        results.append((teraflops(candidate, seconds_of(lambda c=candidate: call(c, tensors, lse))), candidate))
    return sorted(results, key=lambda result: -result[0])


def alike(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether two results differ by roundings: root mean square against the format's (tf32's for float32)."""
    epsilon = max(torch.finfo(x.dtype).eps, 2.0**-10 if x.dtype == torch.float32 else 0.0)
    x, y = x.double(), y.double()
    return bool((x - y).square().mean().sqrt() <= 4 * epsilon * y.square().mean().sqrt())


def seconds_of(function) -> float:
    """Median over a few repeats, by CUDA events; launched ahead of the GPU, so that launching is not timed."""
    function()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(REPEATS)]
    for start, end in events:
        start.record()
        function()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) / 1e3 for start, end in events[1:])


def describe(candidate: Candidate) -> str:
    loads = "descriptors" if candidate.descriptors else "pointers"
    precision = f" {candidate.precision}" if candidate.dtype == "fp32" else ""
    return f"{astuple(candidate.tile)} {loads}{precision}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dtype", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--head-dim", nargs="+", type=int, default=[32, 64, 128, 256])
    parser.add_argument("--kernel", nargs="+", default=list(KERNELS), choices=KERNELS)
    parser.add_argument("--causal", nargs="+", type=int, default=[0, 1], choices=[0, 1])
    parser.add_argument("--descriptors", nargs="+", type=int, default=[1], choices=[0, 1])
    parser.add_argument("--precision", nargs="+", default=["ieee"], help="of float32 products")
    parser.add_argument("--tile", nargs="+", help="only these: block_m,block_n,warps,stages")
    parser.add_argument("--seqlen", type=int, help="instead of the default of the dtype")
    parser.add_argument("--list", type=int, default=3, help="how many to print for each problem")
    asked = parser.parse_args()
    tiles = None if asked.tile is None else [TileConfig(*map(int, tile.split(","))) for tile in asked.tile]
    groups = []
    for dtype, head_dim, kernel, causal in itertools.product(asked.dtype, asked.head_dim, asked.kernel, asked.causal):
        first = Candidate(
            kernel, dtype, head_dim, bool(causal), True, "ieee", TileConfig(64, 64), asked.seqlen or SEQLEN[dtype]
        )
        precisions = asked.precision if dtype == "fp32" else ["ieee"]
        groups.append(
            [
                replace(first, tile=tile, descriptors=bool(descriptors), precision=precision)
                for descriptors, precision in itertools.product(asked.descriptors, precisions)
                for tile in tiles or candidates(kernel, dtype, head_dim, precision)
            ]
        )
    run(groups, asked.list)


def run(groups: list[list[Candidate]], listed: int) -> None:
    """Compile all candidates in parallel, then time and print them group by group, and last the entries that they make."""
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        failed = pool.map(compile_candidate, [candidate for group in groups for candidate in group])
        usable = [[candidate for candidate in group if next(failed) is None] for group in groups]
    best: dict[tuple[str, int, bool], dict[str, TileConfig]] = {}
    for group, compiled in zip(groups, usable, strict=True):
        first = group[0]
        print(f"{first.kernel} {first.dtype} D={first.head_dim} causal={first.causal} N={first.seqlen}: "
              f"{len(compiled)} of {len(group)} compile", flush=True)  # fmt: skip
        results = measure(compiled) if compiled else []
        for rate, candidate in results[:listed]:
            print(f"  {rate:6.1f} TFLOP/s  {describe(candidate)}", flush=True)
        if results:
            key = (first.dtype, padded_head_dim(first.head_dim), first.causal)
            best.setdefault(key, {})[first.kernel] = results[0][1].tile
    for (dtype, head_dim, causal), tiles in best.items():
        if tiles.keys() == set(KERNELS):
            entry = ", ".join(str(astuple(tiles[kernel])) for kernel in KERNELS)
            print(f"{dtype}: ({head_dim}, {causal}): _tiles({entry}),")


if __name__ == "__main__":
    main()
