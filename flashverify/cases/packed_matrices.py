"""The parts of matrices with packed sequences of different lengths (`lengths.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from flashverify.cases.case import ALIBIS, DTYPES, LENGTHS, AttentionCase

EDGES = ((1, 1), (15, 17), (16, 16), (63, 65), (64, 64), (127, 130), (128, 129), (200, 257), (257, 200))
"""Longest (queries, keys): on, before and after the edges of tiles, and several tiles."""

HEAD_DIMS = (16, 64, 128, 256, 40, 32, 192, 80, 96)
"""As many as there are pairs of lengths: in each dtype every pair and every head size come once."""

VIEWS = ("full", "causal", "window", "causal-window")


def smoke_packed() -> Iterator[AttentionCase]:
    """Both packings in every dtype, two cases each: masks, windows, caps, linear biases, sinks, dlse, head ratios, Dv."""
    plain = AttentionCase(dtype="fp64", batch=4, seqlen_q=33, seqlen_k=33, head_dim=16, lengths="ragged")
    causal = plain.replace(mask="causal", lengths="used")
    yield plain
    yield causal.replace(dtype="fp16", batch=5, heads_q=2, seqlen_q=17, seqlen_k=40, lse_grad=True)
    yield causal.replace(dtype="bf16", batch=8, seqlen_q=20, head_dim_v=24, regime="copy", lengths="ragged", seed=1)
    yield plain.replace(dtype="fp32", batch=8, seqlen_k=20, window_left=7, window_right=3, lengths="used", seed=2)
    yield causal.replace(heads_q=3, alibi="heads", window_left=9, lse_grad=True, seed=3)
    yield plain.replace(dtype="fp16", batch=6, heads_q=4, heads_kv=2, seqlen_q=20, softcap=2.0, alibi="batch", seed=2)
    yield causal.replace(dtype="bf16", batch=5, seqlen_k=17, sink=True, lse_grad=True, seed=1)
    yield plain.replace(dtype="fp32", heads_q=2, seqlen_q=17, window_right=2, softcap=2.0, sink=True, regime="large")


def standard_packed() -> Iterator[AttentionCase]:
    """Every pair of lengths at the edges of tiles x dtype, in batches of 4 to 9, all features in turn; and large ones.

    These are a long sequence among short ones, 300 short ones, and enough rows for the distribution of errors.
    """
    for (a, (seqlen_q, seqlen_k)), (b, dtype) in product(enumerate(EDGES), enumerate(DTYPES)):
        turn = 2 * a + b  # moves on with either, so that no feature meets one dtype, or one pair of lengths, alone
        view = VIEWS[(a + b) % len(VIEWS)]
        heads_q, heads_kv = ((1, 1), (4, 2), (3, 1), (2, 2), (6, 2))[turn % 5]
        yield AttentionCase(
            dtype=dtype,
            batch=4 + (a + b) % 6,
            heads_q=heads_q,
            heads_kv=heads_kv,
            seqlen_q=seqlen_q,
            seqlen_k=seqlen_k,
            head_dim=HEAD_DIMS[(a + 2 * b) % len(HEAD_DIMS)],
            head_dim_v=48 if turn % 7 == 3 else None,
            mask="causal" if "causal" in view else "full",
            window_left=33 if "window" in view else None,
            window_right=16 if view == "window" else None,
            regime=("normal", "copy", "large", "normal", "growing-maximum")[(a + 2 * b) % 5],
            scale=-1.0 if turn % 11 == 4 else None,
            softcap=15.0 if turn % 5 == 2 else None,
            alibi=(*ALIBIS, None, None)[(a + 3 * b + a // 4) % 4],
            sink=turn % 3 == 1,
            lengths=LENGTHS[(a + b + a // 4) % 2],
            lse_grad=turn % 4 in {1, 2},
            seed=(a + b) % 4,
        )
    large = AttentionCase(dtype="bf16", batch=4, seqlen_q=2000, seqlen_k=2000, head_dim=64, lengths="ragged")
    yield large.replace(mask="causal")
    yield large.replace(dtype="fp16", batch=300, heads_q=2, seqlen_q=24, seqlen_k=24, mask="causal", lengths="used")
    for index, (dtype, lengths) in enumerate(product(("fp16", "bf16", "fp32"), LENGTHS)):
        mask = ("full", "causal")[index // 2 % 2]
        yield large.replace(dtype=dtype, batch=6, seqlen_q=512, seqlen_k=512, mask=mask, lengths=lengths, seed=index)
