"""The problems that are timed, and how their work is counted."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

from flashverify.cases.case import AttentionCase

Pass = Literal["forward", "backward"]

TOKENS = 16384
WIDTH = 2048
"""Batch x sequence, and heads x head size: the usual constants of such tables."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One attention problem of `TOKENS` tokens and `WIDTH` columns.

    Attributes:
        dtype: short name, "bf16" or "fp32".
        head_dim: head size.
        causal: whether the mask is causal.
        seqlen: queries and keys.
    """

    dtype: str
    head_dim: int
    causal: bool
    seqlen: int

    @property
    def batch(self) -> int:
        """Sequences."""
        return TOKENS // self.seqlen

    @property
    def heads(self) -> int:
        """Heads of queries and of keys."""
        return WIDTH // self.head_dim

    @property
    def text(self) -> str:
        """As tables show it."""
        return f"{self.dtype} D={self.head_dim} {'causal' if self.causal else 'full'} N={self.seqlen}"

    def operations(self, direction: Pass) -> float:
        """Floating-point operations by the usual convention: 4·B·H·N²·D forward, 2.5 times that backward, half if causal."""
        forward = 4.0 * self.batch * self.heads * self.seqlen**2 * self.head_dim
        return forward * (2.5 if direction == "backward" else 1.0) * (0.5 if self.causal else 1.0)


HALF = tuple(Problem("bf16", d, causal, n) for d, causal, n in product((64, 128), (False, True), (1024, 4096, 16384)))
"""The twelve shapes in bfloat16."""

SINGLE = tuple(Problem("fp32", d, causal, 2048) for d, causal in product((64, 128), (False, True)))
"""Shapes in float32, forward alone."""

Kind = tuple[str, int, str]
"""dtype, head size and mask: what chooses a kernel's code."""

LARGE_PRODUCTS = 2**26
"""Multiply-adds of QKᵀ from which on our kernels load tiles as they do in all problems here."""

CERTIFIED_SEQLEN = 1024


def kinds(kernel: str = "triton") -> dict[Kind, None]:
    """The kinds of all problems that a kernel of ours is timed on, in order: "triton:PRECISION" in float32 alone."""
    problems = (*HALF, *SINGLE) if kernel == "triton" else SINGLE
    return {(p.dtype, p.head_dim, "causal" if p.causal else "full"): None for p in problems}


def certified_cases(kernel: str = "triton") -> tuple[AttentionCase, ...]:
    """A large case of each kind, for a certificate that allows a kernel's speeds to be shown."""
    sizes = f"b1_h1x1_n{CERTIFIED_SEQLEN}x{CERTIFIED_SEQLEN}"
    described = (f"{dtype}_{sizes}_d{head_dim}_{mask}_normal_contiguous_s0" for dtype, head_dim, mask in kinds(kernel))
    return tuple(map(AttentionCase.from_id, described))


def large_kind(case: AttentionCase) -> Kind | None:
    """The kind that a case stands for, or None if it is too small for that."""
    products = case.batch * case.heads_q * case.seqlen_q * case.seqlen_k * case.head_dim
    large = products >= LARGE_PRODUCTS and "window" not in case.features
    return (case.dtype, case.head_dim, case.mask) if large else None
