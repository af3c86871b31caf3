"""Time packed sequences of different lengths, forward and backward: does the cost follow the lengths?

    python benchmarks/varlen.py                       bfloat16, 32 heads of 128, 65,536 rows, causal

Lengths are drawn log-normally, as of documents. Beside the packed call stand the same sequences padded to the longest, one
sequence after another in calls of their own, as many rows in equally long sequences (packed, and dense), and torch's packed
FlashAttention. Medians over a few calls, by CUDA events. The table is Markdown; rates count the multiply-adds that a causal
mask leaves, two operations each, five products in the backward pass for two in the forward pass.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from flashverify_kernels import flash_attn_func, flash_attn_varlen_func
from timing import median_ms
from torch.nn.attention.varlen import varlen_attn

Call = Callable[..., torch.Tensor]


def documents(rows: int, mean: int, seed: int) -> list[int]:
    """Lengths that add up to `rows`: the exponential of a normal variable with deviation 1, about `mean` on average."""
    generator = torch.Generator().manual_seed(seed)
    lengths: list[int] = []
    while sum(lengths) < rows:
        drawn = torch.randn((), generator=generator).exp().item() * mean / 1.6487  # exp(1/2), the mean of exp(normal)
        lengths.append(max(1, min(int(drawn), rows - sum(lengths))))
    return lengths


def starts(lengths: list[int]) -> torch.Tensor:
    """Where sequences begin, and the last one ends: int32 on the GPU."""
    return torch.tensor([0, *lengths], device="cuda").cumsum(0).int()


def times(call: Call, inputs: tuple[torch.Tensor, ...]) -> tuple[float, float]:
    """Milliseconds of the forward and of the backward pass."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    forward = median_ms(lambda: call(*inputs))
    out = call(*leaves)
    cotangent = torch.randn_like(out)
    backward = median_ms(lambda: torch.autograd.grad(out, leaves, cotangent, retain_graph=True))
    return forward, backward


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=65536)
    parser.add_argument("--mean", type=int, default=2048)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--head-dim", type=int, default=128)
    asked = parser.parse_args()
    lengths = documents(asked.rows, asked.mean, seed=0)
    equal = [asked.mean] * (asked.rows // asked.mean)
    shape = (asked.rows, asked.heads, asked.head_dim)
    packed = tuple(torch.randn(shape, device="cuda").bfloat16() for _ in range(3))
    longest, where, even = max(lengths), starts(lengths), starts(equal)

    def padded(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.nn.functional.pad(part, (0, 0, 0, 0, 0, longest - len(part))) for part in x.split(lengths)])

    def one_by_one(*tensors: torch.Tensor) -> torch.Tensor:
        parts = zip(*(x.split(lengths) for x in tensors), strict=True)
        return torch.cat([flash_attn_func(*(x[None] for x in part), causal=True)[0] for part in parts])

    def ours(begin: torch.Tensor, most: int) -> Call:
        return lambda *tensors: flash_attn_varlen_func(*tensors, begin, begin, most, most, causal=True)

    def torchs(begin: torch.Tensor, most: int) -> Call:
        return lambda *tensors: varlen_attn(*tensors, begin, begin, most, most, window_size=(-1, 0))

    dense = tuple(x.view(len(equal), asked.mean, *x.shape[1:]) for x in packed)
    calls = (
        ("packed", ours(where, longest), packed, lengths),
        ("padded to the longest", lambda *x: flash_attn_func(*x, causal=True), tuple(padded(x) for x in packed), lengths),
        ("one call a sequence", one_by_one, packed, lengths),
        ("torch's packed FlashAttention", torchs(where, longest), packed, lengths),
        ("equal lengths, packed", ours(even, asked.mean), packed, equal),
        ("equal lengths, dense", lambda *x: flash_attn_func(*x, causal=True), dense, equal),
        ("equal lengths, torch's packed FlashAttention", torchs(even, asked.mean), packed, equal),
    )
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}: bf16, causal, {asked.rows} rows, {asked.heads} heads of "
        f"{asked.head_dim}; {len(lengths)} sequences of 1 to {longest} rows, or {len(equal)} of {asked.mean}."
    )
    print("\n| call | forward, ms | TFLOP/s | backward, ms | TFLOP/s |\n|---|--:|--:|--:|--:|")
    for name, call, inputs, of in calls:
        forward, backward = times(call, inputs)
        pairs = sum(n * (n + 1) / 2 for n in of) * asked.heads * asked.head_dim
        print(f"| {name} | {forward:.3f} | {4e-9 * pairs / forward:.0f} | {backward:.3f} | {1e-8 * pairs / backward:.0f} |")


if __name__ == "__main__":
    main()
