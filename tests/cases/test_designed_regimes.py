"""Regimes with designed logits have the properties that their docstrings promise."""

from __future__ import annotations

import math

import pytest
import torch

from flashverify.cases.case import DTYPES, MASKS
from flashverify.cases.regimes import draw
from flashverify.cases.semantics import visible_mask
from tests.cases.support import case_of, logits


def test_needle_is_one_key_a_head_and_visits_last_first_and_edges() -> None:
    keys = set()
    for seed in range(8):
        v = draw(case_of("needle", seed=seed)).v
        assert torch.equal((v != 0).sum(dim=(2, 3)), torch.ones(2, 2, dtype=torch.int64))
        assert v.max() == 1
        keys |= set(v.nonzero()[:, 2].tolist())
    assert keys == {74, 0, 15, 16, 31, 32, 63, 64}


def test_needle_is_visible() -> None:
    # Top-left causal with fewer queries than keys: keys from seqlen_q on are never seen.
    v = draw(case_of("needle", mask="causal-topleft", seqlen_q=20, batch=1, heads_kv=1)).v
    assert v.nonzero()[:, 2].tolist() == [19]


@pytest.mark.parametrize("regime", ["needle", "identity-values", "sink", "falling-maximum"])
def test_what_a_regime_places_is_within_a_window(regime: str) -> None:
    """20 queries stand at keys 80 to 99 and see none before 75."""
    case = case_of(regime, seqlen_q=20, seqlen_k=100, window_left=5, window_right=0, head_dim=16)
    for seed in range(8):
        drawn = draw(case.replace(seed=seed))
        placed = drawn.v != 0 if regime in {"needle", "identity-values"} else drawn.k[..., :1] > 2
        keys = placed.any(dim=3).any(dim=1).any(dim=0).nonzero().flatten()
        seen = visible_mask(case, torch.tensor(0), torch.arange(20), torch.arange(100)).any(dim=0)
        assert keys.numel()
        if regime == "falling-maximum":  # keys that nobody sees may be as large as those that the regime places
            keys = keys[keys >= 75]
            assert keys.tolist() == list(range(75, 75 + 13))
        assert seen[keys].all()


def test_identity_values_is_a_window() -> None:
    v = draw(case_of("identity-values", head_dim=8, heads_kv=1, batch=1)).v[0, 0]
    assert torch.equal(v[-8:], torch.eye(8, dtype=v.dtype))
    assert v.sum() == 8
    short = draw(case_of("identity-values", seqlen_k=5)).v[0, 0]
    assert torch.equal(short, torch.eye(5, 64, dtype=v.dtype))


@pytest.mark.parametrize("scale", [None, -1.0, 2.0, 0.01])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_copy_gap(dtype: str, mask: str, scale: float | None) -> None:
    case = case_of("copy", dtype=dtype, mask=mask, scale=scale)
    inputs = draw(case)
    top = logits(case, inputs).topk(2, dim=-1)
    seen = torch.isfinite(top.values[..., 1])
    assert seen.any()
    assert (top.values[..., 0] - top.values[..., 1])[seen].min() > 150 * math.log(2)
    # Every fourth row at least reads the last key that it sees.
    last = visible_mask(case, torch.tensor(0), torch.arange(70), torch.arange(75)).sum(dim=1) - 1
    assert ((top.indices[..., 0] == last) | (last < 0)).double().mean() > 0.25


def test_copy_with_too_few_codes_reuses_values() -> None:
    case = case_of("copy", head_dim=3)
    inputs = draw(case)
    weights = torch.softmax(logits(case, inputs), dim=-1)
    out = weights @ inputs.v.double().repeat_interleave(2, dim=1)
    chosen = weights.argmax(dim=-1)[..., None].expand(-1, -1, -1, 3)
    assert torch.allclose(out, inputs.v.double().repeat_interleave(2, dim=1).gather(2, chosen), rtol=1e-12, atol=0)


def test_one_hot_weights() -> None:
    case = case_of("one-hot")
    weights = torch.softmax(logits(case, draw(case)), dim=-1)
    assert weights.amax(dim=-1).min() > 1 - 2.0**-20


def test_sink_takes_the_weight_and_gives_nothing() -> None:
    case = case_of("sink")
    inputs = draw(case)
    weights = torch.softmax(logits(case, inputs), dim=-1)
    assert weights[..., 0].min() > 0.9
    assert (weights[..., 0] < 1).all()
    assert (inputs.v[:, :, 0] == 0).all()


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("scale", [None, -1.0, 0.01])
def test_all_negative_logits(scale: float | None, mask: str) -> None:
    for dtype in DTYPES:
        case = case_of("all-negative-logits", dtype=dtype, scale=scale, mask=mask)
        s = logits(case, draw(case))
        assert s.max() < -1.0e5
        spread = s.amax(dim=-1) - torch.where(s.isfinite(), s, math.inf).amin(dim=-1)
        assert spread.max() > 0.1


def test_key_offset_shifts_rows() -> None:
    s = logits(case := case_of("key-offset"), draw(case))
    assert s.mean(dim=-1).abs().max() > 100
    assert s.std(dim=-1).max() < 3


@pytest.mark.parametrize("seqlen_k", [75, 1024])
@pytest.mark.parametrize("dtype", DTYPES)
def test_growing_maximum_grows_from_block_to_block(dtype: str, seqlen_k: int) -> None:
    case = case_of("growing-maximum", dtype=dtype, seqlen_k=seqlen_k)
    s = logits(case, draw(case))
    maxima = torch.stack([block.amax(dim=-1) for block in s.split(16, dim=-1)], dim=-1)
    assert (maxima.diff(dim=-1) > 0).all()
    # Earlier blocks keep a weight that the dtype resolves, in rows whose logits grow least.
    weights = torch.softmax(s, dim=-1)
    assert weights[..., : seqlen_k // 2].sum(dim=-1).max() > 1e-4


@pytest.mark.parametrize("scale", [None, -1.0])
def test_falling_maximum_falls(scale: float | None) -> None:
    case = case_of("falling-maximum", scale=scale, head_dim=4)
    s = logits(case, draw(case))
    drop = s[..., :16].amax(dim=-1) - s[..., 16:].amax(dim=-1)
    assert drop[:, :, 1::2].min() > 100
    assert drop[:, :, 0::2].min() > 5
    assert drop[:, :, 0::2].max() < 60


def test_zero_queries() -> None:
    inputs = draw(case_of("zero-queries"))
    assert (inputs.q == 0).all()
    assert torch.equal(inputs.v, inputs.v.round())
