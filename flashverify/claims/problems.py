"""The problems that claims are measured on, and who is measured: standard attention as textbooks write it, and our kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from flashverify.adapters.triton import TritonKernel
from flashverify.cases.case import AttentionCase

HEADS = 16
HEAD_DIM = 64
ELEMENT = 2
"""Bytes of a bfloat16."""

RATE = 0.1
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
PROBLEM = f"1 sequence, {HEADS} heads of {HEAD_DIM} columns, bfloat16, full mask, drop rate {RATE} where pairs are dropped"

STANDARD, OURS = "standard", "ours"
DROPPING = " + dropout"
"""What is behind a subject's name where it drops pairs."""

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Subject:
    """Who is measured.

    Attributes:
        name: as series have it.
        attend: out (B, H, N, D) of q, k and v, differentiable.
        dropping: whether it drops pairs.
    """

    name: str
    attend: Attention
    dropping: bool


def standard_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rate: float = 0.0) -> torch.Tensor:
    """Standard attention (FlashAttention's algorithm 0): scores and probabilities are written to memory as a whole.

    Scores are stored in the inputs' dtype, the softmax computes in float32. The scale goes to q, the smaller factor.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    probabilities = torch.softmax(scores, dim=-1)
    del scores
    if rate:
        probabilities = torch.nn.functional.dropout(probabilities, rate)
    return probabilities @ v


def subjects(kernel: TritonKernel) -> tuple[Subject, ...]:
    """Standard attention and ours, without and with dropout."""
    return (
        Subject(STANDARD, standard_attention, dropping=False),
        Subject(OURS, lambda q, k, v: kernel.attend(q, k, v, causal=False), dropping=False),
        Subject(STANDARD + DROPPING, lambda q, k, v: standard_attention(q, k, v, RATE), dropping=True),
        Subject(OURS + DROPPING, lambda q, k, v: kernel.attend(q, k, v, causal=False, dropout_p=RATE), dropping=True),
    )


def as_case(seqlen: int, dropping: bool) -> AttentionCase:
    """The problem of so many tokens as a case."""
    return AttentionCase(
        dtype="bf16",
        heads_q=HEADS,
        heads_kv=HEADS,
        seqlen_q=seqlen,
        seqlen_k=seqlen,
        head_dim=HEAD_DIM,
        dropout=RATE if dropping else None,
    )


def inputs(seqlen: int, heads: int = HEADS, head_dim: int = HEAD_DIM, batch: int = 1) -> tuple[torch.Tensor, ...]:
    """Normal q, k, v, which have gradients, and dO, (B, H, N, D) in bfloat16 on the GPU."""
    generator = torch.Generator("cuda").manual_seed(seqlen)
    shape = (batch, heads, seqlen, head_dim)
    q, k, v, dout = (torch.randn(shape, generator=generator, device="cuda").bfloat16() for _ in range(4))
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), dout


def forward_backward(subject: Subject, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Out and the gradients of q, k and v."""
    q, k, v, dout = tensors
    out = subject.attend(q, k, v)
    return out, *torch.autograd.grad(out, (q, k, v), dout)
