"""Matrices: named sets of cases, built axis by axis so that what each promises to cover can be read off, and is tested.

smoke     about 200 small cases: every dtype, feature, layout and regime, cheap enough for Triton's interpreter.
standard  about 1,900 cases with lengths up to 4096: every regime under every mask in every dtype, every pair of features, and
          each entry of a tile table keyed by (dtype, head size rounded up to a power of two, causal or not) over several tiles.
full      standard, and a few cases of up to 65,536 queries and keys.

A third of the cases with a backward pass have dropout, whatever else they are for (`dropout_matrices.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, product
from typing import Any

from flashverify.cases import cached as decoding
from flashverify.cases.cached_pairs import pairs_of_cached_features
from flashverify.cases.case import ALIBIS, BIASES, DTYPES, MASKS, AttentionCase
from flashverify.cases.dropout_matrices import (
    distributed_dropouts,
    in_turn,
    many_dropped_pairs,
    smoke_dropouts,
    smoke_schedules,
    standard_dropouts,
    standard_schedules,
)
from flashverify.cases.layouts import LAYOUTS
from flashverify.cases.packed_matrices import smoke_packed, standard_packed
from flashverify.cases.paired import pairs_of_features
from flashverify.cases.regimes import REGIMES

Builder = Callable[[], Iterator[AttentionCase]]

TILE_EDGES = (1, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 255, 257, 511, 512, 513, 1023, 1024, 1025)
"""Lengths at, before and after multiples of common tile sizes; the longest ones, which are dear, are `LONG`."""

LONG = (2047, 2048, 4095, 4096)

HEAD_DIMS = (1, 3, 8, 16, 17, 32, 40, 64, 72, 80, 96, 128, 160, 192, 256)

HEADS = ((1, 1), (4, 2), (6, 2), (8, 1), (3, 3))
"""(query heads, key heads): plain, grouped, grouped with 6 / 2 != 2, one key head, several of each."""

WINDOWS = ((0, None), (16, None), (31, None), (33, 0), (64, 32), (None, 15), (100, 129), (5, 7))
"""(left, right) sides of windows; a causal mask takes the left one alone."""

FEATURE_SHAPES = ((130, 130, 64), (257, 300, 128), (100, 257, 40), (300, 129, 64), (64, 200, 128))
"""(queries, keys, head size) of cases with a soft cap or with biases: more keys, and fewer, over several tiles."""

SOFTCAPS = (1.0, 15.0, 30.0, 50.0)

SCALES = (0.0, 1.0, -0.125, -1.0, 0.1, 2.0, 1e-05, 1e-30)

TWO_MASKS = ("full", "causal")


def _regimes() -> Iterator[AttentionCase]:
    """Every regime x dtype x mask, over shapes, heads and seeds that take turns."""
    shapes = (
        (129, 129, 64),
        (257, 257, 32),
        (64, 300, 128),
        (300, 64, 64),
        (127, 511, 80),
        (255, 255, 256),
        (513, 513, 16),
    )
    heads = ((1, 1), (4, 2), (2, 2), (3, 1), (2, 1))
    for index, (regime, dtype, mask) in enumerate(product(REGIMES, DTYPES, MASKS)):
        seqlen_q, seqlen_k, head_dim = shapes[index % len(shapes)]
        heads_q, heads_kv = heads[index % len(heads)]
        yield AttentionCase(
            dtype=dtype,
            heads_q=heads_q,
            heads_kv=heads_kv,
            seqlen_q=seqlen_q,
            seqlen_k=seqlen_k,
            head_dim=head_dim,
            mask=mask,
            regime=regime,
            lse_grad=index % 11 < 3,
            seed=index % 13,
        )


def _lengths() -> Iterator[AttentionCase]:
    """Every tile edge x dtype, full and causal, with the same number of queries and keys."""
    head_dims = (64, 128, 32, 16, 256)
    for index, (length, dtype, mask) in enumerate(product(TILE_EDGES, DTYPES, TWO_MASKS)):
        head_dim = head_dims[(index // 8 + index % 8) % len(head_dims)]
        yield AttentionCase(dtype=dtype, seqlen_q=length, seqlen_k=length, head_dim=head_dim, mask=mask, seed=length % 7)
    for length, dtype, mask in product(LONG, DTYPES, TWO_MASKS):
        regime = "needle" if mask == "full" else "normal"
        yield AttentionCase(dtype=dtype, seqlen_q=length, seqlen_k=length, head_dim=64, mask=mask, regime=regime)


def _cross_lengths() -> Iterator[AttentionCase]:
    """More keys than queries and fewer, x dtype x mask; in causal cases some queries then see no key."""
    pairs = (
        *((2, 64), (17, 16), (15, 65), (33, 128), (64, 63), (100, 1000), (128, 129)),
        *((255, 31), (257, 513), (512, 127), (1025, 65), (1, 4096), (4096, 1), (1024, 2048)),
    )
    for index, ((seqlen_q, seqlen_k), dtype, mask) in enumerate(product(pairs, DTYPES, MASKS)):
        heads_q, heads_kv = HEADS[index % len(HEADS)] if max(seqlen_q, seqlen_k) <= 1025 else (1, 1)
        yield AttentionCase(
            dtype=dtype,
            heads_q=heads_q,
            heads_kv=heads_kv,
            seqlen_q=seqlen_q,
            seqlen_k=seqlen_k,
            head_dim=(64, 32, 128, 40)[(index // 3 + index // 12) % 4],
            mask=mask,
            regime="copy" if index % 7 < 2 else "normal",
            lse_grad=index % 7 in {1, 4},
            seed=index % 5,
        )


def _head_dims() -> Iterator[AttentionCase]:
    """Every head size x dtype, full and causal, at lengths of several tiles."""
    for index, (head_dim, dtype, mask) in enumerate(product(HEAD_DIMS, DTYPES, TWO_MASKS)):
        regime = ("normal", "identity-values", "large")[index % 3]
        yield AttentionCase(
            dtype=dtype, seqlen_q=257, seqlen_k=300, head_dim=head_dim, mask=mask, regime=regime, seed=index % 5
        )


def _value_dims() -> Iterator[AttentionCase]:
    """Values with more and with fewer columns than keys x dtype, full and causal, several layouts."""
    sizes = ((192, 128), (64, 128), (128, 64), (40, 16), (16, 72), (96, 256))
    for index, ((head_dim, head_dim_v), dtype, mask) in enumerate(product(sizes, DTYPES, TWO_MASKS)):
        yield AttentionCase(
            dtype=dtype,
            batch=1 + index % 2,
            heads_q=(4, 2, 1)[index % 3],
            heads_kv=(2, 2, 1)[index % 3],
            seqlen_q=(130, 257, 64)[index % 3],
            seqlen_k=(257, 130, 200)[index // 3 % 3],
            head_dim=head_dim,
            head_dim_v=head_dim_v,
            mask=mask,
            regime=("normal", "identity-values", "copy", "parallel-gradient")[(index + index // 8) % 4],
            layout=("contiguous", "bnhd", "mixed", "packed-qkv")[(index // 2 + index // 8) % 4],
            lse_grad=index % 5 == 1,
            seed=index % 3,
        )


def _narrow_values() -> Iterator[AttentionCase]:
    """16-bit values so narrow that forward tiles have fewer keys, whose rows do not lie as a whole in memory."""
    for (head_dim, head_dim_v), mask, layout in product(((64, 24), (40, 16)), TWO_MASKS, ("padded", "strided-d", "mixed")):
        yield AttentionCase(
            dtype="bf16" if head_dim == 64 else "fp16",
            seqlen_q=130,
            seqlen_k=200,
            head_dim=head_dim,
            head_dim_v=head_dim_v,
            mask=mask,
            layout=layout,
            seed=1,
        )


def _heads_and_batches() -> Iterator[AttentionCase]:
    """Head ratios x batch sizes x dtype, full and causal: no two of batch, heads and lengths are equal."""
    for index, (heads, batch, dtype, mask) in enumerate(product(HEADS[1:], (1, 2, 3), DTYPES, TWO_MASKS)):
        heads_q, heads_kv = heads
        yield AttentionCase(
            dtype=dtype,
            batch=5 if batch in heads else batch,
            heads_q=heads_q,
            heads_kv=heads_kv,
            seqlen_q=70 + index % 2,
            seqlen_k=130,
            head_dim=(32, 64, 96)[index % 3],
            mask=mask,
            regime="copy" if index % 5 < 2 else "normal",
            lse_grad=index % 7 < 2,
        )


def _layouts() -> Iterator[AttentionCase]:
    """Every layout x dtype, full and causal, with grouped heads; expanded over equal values, mixed in every turn."""
    for index, (layout, dtype, mask) in enumerate(product(LAYOUTS[1:], DTYPES, TWO_MASKS)):
        case = AttentionCase(
            dtype=dtype,
            batch=2,
            heads_q=6,
            heads_kv=3,
            seqlen_q=100,
            seqlen_k=100,
            head_dim=(64, 40)[(index // 2 + index // 8) % 2],
            mask=mask,
            regime="constant-gradient" if layout == "expanded" else "normal",
            layout=layout,
        )
        yield case
        if layout == "mixed":
            yield from (case.replace(seed=seed, head_dim=40, seqlen_q=65, lse_grad=True) for seed in (1, 2, 3, 4))
        if layout in {"expanded", "packed-qkv", "padded"}:
            regime = "equal-logits" if layout == "expanded" else "normal"
            head_dim = 128 if dtype in {"fp16", "bf16"} else 32  # of which float32 and float64 compile far sooner
            yield case.replace(seqlen_k=161, head_dim=head_dim, regime=regime, lse_grad=True)


def _scales() -> Iterator[AttentionCase]:
    """Scales of either sign, zero, large and tiny x dtype, full and causal."""
    for index, (scale, dtype, mask) in enumerate(product(SCALES, DTYPES, TWO_MASKS)):
        regime = ("normal", "falling-maximum", "one-hot", "growing-maximum", "offset-values")[index % 5]
        yield AttentionCase(
            dtype=dtype, seqlen_q=130, seqlen_k=131, head_dim=64, mask=mask, regime=regime, scale=scale, heads_q=2
        )


def _windows() -> Iterator[AttentionCase]:
    """Windows x shapes x dtype, full and causal: edges of windows on, before and after those of tiles, rows that see no key."""
    shapes = ((130, 130, 64), (300, 257, 64), (64, 300, 128), (257, 40, 32), (513, 513, 64))
    for index, (window, dtype, mask) in enumerate(product(WINDOWS, DTYPES, (*TWO_MASKS, "full"))):
        seqlen_q, seqlen_k, head_dim = shapes[(index // 3 + index % 3) % len(shapes)]
        left, right = window if mask == "full" else (window[0], None)
        yield AttentionCase(
            dtype=dtype,
            heads_q=(4, 2, 1)[index % 3],
            heads_kv=(2, 1, 1)[index % 3],
            seqlen_q=seqlen_q,
            seqlen_k=seqlen_k,
            head_dim=head_dim,
            mask=mask,
            window_left=left,
            window_right=right,
            regime=("normal", "needle", "copy", "large", "normal")[index % 5],
            lse_grad=index % 4 == 1,
            seed=index % 3,
        )


def _softcaps() -> Iterator[AttentionCase]:
    """Softcaps x dtype, full, causal and with a window: logits below the cap, at it and far beyond; few negative scales."""
    windows = ((33, 0), (16, None), (None, 15), (64, 32))
    for index, (softcap, dtype, view) in enumerate(product(SOFTCAPS, DTYPES, (*TWO_MASKS, "window"))):
        # Every view meets every regime in every dtype, and at every cap.
        turn = index // 12 + index // 3 + index % 3
        seqlen_q, seqlen_k, head_dim = FEATURE_SHAPES[index % len(FEATURE_SHAPES)]
        heads_q, heads_kv = ((1, 1), (4, 2), (2, 2), (3, 1), (1, 1))[(index + index // 5) % 5]
        left, right = windows[(index // 3 + index // 6) % len(windows)] if view == "window" else (None, None)
        yield AttentionCase(
            dtype=dtype,
            heads_q=heads_q,
            heads_kv=heads_kv,
            seqlen_q=seqlen_q,
            seqlen_k=seqlen_k,
            head_dim=head_dim,
            mask="causal" if view == "causal" else "full",
            window_left=left,
            window_right=right,
            regime=("normal", "large", "copy", "key-offset")[turn % 4],
            scale=-1.0 if index % 15 == 1 else None,
            softcap=softcap,
            lse_grad=index % 7 in {1, 4},
            seed=index % 3,
        )


def _alibi() -> Iterator[AttentionCase]:
    """Linear biases x heads x dtype, full, causal and causal with a window; some under a softcap, some with one batch entry."""
    turns = product(enumerate(((4, 2), (6, 2), (3, 3))), enumerate(DTYPES), enumerate((*TWO_MASKS, "window")))
    for index, ((a, (heads_q, heads_kv)), (b, dtype), (c, view)) in enumerate(turns):
        # Every view meets both kinds of slopes, and every kind every regime, in every dtype.
        alibi = ALIBIS[(a + b + c) % len(ALIBIS)]
        seqlen_q, seqlen_k, head_dim = FEATURE_SHAPES[index % len(FEATURE_SHAPES)]
        yield AttentionCase(
            dtype=dtype,
            batch=2 if (alibi == "batch") != (index % 5 == 3) else 1,
            heads_q=heads_q,
            heads_kv=heads_kv,
            seqlen_q=seqlen_q,
            seqlen_k=seqlen_k,
            head_dim=head_dim,
            mask="full" if view == "full" else "causal",
            window_left=(33, 64, 16)[(a + b) % 3] if view == "window" else None,
            regime=("normal", "large", "copy", "zero-queries")[((3 * a + c) // 2 + b) % 4],
            softcap=15.0 if (index // 5 + index % 5) % 3 == 0 else None,
            alibi=alibi,
            lse_grad=index % 7 in {1, 4},
            seed=index % 3,
        )
    for dtype, scale in product(DTYPES, (-1.0, None)):  # a scale that is negative, and distances beyond 2^11
        plain = AttentionCase(dtype=dtype, heads_q=2, seqlen_q=130, seqlen_k=200, head_dim=64, mask="causal", alibi="heads")
        yield plain.replace(scale=scale) if scale else plain.replace(seqlen_q=2200, seqlen_k=16, mask="full")


def _biases() -> Iterator[AttentionCase]:
    """Biases and masks as tensors, with and without a sink x dtype, full, causal and with a window; some with more."""
    heads = ((4, 2), (6, 2), (3, 3), (2, 1))
    for index, ((a, bias), (b, dtype), sink) in enumerate(
        product(enumerate((*BIASES, None)), enumerate(DTYPES), (False, True))
    ):
        if bias is None and not sink:
            continue
        view = ("full", "causal", "window", "causal-topleft")[(a + b + 2 * sink) % 4]
        seqlen_q, seqlen_k, head_dim = FEATURE_SHAPES[index % len(FEATURE_SHAPES)]
        heads_q, heads_kv = heads[(index // 2 + index) % len(heads)]
        yield AttentionCase(
            dtype=dtype,
            batch=2 if index % 3 else 1,
            heads_q=heads_q,
            heads_kv=heads_kv,
            seqlen_q=seqlen_q,
            seqlen_k=seqlen_k,
            head_dim=head_dim if dtype in {"fp16", "bf16"} else min(head_dim, 64),
            head_dim_v=32 if index % 7 == 3 else None,
            mask=view if view in MASKS else "full",
            window_left=33 if view == "window" else None,
            window_right=16 if view == "window" else None,
            regime=("normal", "large", "copy", "needle")[(index + index // 4) % 4],
            layout=("contiguous", "bnhd", "padded", "contiguous")[index // 3 % 4],
            scale=-1.0 if index % 17 == 5 else None,
            softcap=15.0 if index % 5 == 2 else None,
            alibi="heads" if index % 4 == 1 and view != "causal-topleft" else None,
            bias=bias,
            sink=sink,
            lse_grad=index % 3 == 1,
            seed=index % 4,
        )
    for dtype, bias in product(("fp16", "bf16", "fp32"), ("full", None)):  # enough rows for the distribution of errors
        yield AttentionCase(
            dtype=dtype, seqlen_q=512, seqlen_k=512, head_dim=64, mask="causal", bias=bias, sink=bias is None, heads_q=2
        )


def _decoding() -> Iterator[AttentionCase]:
    """Few queries against many keys x dtype, full and causal, with grouped heads."""
    lengths = product((1, 2, 5), (1, 17, 128, 1000, 4095))
    for index, ((seqlen_q, seqlen_k), dtype, mask) in enumerate(product(lengths, DTYPES, TWO_MASKS)):
        heads_q, heads_kv = ((4, 2), (8, 1), (1, 1))[index % 3]
        turn = index + index // 8
        yield AttentionCase(
            dtype=dtype,
            batch=1 + turn % 2,
            heads_q=heads_q,
            heads_kv=heads_kv,
            seqlen_q=seqlen_q,
            seqlen_k=seqlen_k,
            head_dim=(64, 128)[turn // 2 % 2],
            mask=mask,
            regime=("normal", "needle", "copy", "sink")[turn % 4],
            layout=("contiguous", "bnhd")[turn // 4 % 2],
            seed=index % 3,
        )


def _distributions() -> Iterator[AttentionCase]:
    """Enough rows for the distribution of errors to speak: logits of several sizes, two lengths, two head sizes, two seeds."""
    shapes = product((512, 1024), (64, 128), MASKS[:2], ("normal", "normal-small", "large"), range(2))
    for dtype, (length, head_dim, mask, regime, seed) in product(("fp16", "bf16", "fp32"), shapes):
        yield AttentionCase(
            dtype=dtype, seqlen_q=length, seqlen_k=length, head_dim=head_dim, mask=mask, regime=regime, seed=seed
        )


def _empty() -> Iterator[AttentionCase]:
    """No queries, no keys, neither, or no batch x dtype x mask."""
    for (batch, seqlen_q, seqlen_k), dtype, mask in product(((1, 0, 17), (2, 17, 0), (1, 0, 0), (0, 16, 16)), DTYPES, MASKS):
        yield AttentionCase(
            dtype=dtype, batch=batch, seqlen_q=seqlen_q, seqlen_k=seqlen_k, head_dim=16, mask=mask, lse_grad=True
        )


def _very_long() -> Iterator[AttentionCase]:
    """Lengths of 8192 and more in the dtypes that are used there, full and causal."""
    for length, dtype, mask in product((8192, 16384), ("fp16", "bf16", "fp32"), TWO_MASKS):
        yield AttentionCase(
            dtype=dtype,
            heads_q=2,
            seqlen_q=length,
            seqlen_k=length,
            head_dim=64 if dtype == "fp32" else 128,
            mask=mask,
            regime="normal" if mask == "causal" else "needle",
        )
    for dtype, mask, head_dim in (("bf16", "causal", 128), ("fp16", "full", 64), ("fp32", "causal", 64)):
        yield AttentionCase(dtype=dtype, seqlen_q=65536, seqlen_k=65536, head_dim=head_dim, mask=mask)


def _smoke_regimes() -> Iterator[AttentionCase]:
    """Every regime x dtype at a few tiles of 16 or 32; masks, heads, layouts and dlse take turns."""
    lengths = ((33, 33), (17, 47), (31, 31), (47, 16), (16, 65), (1, 33), (64, 15), (15, 17))
    heads = ((1, 1), (2, 1), (1, 1), (4, 2), (1, 1))
    for index, (regime, dtype) in enumerate(product(REGIMES, DTYPES)):
        # 7 a regime is prime to all the lists below: a dtype does not meet the same entries again and again.
        turn = index + 3 * (index // len(DTYPES))
        seqlen_q, seqlen_k = lengths[turn % len(lengths)]
        heads_q, heads_kv = heads[turn % len(heads)]
        yield AttentionCase(
            dtype=dtype,
            heads_q=heads_q,
            heads_kv=heads_kv,
            seqlen_q=seqlen_q,
            seqlen_k=seqlen_k,
            head_dim=(16, 32, 64, 24, 40)[turn % 5],
            mask=MASKS[turn % len(MASKS)],
            regime=regime,
            layout=("contiguous", "bnhd", "padded", "mixed")[turn % 4] if turn % 3 == 0 else "contiguous",
            lse_grad=turn % 4 == 1,
            seed=index % 6,
        )


def _smoke_windows() -> Iterator[AttentionCase]:
    """Windows of either side and of both in every dtype, across tiles, with rows that see no key."""
    sides = ((20, None), (3, 18), (None, 5))
    for index, (dtype, (left, right)) in enumerate(product(DTYPES, sides)):
        masks = MASKS if right is None else MASKS[:1]
        seqlen_q, seqlen_k = ((47, 33), (33, 40), (20, 47))[index // len(sides) % 3]
        yield AttentionCase(
            dtype=dtype,
            seqlen_q=seqlen_q,
            seqlen_k=seqlen_k,
            head_dim=16,
            mask=masks[index // len(sides) % len(masks)],
            window_left=left,
            window_right=right,
            lse_grad=index % 2 == 0,
        )


def _smoke_softcaps() -> Iterator[AttentionCase]:
    """Softcaps in every dtype: one that bends every logit and one that models have, causal and with a window; one far above."""
    yield AttentionCase(dtype="fp32", seqlen_q=33, seqlen_k=47, head_dim=16, softcap=1e6)
    for index, dtype in enumerate(DTYPES):
        plain = AttentionCase(dtype=dtype, seqlen_q=33, seqlen_k=33, head_dim=16)
        yield plain.replace(
            mask="causal",
            regime=("normal", "large")[index // 2],
            softcap=(2.0, 30.0)[index % 2],
            lse_grad=index in {1, 2},
        )
        yield plain.replace(
            seqlen_q=(20, 47)[index // 2],
            seqlen_k=(47, 33)[index // 2],
            window_left=(20, None, 5, 18)[index],
            window_right=(None, 5, 3, 2)[index],
            regime=("large", "normal")[index // 2],
            softcap=(30.0, 2.0)[index % 2],
            lse_grad=index in {0, 3},
        )


def _smoke_alibi() -> Iterator[AttentionCase]:
    """Linear biases in every dtype: of either kind, full, causal and with a window, one under a softcap."""
    plain = AttentionCase(dtype="fp16", heads_q=4, heads_kv=2, seqlen_q=33, seqlen_k=47, head_dim=16, alibi="heads")
    yield plain
    yield plain.replace(
        dtype="bf16", batch=2, heads_q=3, heads_kv=3, seqlen_q=20, seqlen_k=33, mask="causal", regime="large", alibi="batch"
    )
    yield plain.replace(dtype="fp32", seqlen_q=47, seqlen_k=40, mask="causal", window_left=18, alibi="batch", lse_grad=True)
    yield plain.replace(dtype="fp64", heads_q=3, heads_kv=1, seqlen_q=17, seqlen_k=31, softcap=2.0, lse_grad=True)
    yield plain.replace(dtype="fp32", heads_q=2, heads_kv=1, mask="causal", scale=-1.0)


def _smoke_biases() -> Iterator[AttentionCase]:
    """Each kind of bias and the mask in every dtype, half of them with a sink; sinks alone; rows that see no key."""
    plain = AttentionCase(dtype="fp16", batch=2, heads_q=2, heads_kv=1, seqlen_q=17, seqlen_k=33, head_dim=16)
    for index, (bias, dtype) in enumerate(product(BIASES, DTYPES)):
        yield plain.replace(
            dtype=dtype,
            mask=MASKS[index % len(MASKS)],
            bias=bias,
            sink=(index + index // 4) % 2 == 1,
            softcap=2.0 if index % 5 == 4 else None,
            lse_grad=index % 3 == 0,
        )
    for index, dtype in enumerate(DTYPES):
        yield plain.replace(
            dtype=dtype,
            seqlen_q=(40, 17)[index % 2],
            mask="causal",
            sink=True,
            regime=("normal", "large")[index // 2],
            alibi="heads" if index == 3 else None,
        )


def _smoke_distributions() -> Iterator[AttentionCase]:
    """The fewest rows and features in which the distribution of errors speaks."""
    for dtype, mask in product(("fp16", "bf16", "fp32"), MASKS[:2]):
        yield AttentionCase(dtype=dtype, seqlen_q=128, seqlen_k=144, head_dim=64, mask=mask)


def _smoke_features() -> Iterator[AttentionCase]:
    """One case or two for each feature, layout, scale, head size and empty shape; the dtypes take turns."""
    dtypes = tuple(DTYPES)
    plain = AttentionCase(dtype="fp16", seqlen_q=33, seqlen_k=33, head_dim=16)
    lengths = ((0, 5), (5, 0), (1, 1), (65, 64))
    changes: tuple[dict[str, Any], ...] = (
        *({"layout": layout, "heads_q": 2, "mask": "causal", "regime": "constant-gradient"} for layout in LAYOUTS),
        *({"scale": scale, "seqlen_k": 17} for scale in (0.0, -1.0, 2.0, 1e-05)),
        *({"head_dim": head_dim, "seqlen_q": 17, "seqlen_k": 18} for head_dim in (1, 3, 8, 80, 128, 192, 256)),
        *(
            {"head_dim": d, "head_dim_v": dv, "seqlen_k": 18, "mask": "causal"}
            for d, dv in ((24, 16), (8, 40), (16, 64), (40, 3))
        ),
        *({"seqlen_q": n, "seqlen_k": m, "mask": "causal", "lse_grad": True} for n, m in lengths),
        {"batch": 0},
        {"batch": 3, "heads_q": 4, "heads_kv": 2, "seqlen_q": 17, "seqlen_k": 33, "mask": "causal", "regime": "copy"},
        {"batch": 2, "heads_q": 6, "heads_kv": 2, "seqlen_q": 17, "seqlen_k": 31, "regime": "copy"},
        {"heads_q": 4, "heads_kv": 1, "seqlen_q": 1, "seqlen_k": 65, "lse_grad": True},
    )
    for index, change in enumerate(changes):
        yield plain.replace(dtype=dtypes[index % len(dtypes)], **change)


_STANDARD = (
    _regimes,
    _lengths,
    _cross_lengths,
    _head_dims,
    _value_dims,
    _narrow_values,
    _heads_and_batches,
    _layouts,
    _scales,
    _windows,
    _softcaps,
    _alibi,
    _biases,
    standard_packed,
    standard_schedules,
    standard_dropouts,
    distributed_dropouts,
    many_dropped_pairs,
    pairs_of_features,
    pairs_of_cached_features,
    _decoding,
    decoding.standard,
    _distributions,
    _empty,
)

MATRICES: dict[str, tuple[Builder, ...]] = {
    "smoke": (
        _smoke_regimes,
        _smoke_features,
        _smoke_windows,
        _smoke_softcaps,
        _smoke_alibi,
        _smoke_biases,
        smoke_packed,
        smoke_schedules,
        smoke_dropouts,
        decoding.smoke,
        _smoke_distributions,
    ),
    "standard": _STANDARD,
    "full": (*_STANDARD, _very_long),
}
"""The builders of each matrix; their docstrings are its contents, but for dropout (`dropout_matrices.in_turn`)."""

_AS_THEY_ARE = (pairs_of_features, _very_long)
"""Builders whose cases have no dropout but their own: one has it among its features, the other is long enough as it is."""


def matrix(name: str) -> tuple[AttentionCase, ...]:
    """The cases of a matrix, always the same and in the same order, each once.

    Args:
        name: "smoke", "standard" or "full".

    Raises:
        ValueError: if there is no such matrix.
    """
    if name not in MATRICES:
        raise ValueError(f"matrix: got {name!r}, accepted are {', '.join(MATRICES)}")
    built = (builder() if builder in _AS_THEY_ARE else map(in_turn, builder()) for builder in MATRICES[name])
    return tuple({case.id: case for case in chain.from_iterable(built)}.values())
