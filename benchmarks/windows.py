"""Time forward passes with a sliding window beside the causal one: does the cost follow the window?

    python benchmarks/windows.py                      bfloat16, 16384 queries and keys, 16 heads of 128, windows of 256 to 8192
    python benchmarks/windows.py --window 1024 --length 32768

Medians over a few calls, by CUDA events; torch's FlashAttention, causal, stands beside. The table is Markdown.
"""

from __future__ import annotations

import argparse

import torch
from flashverify_kernels import flash_attn_func
from timing import median_ms
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--window", type=int, nargs="+", default=[256, 1024, 4096, 8192])
    asked = parser.parse_args()
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (1, asked.length, asked.heads, asked.head_dim)
    q, k, v = (torch.randn(shape, generator=generator, device="cuda").bfloat16() for _ in range(3))
    causal = median_ms(lambda: flash_attn_func(q, k, v, causal=True))
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}: bf16, forward, {asked.length} queries and keys, "
        f"{asked.heads} heads of {asked.head_dim}."
    )
    print("\n| call | median, ms | causal / this |\n|---|--:|--:|")
    print(f"| causal | {causal:.3f} | 1.00 |")
    for window in asked.window:
        size = (window - 1, 0)
        spent = median_ms(lambda size=size: flash_attn_func(q, k, v, causal=True, window_size=size))
        print(f"| causal, window of {window} keys | {spent:.3f} | {causal / spent:.2f} |")
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        across = [x.transpose(1, 2) for x in (q, k, v)]
        torchs = median_ms(lambda: scaled_dot_product_attention(*across, is_causal=True))
    print(f"| torch's FlashAttention, causal | {torchs:.3f} | {causal / torchs:.2f} |")


if __name__ == "__main__":
    main()
