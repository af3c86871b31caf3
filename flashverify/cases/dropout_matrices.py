"""Dropout in matrices: a third of the cases with a backward pass drop, at rates that models have; some at edges of rates."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from flashverify.cases.case import DTYPES, AttentionCase
from flashverify.cases.digest import number

RATES = (0.1, 0.17, 0.2, 0.5, 0.9)
"""Rates as models have them, most of which float32 does not hold exactly, and one that drops most pairs."""

EDGE_RATES = (0.0, 1.0, 2.0**-33, 2.0**-32, 1 - 2.0**-20)
"""Nothing and everything; what rounds to nothing; one word of 2^32; nearly everything, with a factor of 2^20 for the rest."""

TURNS = 3
"""Every third case drops."""

SALT = 5
"""Which third: one in which the small matrix drops under every mask, bias and packing, and at every rate in every dtype."""


def in_turn(case: AttentionCase) -> AttentionCase:
    """The case, with dropout if it has a backward pass and it is its turn.

    A digest of the id decides, so that dropout is tied to no axis, and a case stays what it is when others come or go.
    """
    turn = number(f"dropout/{SALT}/{case.id}")
    if case.cache is not None or case.dropout is not None or turn % TURNS:
        return case
    return case.replace(dropout=RATES[turn // TURNS % len(RATES)])


def smoke_dropouts() -> Iterator[AttentionCase]:
    """The edges of rates, the dtypes in turn, with grouped heads and a cotangent of lse; and rows enough for distributions."""
    plain = AttentionCase(dtype="fp16", heads_q=2, seqlen_q=17, seqlen_k=33, head_dim=16, lse_grad=True)
    for index, (dtype, rate) in enumerate(zip((*DTYPES, "bf16"), EDGE_RATES, strict=True)):
        yield plain.replace(dtype=dtype, dropout=rate, mask=("causal", "full")[index % 2], seed=index)
    yield AttentionCase(dtype="bf16", seqlen_q=128, seqlen_k=144, head_dim=64, dropout=0.1)


def smoke_schedules() -> Iterator[AttentionCase]:
    """A case whose turn it is to run under other schedules (`checks/schedule.py`), longer than the interpreter's tiles."""
    yield AttentionCase(dtype="fp16", seqlen_q=40, seqlen_k=48, head_dim=16, dropout=0.3, seed=58)


def standard_schedules() -> Iterator[AttentionCase]:
    """The same, longer than a GPU's tiles, in every dtype."""
    rows = (("bf16", 64, "full", 11), ("fp16", 128, "causal", 52), ("fp32", 64, "causal", 70), ("fp64", 64, "full", 5))
    for dtype, head_dim, mask, seed in rows:
        yield AttentionCase(dtype=dtype, seqlen_q=150, seqlen_k=300, head_dim=head_dim, mask=mask, dropout=0.2, seed=seed)


def standard_dropouts() -> Iterator[AttentionCase]:
    """The edges of rates x dtype over several tiles, with grouped heads, full and causal, and a cotangent of lse."""
    shapes = ((257, 300, 64), (130, 130, 128), (64, 200, 32))
    for index, (rate, dtype) in enumerate(product(EDGE_RATES, DTYPES)):
        seqlen_q, seqlen_k, head_dim = shapes[(index + index // 4) % len(shapes)]
        yield AttentionCase(
            dtype=dtype,
            batch=1 + index % 2,
            heads_q=4,
            heads_kv=(1, 2, 4)[index % 3],
            seqlen_q=seqlen_q,
            seqlen_k=seqlen_k,
            head_dim=head_dim,
            mask=("full", "causal")[(index + index // 4) % 2],
            dropout=rate,
            lse_grad=True,
            seed=index % 7,
        )


def many_dropped_pairs() -> Iterator[AttentionCase]:
    """Masks of many tiles, rows, heads and entries, 9·10^8 bits of each of out, dq, dk and dv; one head size is padded."""
    shared = AttentionCase(
        dtype="bf16", batch=5, heads_q=16, heads_kv=16, seqlen_q=2048, seqlen_k=2048, head_dim=128, dropout=0.1
    )
    yield shared
    yield shared.replace(dtype="fp16", dropout=0.9)
    yield shared.replace(head_dim=160, heads_kv=4, seqlen_q=1900, dropout=0.17)


def distributed_dropouts() -> Iterator[AttentionCase]:
    """Rows enough for the distribution of errors to speak, in the dtypes that have one: two rates, large logits too."""
    for dtype, (rate, regime) in product(("fp16", "bf16", "fp32"), ((0.1, "normal"), (0.1, "large"), (0.5, "normal"))):
        yield AttentionCase(dtype=dtype, seqlen_q=512, seqlen_k=512, head_dim=64, regime=regime, dropout=rate)
