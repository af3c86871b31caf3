"""Cases that decode from a cache, for the matrices: few queries against many keys, and prompts that fill the cache."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from flashverify.cases import cached_pairs
from flashverify.cases.case import DTYPES, AttentionCase

SHAPES = (
    (1, 4096, 128, None, 16, 2),
    (1, 1000, 64, None, 8, 8),
    (3, 257, 128, 64, 6, 2),
    (16, 513, 80, None, 12, 3),
    (1, 33, 256, None, 4, 1),
    (65, 300, 40, 72, 4, 2),
    (2, 1, 16, None, 2, 1),
    (130, 129, 64, None, 8, 1),
    (5, 700, 32, 24, 3, 3),
)
"""Queries, keys, head size, columns of values (None: as many), query heads, key heads."""

CACHES = ("contiguous", "paged")
"""Kinds of cache in which every sequence has keys of its own."""

FEATURES: tuple[dict[str, Any], ...] = (
    {"mask": "causal"},
    {},
    {"mask": "causal", "window_left": 40},
    {"softcap": 15.0, "mask": "causal"},
    {"alibi": "heads", "mask": "causal"},
    {"window_left": 100, "window_right": 2},
    {"alibi": "batch", "softcap": 30.0, "window_left": 129, "mask": "causal"},
    {"scale": -0.125},
    {"regime": "large", "mask": "causal"},
)


def standard() -> Iterator[AttentionCase]:
    """Every shape in both kinds of cache x dtype; features take turns, so that each meets every dtype and kind."""
    for index, (shape, cache, dtype) in enumerate(product(SHAPES, CACHES, DTYPES)):
        seqlen_q, seqlen_k, head_dim, head_dim_v, heads_q, heads_kv = shape
        feature = FEATURES[(index // 8 + index) % len(FEATURES)]
        yield AttentionCase(
            dtype=dtype,
            batch=(2, 3, 1)[index % 3],
            heads_q=heads_q,
            heads_kv=heads_kv,
            seqlen_q=seqlen_q,
            seqlen_k=seqlen_k,
            head_dim=head_dim,
            head_dim_v=head_dim_v,
            cache=cache,
            seed=index,
            **feature,
        )
    for dtype, cache in product(DTYPES, CACHES):  # enough rows for the distribution of errors to speak
        yield AttentionCase(
            dtype=dtype, batch=2, heads_q=16, heads_kv=2, seqlen_q=4, seqlen_k=1024, head_dim=64, cache=cache, seed=1
        )
    for index, (dtype, cache, seqlen_q) in enumerate(product(DTYPES, CACHES, (1, 4))):  # sequences of different lengths
        yield AttentionCase(
            dtype=dtype,
            batch=(4, 9, 2)[index % 3],
            heads_q=4,
            heads_kv=2,
            seqlen_q=seqlen_q,
            seqlen_k=(300, 1025)[index % 2],
            head_dim=(64, 128, 24)[index % 3],
            mask="causal",
            window_left=(None, 50)[index // 3 % 2],
            alibi=(None, "batch")[index // 4 % 2],
            lengths="keys",
            cache=cache,
            seed=index,
        )
    for index, (seqlen_q, seqlen_k, cache) in enumerate(product((0, 3), (0, 5), CACHES)):
        dtype = tuple(DTYPES)[index // 2]
        yield AttentionCase(dtype=dtype, seqlen_q=seqlen_q, seqlen_k=seqlen_k, head_dim=16, cache=cache, mask="causal")
    yield from cached_pairs.standard()


def smoke() -> Iterator[AttentionCase]:
    """A case or two a dtype: several parts, several pages of a tile, one page of several tiles, every feature of decoding."""
    plain = AttentionCase(dtype="fp16", batch=2, heads_q=4, heads_kv=2, seqlen_q=1, seqlen_k=100, head_dim=16, cache="paged")
    changes: tuple[dict[str, Any], ...] = (
        {"mask": "causal", "seed": 0},
        {"dtype": "bf16", "seed": 1, "seqlen_q": 3, "softcap": 15.0, "mask": "causal"},
        {"dtype": "fp32", "cache": "contiguous", "alibi": "heads", "seqlen_q": 2, "head_dim_v": 24},
        {"dtype": "fp64", "seqlen_q": 5, "window_left": 30, "alibi": "batch", "mask": "causal"},
        {
            "dtype": "bf16",
            "cache": "contiguous",
            "heads_q": 8,
            "heads_kv": 1,
            "seqlen_q": 9,
            "mask": "causal",
            "window_left": 64,
        },
        {"dtype": "fp32", "seqlen_q": 20, "seqlen_k": 17, "scale": -0.5, "regime": "large", "seed": 2},
        {"seqlen_k": 0, "cache": "contiguous"},
        {"dtype": "fp32", "batch": 5, "seqlen_k": 70, "lengths": "keys", "mask": "causal", "seed": 1},
    )
    for change in changes:
        yield plain.replace(**change)
    yield from cached_pairs.smoke()
