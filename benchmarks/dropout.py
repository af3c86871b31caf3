"""What dropout costs, forward and backward, beside torch's FlashAttention; and how fast masks are compared with the host's.

    python benchmarks/dropout.py                      the twelve shapes of `flashverify bench` in bfloat16, rate 0.1

Medians over a few calls, by CUDA events; ratios of one run. "Signed" keeps the mask of the backward pass in the sign bits of P,
"beside it" in a tile of its own. The last line times the mask of every pair of one call, read off out by identities for V and
compared with the host's prediction, which is computed on the GPU too. The tables are Markdown.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
from flashverify_kernels import flash_attn_func
from flashverify_kernels.backward import attention_backward
from flashverify_kernels.dropout import Dropout, threshold_of
from flashverify_kernels.forward import attention_forward
from flashverify_kernels.generator import state_of
from flashverify_kernels.tiles import tiles_for
from timing import median_ms
from torch.nn.attention import SDPBackend, sdpa_kernel

from flashverify.bench.problems import HALF, Problem
from flashverify.dropout.mask import Stream, keep_tensor

STREAM = Stream(seed=0x0123456789ABCDEF, offset=2**40, rate=0.1)


def state() -> torch.Tensor:
    """The generator's state of `STREAM`."""
    return state_of(STREAM.seed, STREAM.offset, torch.device("cuda"))


def ours(problem: Problem) -> dict[str, float]:
    """Milliseconds of our kernels with and without dropout."""
    shape = (problem.batch, problem.seqlen, problem.heads, problem.head_dim)
    q, k, v, dout = (torch.randn(shape, device="cuda").bfloat16().transpose(1, 2) for _ in range(4))
    found = {}
    for name, separate in (("none", None), ("signed", False), ("beside", True)):
        dropout = None if separate is None else Dropout(state(), threshold_of(STREAM.rate), separate)
        sizes = problem.head_dim, problem.head_dim
        tiles = tiles_for(q.device, q.dtype, *sizes, problem.causal, dropout=dropout is not None)
        given = problem.head_dim**-0.5, 0 if problem.causal else None, None, "ieee"
        out, lse = attention_forward(q, k, v, *given, tiles.forward, dropout=dropout)
        pair = tiles.dkdv, tiles.dq
        calls: dict[str, Callable[[], object]] = {
            f"forward {name}": lambda g=given, t=tiles, d=dropout: attention_forward(q, k, v, *g, t.forward, dropout=d),
            f"backward {name}": lambda g=given, p=pair, d=dropout, o=out, x=lse: attention_backward(
                dout, None, q, k, v, o, x, *g, *p, dropout=d
            ),
        }
        found |= {label: median_ms(call) for label, call in calls.items() if label != "forward beside"}
    return found


def torchs(problem: Problem) -> dict[str, float]:
    """Milliseconds of torch's FlashAttention with and without dropout."""
    shape = (problem.batch, problem.seqlen, problem.heads, problem.head_dim)
    leaves = [torch.randn(shape, device="cuda").bfloat16().transpose(1, 2).requires_grad_() for _ in range(3)]
    found = {}
    for name, rate in (("none", 0.0), ("dropout", STREAM.rate)):

        def call(rate: float = rate) -> torch.Tensor:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                return torch.nn.functional.scaled_dot_product_attention(*leaves, dropout_p=rate, is_causal=problem.causal)

        out = call()
        dout = torch.randn_like(out)
        found[f"forward {name}"] = median_ms(call)
        found[f"backward {name}"] = median_ms(lambda o=out, g=dout: torch.autograd.grad(o, leaves, g, retain_graph=True))
    return found


def mean_ratio(ratios: list[float]) -> float:
    """The geometric mean."""
    return math.exp(statistics.fmean(map(math.log, ratios)))


def compared(batch: int, heads: int, rows: int, columns: int) -> tuple[int, int, float]:
    """How many bits of one call's mask were compared with the host's, how many differ, and the seconds that it took."""
    head_dim = 128
    q = torch.zeros(batch, rows, heads, head_dim, device="cuda", dtype=torch.bfloat16)
    k = torch.zeros(batch, columns, heads, head_dim, device="cuda", dtype=torch.bfloat16)
    entries, places = torch.arange(batch, device="cuda"), torch.arange(rows, device="cuda")
    options = {"dropout_p": STREAM.rate, "rng_state": state()}
    flash_attn_func(q[:, :16], k, k, **options)
    differing = 0
    torch.cuda.synchronize()
    start = time.perf_counter()
    for first in range(0, columns, head_dim):
        v = torch.zeros_like(k)
        v[:, range(first, first + head_dim), :, range(head_dim)] = 1.0
        kept = flash_attn_func(q, k, v, **options).transpose(1, 2) != 0.0
        keys = torch.arange(first, first + head_dim, device="cuda")
        for head in range(heads):
            which = torch.tensor([head], device="cuda")[:, None]
            expected = keep_tensor(STREAM, heads, entries[:, None, None], which, places[:, None], keys)
            differing += int((kept[:, head] != expected).sum())
    torch.cuda.synchronize()
    return batch * heads * rows * columns, differing, time.perf_counter() - start


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="*", default=[1024, 4096, 16384])
    asked = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: bf16, drop rate {STREAM.rate}, ms and ratios.\n")
    print("| shape | forward | with dropout | x | torch's FA2 x | backward | signed | x | beside it | x | torch's FA2 x |")
    print("|---|" + "--:|" * 10)
    columns: dict[str, list[float]] = {}
    for problem in (p for p in HALF if p.seqlen in asked.lengths):
        t, other = ours(problem), torchs(problem)
        ratios = {
            "forward": t["forward signed"] / t["forward none"],
            "FA2 forward": other["forward dropout"] / other["forward none"],
            "signed": t["backward signed"] / t["backward none"],
            "beside": t["backward beside"] / t["backward none"],
            "FA2 backward": other["backward dropout"] / other["backward none"],
            "both": (t["forward signed"] + t["backward signed"]) / (t["forward none"] + t["backward none"]),
        }
        for name, ratio in ratios.items():
            columns.setdefault(name, []).append(ratio)
        print(
            f"| {problem.text} | {t['forward none']:.3f} | {t['forward signed']:.3f} | {ratios['forward']:.2f} | "
            f"{ratios['FA2 forward']:.2f} | {t['backward none']:.3f} | {t['backward signed']:.3f} | {ratios['signed']:.2f} | "
            f"{t['backward beside']:.3f} | {ratios['beside']:.2f} | {ratios['FA2 backward']:.2f} |",
            flush=True,
        )
    means = ", ".join(f"{name} {mean_ratio(ratios):.2f}" for name, ratios in columns.items())
    print(f"\nGeometric means of the ratios: {means}.")
    bits, differing, seconds = compared(8, 16, 9216, 8704)
    print(f"\nOne call's mask against the host's prediction: {bits:,} bits, {differing} differ, {seconds:.1f} s.")


if __name__ == "__main__":
    main()
