"""Time decoding on this machine's GPU: one query a sequence against a long cache, beside a copy and beside torch.

    python benchmarks/decode.py                            bfloat16, batch 8, 64 query and 8 key heads of 128, 32768 keys
    python benchmarks/decode.py --sweep                    tiles, stages and splits too
    python benchmarks/decode.py --page-size 256 --queries 4 --keys 8192

Decoding reads every key and value once and computes little, so its measure is bandwidth: bytes of K, V, q and out over the
median time, and their share of what a copy of 2 GiB reaches in the same run (which is counted as read and written). The table
is Markdown, and printed line by line. Every result is held to float64 attention on the same inputs first: a wrong one is not
timed but marked.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from flashverify_kernels import TileConfig, flash_attn_with_kvcache
from flashverify_kernels.decode_tiles import decode_tile, splits_for
from flashverify_kernels.ops_cache import cached_attention
from torch.nn.attention import SDPBackend, sdpa_kernel

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
COPIED = 2**31
"""Bytes of the tensor that is copied."""

CLEARED = 2**31
"""Bytes that are written before each call: none of its inputs are left in the cache, and the host has time to queue it."""

WARM_UPS, REPEATS = 5, 30
SWEPT = {"block_n": (32, 64, 128), "warps": (4, 8), "stages": (2, 3, 4, 5), "splits": (2, 4, 6, 8, 16, 32)}
BACKENDS = {
    "torch SDPA, default choice": None,
    "torch SDPA, cuDNN": SDPBackend.CUDNN_ATTENTION,
    "torch SDPA, flash": SDPBackend.FLASH_ATTENTION,
    "torch SDPA, efficient": SDPBackend.EFFICIENT_ATTENTION,
}


@dataclass(frozen=True)
class Problem:
    """Queries and a cache, with keys of every sequence as long as the cache."""

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    seqlens: torch.Tensor
    table: torch.Tensor | None
    causal: bool

    @property
    def scale(self) -> float:
        return self.q.shape[3] ** -0.5

    def dense(self) -> tuple[torch.Tensor, torch.Tensor]:
        """k and v (B, N, Hkv, D)."""
        if self.table is None:
            return self.k_cache, self.v_cache
        pages = self.table.long()
        return self.k_cache[pages].flatten(1, 2), self.v_cache[pages].flatten(1, 2)

    @property
    def bytes(self) -> int:
        """What has to be read and written at least."""
        return sum(x.numel() * x.element_size() for x in (self.k_cache, self.v_cache, self.q, self.q))


def problem(arguments: argparse.Namespace) -> Problem:
    """Normal inputs; pages of a paged cache in random order."""
    dtype, device = DTYPES[arguments.dtype], torch.device("cuda")
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)

    batch, keys = arguments.batch, arguments.keys
    q = draw(batch, arguments.queries, arguments.heads, arguments.head_dim)
    places, table = (batch, keys), None
    if arguments.page_size:
        if keys % arguments.page_size:
            raise SystemExit(f"--page-size: got {arguments.page_size}, accepted are divisors of --keys, {keys}")
        pages = keys // arguments.page_size
        places = (batch * pages, arguments.page_size)
        order = torch.randperm(batch * pages, generator=generator, device=device)
        table = order.to(torch.int32).reshape(batch, pages)
    k_cache, v_cache = (draw(*places, arguments.heads_kv, arguments.head_dim) for _ in range(2))
    seqlens = torch.full((batch,), keys, dtype=torch.int32, device=device)
    return Problem(q, k_cache, v_cache, seqlens, table, arguments.queries > 1)


def truth(of: Problem) -> torch.Tensor:
    """out (B, N, Hq, D) in float64, one batch entry and key head at a time."""
    k, v = of.dense()
    batch, queries, heads, head_dim = of.q.shape
    group, keys = heads // k.shape[2], k.shape[1]
    out = torch.empty((batch, queries, heads, head_dim), dtype=torch.float64, device=of.q.device)
    hidden = torch.ones((queries, keys), dtype=torch.bool, device=of.q.device).triu(keys - queries + 1)
    for b, h in itertools.product(range(batch), range(k.shape[2])):
        q = of.q[b, :, h * group : (h + 1) * group].double()
        logits = torch.einsum("ngd,kd->gnk", q, k[b, :, h].double()) * of.scale
        if of.causal:
            logits = logits.masked_fill(hidden, -torch.inf)
        out[b, :, h * group : (h + 1) * group] = torch.einsum("gnk,kd->ngd", logits.softmax(-1), v[b, :, h].double())
    return out


def median_milliseconds(call: Callable[[], object]) -> float:
    """The median time of a call on the GPU, by events, without the host's part of it."""
    clearing = torch.empty(CLEARED, dtype=torch.int8, device="cuda")
    for _ in range(WARM_UPS):
        call()
    times = []
    for _ in range(REPEATS):
        clearing.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def copy_bandwidth() -> float:
    """Bytes a second of a copy, read and written both counted."""
    source = torch.zeros(COPIED, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPIED / (median_milliseconds(lambda: target.copy_(source)) / 1e3)


@dataclass(frozen=True)
class Row:
    """One line of the table; no time: why there is none."""

    name: str
    milliseconds: float | None
    note: str = ""

    def markdown(self, of: Problem, copy: float) -> str:
        if self.milliseconds is None:
            return f"| {self.name} | - | - | - | {self.note} |"
        rate = of.bytes / (self.milliseconds / 1e3)
        return f"| {self.name} | {self.milliseconds * 1e3:.1f} | {rate / 1e9:.0f} | {100 * rate / copy:.1f} % | {self.note} |"


def allowed(of: Problem) -> float:
    """How far outputs may be from the truth to be timed, as a root mean square, and a share of that of the outputs.

    Roundings of P and of out in the dtype are alike; those of sums add up like steps of a random walk.
    """
    accumulator = torch.float64 if of.q.dtype == torch.float64 else torch.float32
    keys = of.k_cache.shape[1] * (1 if of.table is None else of.table.shape[1])
    return 2 * torch.finfo(of.q.dtype).eps + keys**0.5 * torch.finfo(accumulator).eps


def measure(name: str, of: Problem, exact: torch.Tensor, call: Callable[[], torch.Tensor]) -> Row:
    """Time a call whose result (B, N, Hq, D) is right."""
    try:
        out = call()
        torch.cuda.synchronize()
    except Exception as error:
        return Row(name, None, " ".join(str(error).split())[:120])
    distance = ((out.double() - exact).square().mean() / exact.square().mean()).sqrt().item()
    if not distance <= allowed(of):
        return Row(name, None, f"WRONG: rms error {distance:.1e} of the outputs'")
    return Row(name, median_milliseconds(call), f"rms error {distance:.1e} of the outputs'")


def ours(of: Problem, splits: int = 0) -> torch.Tensor:
    """The public function."""
    return flash_attn_with_kvcache(
        of.q, of.k_cache, of.v_cache, cache_seqlens=of.seqlens, block_table=of.table, causal=of.causal, num_splits=splits
    )


def forced(of: Problem, tile: TileConfig, splits: int) -> torch.Tensor:
    """The operator with a tile of one's own."""
    fields = [tile.block_m, tile.block_n, tile.num_warps, tile.num_stages]
    right = 0 if of.causal else None
    return cached_attention(
        of.q, of.k_cache, of.v_cache, None, None, of.seqlens, 0, 0, None, None, of.table, of.scale, None, None, right, None,
        of.causal, True, splits, "ieee", fields,
    )[0]  # fmt: skip


def torch_rows(of: Problem, exact: torch.Tensor) -> Iterator[Row]:
    """torch's attention on dense k and v, with each backend that takes them."""
    k, v = (x.transpose(1, 2) for x in of.dense())
    q = of.q.transpose(1, 2)
    mask = None
    if of.causal:
        mask = torch.ones((q.shape[2], k.shape[2]), dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])

    def attend() -> torch.Tensor:
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
        return out.transpose(1, 2)

    for name, backend in BACKENDS.items():
        with nullcontext() if backend is None else sdpa_kernel(backend):
            row = measure(name, of, exact, attend)
        yield row


