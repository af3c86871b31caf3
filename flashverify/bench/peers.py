"""Who is timed: ours, and what torch offers. Each is a function of q, k, v (B, H, N, D) and causal (top-left: Nq = Nk here)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from flashverify.adapters.contracts import Precision

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, bool], torch.Tensor]

OURS = "ours"
FLEX = "FlexAttention"
FLASH = "FA2"
CUDNN = "cuDNN"
EFFICIENT = "memory-efficient"
PRECISIONS: dict[str, Precision] = {"triton": "ieee", "triton:bf16x6": "bf16x6", "triton:tf32x3": "tf32x3"}
"""Our kernels that are timed, by what their float32 products are made of: each a column of its own, and a certificate."""


def half_peers(device: torch.device) -> dict[str, Attention]:
    """Peers in 16-bit formats."""
    return {
        OURS: _ours(device, "ieee"),
        FLEX: _flex,
        FLASH: functools.partial(_sdpa, SDPBackend.FLASH_ATTENTION),
        CUDNN: functools.partial(_sdpa, SDPBackend.CUDNN_ATTENTION),
    }


def single_peers(device: torch.device, kernels: Iterable[str]) -> dict[str, Attention]:
    """Peers in float32: those kernels of ours, and torch's memory-efficient one."""
    ours = {single_name(kernel): _ours(device, PRECISIONS[kernel]) for kernel in kernels}
    return {**ours, EFFICIENT: functools.partial(_sdpa, SDPBackend.EFFICIENT_ATTENTION)}


def single_name(kernel: str) -> str:
    """What tables call one of our kernels in float32."""
    return f"{OURS} {PRECISIONS[kernel]}"


def _ours(device: torch.device, precision: Precision) -> Attention:
    from flashverify.adapters.triton import TritonKernel

    return TritonKernel(device, precision=precision).attend


def _sdpa(backend: SDPBackend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(q, k, v, is_causal=causal)


def _flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    mask = _causal_blocks(q.shape[2], q.device) if causal else None
    out: torch.Tensor = _compiled_flex()(q, k, v, block_mask=mask)
    return out


@functools.cache
def _compiled_flex():  # type: ignore[no-untyped-def]
    from torch._functorch import config
    from torch.nn.attention.flex_attention import flex_attention

    config.donated_buffer = False  # a backward pass that is timed runs more than once
    return torch.compile(flex_attention, dynamic=False)


@functools.cache
def _causal_blocks(seqlen: int, device: torch.device):  # type: ignore[no-untyped-def]
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return query >= key

    return create_block_mask(visible, None, None, seqlen, seqlen, device=str(device))
