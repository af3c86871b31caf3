"""Hypothesis strategies: cases whose shapes, features, regime, layout and seed are drawn, and shrink to plain ones.

Tensors are not drawn: they follow from the case (`regimes.draw`), so that its id is all that an example needs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hypothesis import strategies as st

from flashverify.cases.case import (
    ALIBIS,
    BIASES,
    CACHES,
    DTYPES,
    MASKS,
    MAX_HEAD_DIM,
    ROTARIES,
    SMALLEST_ROTARY,
    SOFTCAP_RANGE,
    AttentionCase,
)
from flashverify.cases.layouts import LAYOUTS
from flashverify.cases.lengths import PACKINGS
from flashverify.cases.matrices import HEAD_DIMS, TILE_EDGES
from flashverify.cases.regimes import REGIMES

DROPOUTS = (None, None, None, 0.1, 0.5, 0.17, 0.2, 0.9, 0.0, 1.0, 2.0**-32, 2.0**-33, 1 - 2.0**-20)
"""Rates of dropout, mostly none: as models have them, nothing or everything dropped, and nearly so."""

HEADS = ((1, 1), (2, 2), (2, 1), (4, 2), (6, 2), (8, 1), (3, 3))


def scales() -> st.SearchStrategy[float | None]:
    """Softmax scales: mostly the default, or one whose logits are of an ordinary size; of either sign, or zero."""
    ordinary = st.floats(min_value=-4.0, max_value=4.0, allow_subnormal=False)
    return st.one_of(st.none(), st.none(), st.sampled_from((1.0, 0.0, -0.125)), ordinary)


def any_scales() -> st.SearchStrategy[float | None]:
    """Every scale that a case can have: any finite float64, subnormals and -0.0 included, and None."""
    largest = sys.float_info.max
    return st.one_of(st.none(), st.floats(min_value=-largest, max_value=largest, allow_subnormal=True))


def softcaps() -> st.SearchStrategy[float | None]:
    """Caps of logits: mostly none, or one as models have it, or one small enough to bend every logit."""
    return st.one_of(st.none(), st.none(), st.none(), st.sampled_from((30.0, 50.0, 15.0, 2.0, 0.5)))


def any_softcaps() -> st.SearchStrategy[float | None]:
    """Every softcap that a case can have, and None."""
    smallest, largest = SOFTCAP_RANGE
    return st.one_of(st.none(), st.floats(min_value=smallest, max_value=largest))


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    max_elements: int = 2**16,
    dtypes: Sequence[str] = tuple(DTYPES),
    regimes: Sequence[str] = tuple(REGIMES),
    layouts: Sequence[str] = tuple(LAYOUTS),
    scales: st.SearchStrategy[float | None] = scales(),  # noqa: B008 (strategies are immutable)
    softcaps: st.SearchStrategy[float | None] = softcaps(),  # noqa: B008
    dropouts: Sequence[float | None] = DROPOUTS,
) -> AttentionCase:
    """Cases of a bounded size.

    Args:
        draw: given by hypothesis.
        max_elements: largest size of the score tensor (batch, heads_q, seqlen_q, seqlen_k) and of each input.
        dtypes: short names that the dtype is drawn from; the first is the one to shrink to. So with the next two.
        regimes: names of regimes.
        layouts: names of layouts.
        scales: strategy of the softmax scale.
        softcaps: strategy of the cap of logits.
        dropouts: rates of dropout.
    """
    if max_elements < 1:
        raise ValueError(f"max_elements: got {max_elements}, accepted are integers >= 1")
    left = max_elements
    heads_q, heads_kv = draw(st.sampled_from([heads for heads in HEADS if heads[0] <= left]))
    left //= heads_q
    batch = draw(st.sampled_from([batch for batch in (1, 2, 3, 0, 5) if batch <= left]))
    left //= max(batch, 1)
    head_dim = draw(_sizes(1, min(MAX_HEAD_DIM, left), HEAD_DIMS))
    head_dim_v = draw(st.one_of(st.none(), _sizes(1, min(MAX_HEAD_DIM, left), HEAD_DIMS)))
    # The longer of the two sequences may not exceed left / head size, nor their product left.
    longest = left // max(head_dim, head_dim_v or 0)
    seqlen_q = draw(_sizes(0, longest, TILE_EDGES))
    seqlen_k = draw(_sizes(0, min(longest, left // max(seqlen_q, 1)), TILE_EDGES))
    mask = draw(st.sampled_from(MASKS))
    sides = st.one_of(st.none(), st.integers(0, 4), st.integers(0, 2 * longest))
    window_left, window_right = draw(sides), draw(sides)
    alibi = draw(st.sampled_from((None, None, None, *ALIBIS)))
    layout, bias = draw(st.sampled_from(layouts)), draw(st.sampled_from((None, None, None, *BIASES)))
    lengths = draw(st.sampled_from((None, None, None, *PACKINGS)))
    if mask == "causal-topleft":
        lengths = None
    if lengths is not None:
        layout, bias = "contiguous", None
    return AttentionCase(
        dtype=draw(st.sampled_from(dtypes)),
        batch=batch,
        heads_q=heads_q,
        heads_kv=heads_kv,
        seqlen_q=seqlen_q,
        seqlen_k=seqlen_k,
        head_dim=head_dim,
        head_dim_v=head_dim_v,
        mask=mask,
        window_left=window_left,
        window_right=window_right if mask == "full" else None,
        regime=draw(st.sampled_from(regimes)),
        layout=layout,
        scale=draw(scales),
        softcap=draw(softcaps),
        alibi=None if mask == "causal-topleft" else alibi,
        bias=bias,
        sink=draw(st.sampled_from((False, False, True))),
        lengths=lengths,
        dropout=draw(st.sampled_from(dropouts)),
        lse_grad=draw(st.booleans()),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@st.composite
def cached_cases(draw: st.DrawFn, *, dtypes: Sequence[str] = tuple(DTYPES)) -> AttentionCase:
    """Small cases that decode from a cache of any kind, with left pads, rotary embedding, lengths, windows and biases.

    Args:
        draw: given by hypothesis.
        dtypes: short names that the dtype is drawn from.
    """
    mask = draw(st.sampled_from(("full", "causal")))
    sides = st.one_of(st.none(), st.integers(0, 12))
    rotary = draw(st.sampled_from((None, *ROTARIES)))
    return AttentionCase(
        dtype=draw(st.sampled_from(dtypes)),
        batch=draw(st.integers(0, 6)),
        heads_q=draw(st.integers(1, 2)),
        seqlen_q=draw(st.integers(0, 4)),
        seqlen_k=draw(st.integers(0, 40)),
        head_dim=draw(st.integers(SMALLEST_ROTARY if rotary else 1, 40)),
        mask=mask,
        window_left=draw(sides),
        window_right=draw(sides) if mask == "full" else None,
        softcap=draw(softcaps()),
        alibi=draw(st.sampled_from((None, None, *ALIBIS))),
        lengths=draw(st.sampled_from((None, "keys"))),
        cache=draw(st.sampled_from(CACHES)),
        left_pad=draw(st.booleans()),
        rotary=rotary,
        seed=draw(st.integers(0, 40)),
    )


def _sizes(smallest: int, largest: int, edges: Sequence[int]) -> st.SearchStrategy[int]:
    """Integers of a range, small ones and those at tile edges more often than others."""
    near = [edge for edge in edges if smallest <= edge <= largest]
    anywhere = st.integers(smallest, largest)
    return st.one_of(st.integers(smallest, min(largest, 8)), st.sampled_from(near), anywhere) if near else anywhere
