"""What a cache holds before a call: appended keys, left pads and shared pages, and what they hide and make equal."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from flashverify.cases.caches import PADS, appended, cached, left_pads, page_size, shared_pages
from flashverify.cases.case import AttentionCase
from flashverify.cases.lengths import lengths
from flashverify.cases.regimes import REGIMES, draw
from flashverify.cases.sampling import Source
from flashverify.cases.semantics import visible, visible_mask
from flashverify.cases.strategies import cached_cases

CASE = AttentionCase(
    dtype="fp32", batch=5, heads_q=2, seqlen_q=3, seqlen_k=70, head_dim=16, cache="shared", left_pad=True, mask="causal"
)


@settings(deadline=None)
@given(cached_cases())
def test_ids_round_trip_and_sizes_add_up(case: AttentionCase) -> None:
    assert AttentionCase.from_id(case.id) == case
    assert {name for name in ("leftpad", "rotary") if name in case.features} == (
        ({"leftpad"} if case.left_pad else set()) | ({"rotary"} if case.rotary else set())
    )
    assert ("shared-pages" in case.features) is (case.cache == "shared")
    for before, pad, (queries, keys) in zip(cached(case), left_pads(case), lengths(case), strict=True):
        assert before + appended(case) == keys
        assert queries >= appended(case)
        assert 0 <= pad <= keys


@pytest.mark.parametrize(
    ("field", "value"), [("left_pad", True), ("rotary", "half"), ("rotary", "interleaved"), ("left_pad", 1), ("rotary", 1)]
)
def test_what_only_a_cache_has_is_refused_without_one(field: str, value: object) -> None:
    plain = AttentionCase(dtype="fp32", seqlen_q=3, seqlen_k=70, head_dim=16)
    with pytest.raises((TypeError, ValueError), match=f"{field}: got {value!r}, accepted "):
        dataclasses.replace(plain, **{field: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotary": "halves"}, "rotary: got 'halves', accepted are half, interleaved and None"),
        ({"rotary": "half", "head_dim": 15}, "rotary: got 'half', accepted with head_dim 15 is None: at least 16 columns"),
        ({"cache": "pages"}, "cache: got 'pages', accepted are contiguous, paged, shared and None"),
    ],
)
def test_other_values_are_refused_by_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CASE.replace(**changes)


def test_left_pads_come_in_every_kind_and_turn_with_the_seed() -> None:
    before, keys = 67, 70
    kinds = {0: "none", 1: "one", before: "cached", keys: "all"}
    found = [[kinds.get(pad, "between") for pad in left_pads(CASE.replace(seed=seed))] for seed in range(5)]
    assert found[0] == list(PADS)
    assert all(found[seed] == list(PADS[seed:] + PADS[:seed]) for seed in range(5))
    assert left_pads(CASE.replace(left_pad=False)) == (0,) * 5


def test_keys_before_the_pad_are_hidden_and_nothing_else_moves() -> None:
    """Alignment counts from the cache's front: a row sees what it sees without pads, but for the padded keys."""
    case = CASE.replace(window_left=40)
    entries, rows, columns = torch.arange(5)[:, None, None], torch.arange(3), torch.arange(70)
    seen = visible_mask(case, entries, rows, columns)
    without = visible_mask(case.replace(left_pad=False), entries, rows, columns)
    pads = torch.tensor(left_pads(case))[:, None, None]
    assert torch.equal(seen, without & (columns >= pads))
    assert not seen[2].any()  # all keys
    assert seen[4, 2].sum() == 3  # the appended ones
    assert not visible(case, 0, 2, left_pads(case)[0] - 1)


@settings(deadline=None)
@given(cached_cases())
def test_the_keys_that_regimes_take_for_seen_are_those(case: AttentionCase) -> None:
    first, end = Source(case).keys_seen()
    shape = (case.batch, case.seqlen_q)
    first, end = (np.broadcast_to(x[:, 0], shape) if case.batch else x[:0, 0] for x in (first, end))
    for b in range(case.batch):
        for i in range(case.seqlen_q):
            seen = [j for j in range(case.seqlen_k) if visible(case, b, i, j)]
            assert seen == list(range(first[b, i], end[b, i]))


@pytest.mark.parametrize("regime", REGIMES)
def test_regimes_draw_numbers_for_left_pads_and_shared_pages(regime: str) -> None:
    inputs = draw(CASE.replace(regime=regime))
    assert all(x.isfinite().all() for x in (inputs.q, inputs.k, inputs.v))


def test_shared_pages_hold_equal_keys_and_values_and_others_their_own() -> None:
    inputs, plain = draw(CASE), draw(CASE.replace(cache="paged"))
    size, found = page_size(CASE), shared_pages(CASE)
    copies = {(one.entry, one.page): (one.owner, one.owners_page) for one in found}
    for x, drawn in ((inputs.k, plain.k), (inputs.v, plain.v)):
        for b in range(CASE.batch):
            for page in range(-(-CASE.seqlen_k // size)):
                owner, other = copies.get((b, page), (b, page))
                rows, others = (slice(start * size, (start + 1) * size) for start in (page, other))
                assert torch.equal(x[b, :, rows], drawn[owner, :, others])


def test_shared_pages_are_whole_cached_ones_a_common_beginning_and_other_orders() -> None:
    found = shared_pages(CASE)
    assert [(one.page, one.owners_page) for one in found if one.entry == 1] == [(0, 0), (1, 1)]
    assert [(one.page, one.owners_page) for one in found if one.entry == 4] == [(0, 3), (1, 0)]
    assert {one.owner for one in found} == {0}
    assert all((one.page + 1) * page_size(CASE) <= cached(CASE)[one.entry] for one in found)
    assert shared_pages(CASE.replace(cache="paged")) == ()
    assert shared_pages(CASE.replace(seed=1)) == ()  # pages of 256


def test_a_short_owner_is_read_again_from_the_front() -> None:
    case = CASE.replace(lengths="keys", batch=4, seqlen_k=300, seqlen_q=0, seed=2)
    assert max(cached(case)) == cached(case)[shared_pages(case)[0].owner] == 300
    assert any(one.owners_page < one.page for one in shared_pages(case.replace(lengths=None, batch=12)))
