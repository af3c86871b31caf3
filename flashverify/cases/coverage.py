"""Coverage: what a set of cases covers, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from flashverify.cases.case import AttentionCase
from flashverify.cases.semantics import limited

SEVERAL_TILES = 257
"""Queries and keys from which on a case has several tiles, and a partial one, for tile sizes up to 128."""

_FIELDS = (
    *("dtype", "mask", "regime", "layout", "batch", "seqlen_q", "seqlen_k", "head_dim", "scale", "softcap", "alibi"),
    *("bias", "sink", "lengths", "dropout"),
)
_COMBINED = ("heads", "feature", "regime x dtype x mask", "layout x dtype", "tile")


def tile_head_dim(case: AttentionCase) -> int:
    """The head size as tiles have it: rounded up to a power of two, 16 at least."""
    return max(16, 1 << (max(case.head_dim, case.value_dim) - 1).bit_length())


def coverage(cases: Iterable[AttentionCase]) -> dict[str, Counter[object]]:
    """How many cases there are for each value of each axis.

    Returns:
        Axis to value to count. Axes are dtype, mask, regime, layout, batch, heads, seqlen_q, seqlen_k, head_dim, scale,
        softcap, alibi, bias, sink, lengths, dropout, feature, and the combinations "regime x dtype x mask", "layout x dtype"
        and "tile" (dtype, head size of tiles, masked or not; cases of at least `SEVERAL_TILES` queries and keys).
    """
    counts: dict[str, Counter[object]] = {axis: Counter() for axis in (*_FIELDS, *_COMBINED)}
    for case in cases:
        for axis in _FIELDS:
            counts[axis][getattr(case, axis)] += 1
        counts["heads"][case.heads_q, case.heads_kv] += 1
        counts["feature"].update(case.features)
        counts["regime x dtype x mask"][case.regime, case.dtype, case.mask] += 1
        counts["layout x dtype"][case.layout, case.dtype] += 1
        if min(case.seqlen_q, case.seqlen_k) >= SEVERAL_TILES:
            counts["tile"][case.dtype, tile_head_dim(case), limited(case)] += 1
    return counts
