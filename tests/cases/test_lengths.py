"""Lengths of sequences: what they are, what they hide, and how sequences are packed."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashverify.cases.case import LENGTHS, AttentionCase
from flashverify.cases.lengths import TAIL, lengths, lengths_of, packing
from flashverify.cases.regimes import REGIMES, draw
from flashverify.cases.semantics import (
    alibi_bias,
    alibi_scalar,
    alibi_slope_tensor,
    causal_offset,
    exists,
    first_offset,
    limited,
    visible,
    visible_mask,
)

PACKED = AttentionCase(dtype="fp32", batch=8, seqlen_q=6, seqlen_k=9, head_dim=2, lengths="ragged")


@st.composite
def packed_cases(draw: st.DrawFn) -> AttentionCase:
    """Cases with lengths: small ones, with windows and linear biases."""
    mask = draw(st.sampled_from(("full", "causal")))
    side = st.one_of(st.none(), st.integers(0, 12))
    return AttentionCase(
        dtype="fp32",
        batch=draw(st.integers(0, 9)),
        heads_q=draw(st.integers(1, 3)),
        seqlen_q=draw(st.integers(0, 6)),
        seqlen_k=draw(st.integers(0, 6)),
        head_dim=1,
        mask=mask,
        window_left=draw(side),
        window_right=draw(side) if mask == "full" else None,
        alibi=draw(st.sampled_from((None, "heads", "batch"))),
        lengths=draw(st.sampled_from(LENGTHS)),
        seed=draw(st.integers(0, 20)),
    )


@settings(deadline=None)
@given(packed_cases())
def test_lengths_are_within_the_case(case: AttentionCase) -> None:
    found = lengths(case)
    assert len(found) == case.batch
    assert all(0 <= queries <= case.seqlen_q and 0 <= keys <= case.seqlen_k for queries, keys in found)
    assert [lengths_of(case, b) for b in range(case.batch)] == list(found)
    assert lengths(case.replace(lengths=None)) == ((case.seqlen_q, case.seqlen_k),) * case.batch
    assert lengths(case.replace(dtype="fp64", mask="full", window_right=None)) == found


@settings(deadline=None)
@given(packed_cases())
def test_scalar_and_vectorised_rules_agree_and_are_those_of_each_sequence_alone(case: AttentionCase) -> None:
    entries, rows, columns = torch.arange(case.batch), torch.arange(case.seqlen_q), torch.arange(case.seqlen_k)
    mask = visible_mask(case, entries[:, None, None], rows, columns)
    slopes = alibi_slope_tensor(case)[..., None, None]
    bias = alibi_bias(case, entries[:, None, None, None], slopes, rows, columns)
    assert mask.shape == (case.batch, case.seqlen_q, case.seqlen_k)
    real = exists(case, entries[:, None, None], rows)
    assert real is not None
    for b, (queries, keys) in enumerate(lengths(case)):
        assert real[b, :, 0].tolist() == [i < queries for i in range(case.seqlen_q)]
        assert torch.equal(visible_mask(case, entries[b], rows, columns), mask[b])
        # The windows of the whole case: a side that reaches every key of the longest sequence reaches those of all.
        alone = case.replace(batch=1, lengths=None, seqlen_q=queries, seqlen_k=keys)
        for i in range(case.seqlen_q):
            for j in range(case.seqlen_k):
                inside = i < queries and j < keys
                assert bool(mask[b, i, j]) == visible(case, b, i, j) == (inside and visible(alone, 0, i, j))
                for h in range(case.heads_q):
                    assert bias[b, h, i, j] == alibi_scalar(case, b, h, i, j)
                    own = -slopes[b, h, 0, 0] * abs(i + keys - queries - j)
                    assert bias[b, h, i, j] == own


def test_offsets_are_those_of_the_entry() -> None:
    case = PACKED.replace(mask="causal", window_left=2)
    for b, (queries, keys) in enumerate(lengths(case)):
        assert causal_offset(case, b) == keys - queries
        assert first_offset(case, b) == keys - queries - 2
    assert limited(case)
    assert not limited(PACKED)


def test_a_side_that_reaches_every_key_of_the_longest_sequences_is_no_limit() -> None:
    rows, columns, entries = torch.arange(6), torch.arange(9), torch.arange(8)[:, None, None]
    wide = PACKED.replace(window_left=15, window_right=2**70)
    assert not limited(wide)
    assert torch.equal(visible_mask(wide, entries, rows, columns), visible_mask(PACKED, entries, rows, columns))


def test_the_cycle() -> None:
    found = lengths(PACKED.replace(batch=16, seqlen_q=600, seqlen_k=900))
    kinds = [tuple({900: "whole", 600: "whole", 1: "one", 0: "none"}.get(n, "between") for n in pair) for pair in found]
    assert kinds[:4] == [(kind, kind) for kind in ("whole", "between", "one", "none")]
    assert kinds[4:8] == [("whole", "between"), ("between", "one"), ("one", "none"), ("none", "whole")]
    assert len(set(kinds)) == 16


def test_queries_and_keys_of_a_square_case_are_alike_in_the_first_four_entries() -> None:
    assert all(queries == keys for queries, keys in lengths(PACKED.replace(batch=4, seqlen_q=50, seqlen_k=50)))


@pytest.mark.parametrize("side", [0, 1])
def test_every_seed_moves_the_empty_sequence_on(side: int) -> None:
    places = [[pair[side] for pair in lengths(PACKED.replace(batch=4, seed=seed))].index(0) for seed in range(4)]
    assert sorted(places) == [0, 1, 2, 3]


def test_lengths_between_follow_the_seed() -> None:
    case = PACKED.replace(batch=2, seqlen_q=1000, seqlen_k=1000)
    found = {lengths(case.replace(seed=4 * seed))[1] for seed in range(20)}
    assert len(found) >= 15
    assert all(1 <= queries <= 999 for queries, _ in found)


@pytest.mark.parametrize(("longest", "expected"), [(0, {0}), (1, {0, 1}), (2, {0, 1, 2})])
def test_short_frames(longest: int, expected: set[int]) -> None:
    case = PACKED.replace(seqlen_q=longest, seqlen_k=longest)
    found = {n for seed in range(8) for pair in lengths(case.replace(seed=seed)) for n in pair}
    assert found == expected


@settings(deadline=None)
@given(packed_cases())
def test_packing(case: AttentionCase) -> None:
    where, found = packing(case), lengths(case)
    for side, (places, used, rows, longest) in enumerate(
        (
            (where.cu_seqlens_q, where.seqused_q, where.rows_q, where.longest_q),
            (where.cu_seqlens_k, where.seqused_k, where.rows_k, where.longest_k),
        )
    ):
        own = [pair[side] for pair in found]
        stretches = [after - before for before, after in pairwise(places)]
        assert places[0] == 0
        assert len(stretches) == case.batch
        assert max(stretches, default=0) <= longest
        if case.lengths == "ragged":
            assert stretches == own
            assert used is None
            assert rows == places[-1]
        else:
            assert stretches == [(case.seqlen_q, case.seqlen_k)[side]] * case.batch
            assert used == tuple(own)
            assert rows == places[-1] + TAIL


def test_a_case_without_lengths_has_no_packing() -> None:
    with pytest.raises(ValueError, match="lengths: got None"):
        packing(PACKED.replace(lengths=None))


@pytest.mark.parametrize("regime", REGIMES)
def test_cotangents_of_rows_that_do_not_exist_are_zero_and_all_else_is_drawn_alike(regime: str) -> None:
    case = PACKED.replace(regime=regime, mask="causal", window_left=3, sink=True, lse_grad=True, seed=3)
    inputs, real = draw(case), exists(case, torch.arange(8)[:, None, None], torch.arange(6))
    assert real is not None
    assert inputs.dlse is not None
    assert not inputs.dout.masked_select(~real[:, None]).any()
    assert not inputs.dlse.masked_select(~real[:, None, :, 0]).any()
    assert all(x.isfinite().all() for x in (inputs.q, inputs.k, inputs.v, inputs.dout, inputs.dlse))
    if regime == "normal":
        plain = draw(case.replace(lengths=None))
        assert torch.equal(inputs.q, plain.q)
        assert torch.equal(inputs.dout, plain.dout.masked_fill(~real[:, None], 0.0))


def test_copy_reads_a_visible_key_in_every_sequence() -> None:
    """Each row's largest logit belongs to a key that it sees, and some row reads the last key of its sequence."""
    case = PACKED.replace(seqlen_q=20, seqlen_k=30, head_dim=32, regime="copy", mask="causal", lengths="used")
    inputs, entries = draw(case), torch.arange(8)[:, None, None]
    seen = visible_mask(case, entries, torch.arange(20), torch.arange(30))
    logits = (inputs.q @ inputs.k.mT)[:, 0]
    best = logits.argmax(-1, keepdim=True)
    alive = seen.any(-1)
    assert seen.gather(-1, best)[..., 0][alive].all()
    for b, (queries, keys) in enumerate(lengths(case)):
        if queries and keys:
            assert best[b, queries - 1, 0] == keys - 1