def sweep(of: Problem, exact: torch.Tensor) -> Iterator[Row]:
    """Every combination of SWEPT."""
    rows_of_tile = of.q.shape[1] * of.q.shape[2] // of.k_cache.shape[2]
    chosen = decode_tile(of.q.device, of.q.dtype, of.q.shape[3], of.v_cache.shape[3], rows_of_tile, of.table is not None)
    for block_n, warps, stages, splits in itertools.product(*SWEPT.values()):
        tile = TileConfig(chosen.block_m, block_n, warps, stages)
        name = f"{block_n} keys, {warps} warps, {stages} stages, {splits} splits"
        yield measure(name, of, exact, lambda tile=tile, splits=splits: forced(of, tile, splits))


def rows_of(of: Problem, exact: torch.Tensor, chosen: str, swept: bool) -> Iterator[Row]:
    """The lines of the table: the public function, torch's, and a sweep if wanted."""
    yield measure(f"flash_attn_with_kvcache: {chosen}", of, exact, lambda: ours(of))
    for splits in (1, 4, 8, 16):
        yield measure(f"flash_attn_with_kvcache, num_splits={splits}", of, exact, lambda splits=splits: ours(of, splits))
    yield from torch_rows(of, exact)
    if swept:
        yield from sweep(of, exact)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--heads", type=int, default=64)
    parser.add_argument("--heads-kv", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--keys", type=int, default=32768)
    parser.add_argument("--queries", type=int, default=1)
    parser.add_argument("--page-size", type=int, default=0, help="keys of a page; 0: the cache has no pages")
    parser.add_argument("--sweep", action="store_true", help="tiles, stages and splits too")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no GPU: torch.cuda.is_available() is False")

    of = problem(arguments)
    exact = truth(of)
    copy = copy_bandwidth()
    group = arguments.heads // arguments.heads_kv
    rows, is_paged = arguments.queries * group, of.table is not None
    tile = decode_tile(of.q.device, of.q.dtype, arguments.head_dim, arguments.head_dim, rows, is_paged)
    row_blocks = -(-rows // tile.block_m)
    splits = splits_for(of.q.device, arguments.batch * arguments.heads_kv * row_blocks, -(-arguments.keys // tile.block_n))
    pages = f"pages of {arguments.page_size}" if arguments.page_size else "no pages"
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: {arguments.dtype}, batch {arguments.batch}, "
          f"{arguments.heads}/{arguments.heads_kv} heads of {arguments.head_dim}, {arguments.queries} queries against "
          f"{arguments.keys} keys, {pages}. A copy of {COPIED / 2**30:.0f} GiB reaches {copy / 1e9:.0f} GB/s.\n")  # fmt: skip
    print("| call | median, us | GB/s | of a copy | note |\n|---|--:|--:|--:|---|")
    with torch.no_grad():
        for row in rows_of(of, exact, f"{tile}, {splits} splits", arguments.sweep):
            print(row.markdown(of, copy), flush=True)


if __name__ == "__main__":
    main()
