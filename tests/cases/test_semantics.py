"""The scalar and the vectorised form of visibility are one rule, and the rule is the documented one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from flashverify.cases.case import AttentionCase
from flashverify.cases.regimes import draw
from flashverify.cases.semantics import first_offset, key_head, limited, visible, visible_mask
from flashverify.cases.strategies import cases


@settings(deadline=None)
@given(cases(max_elements=2**10))
def test_scalar_and_vectorised_visibility_agree(case: AttentionCase) -> None:
    mask = visible_mask(case, torch.arange(case.seqlen_q), torch.arange(case.seqlen_k))
    assert mask.shape == (case.seqlen_q, case.seqlen_k)
    assert mask.tolist() == [[visible(case, i, j) for j in range(case.seqlen_k)] for i in range(case.seqlen_q)]


@pytest.mark.parametrize(
    ("mask", "seqlen_q", "seqlen_k", "expected"),
    [
        ("full", 2, 3, [[1, 1, 1], [1, 1, 1]]),
        ("causal", 2, 3, [[1, 1, 0], [1, 1, 1]]),
        ("causal", 3, 2, [[0, 0], [1, 0], [1, 1]]),
        ("causal-topleft", 2, 3, [[1, 0, 0], [1, 1, 0]]),
        ("causal-topleft", 3, 2, [[1, 0], [1, 1], [1, 1]]),
    ],
)
def test_alignment(mask: str, seqlen_q: int, seqlen_k: int, expected: list[list[int]]) -> None:
    case = AttentionCase(dtype="fp32", seqlen_q=seqlen_q, seqlen_k=seqlen_k, head_dim=1, mask=mask)
    assert visible_mask(case, torch.arange(seqlen_q), torch.arange(seqlen_k)).int().tolist() == expected


@pytest.mark.parametrize("mask", ["full", "causal", "causal-topleft"])
@pytest.mark.parametrize("side", [7, 2**31, 2**63, 10**30])
def test_a_side_that_reaches_every_key_is_no_limit(mask: str, side: int) -> None:
    plain = AttentionCase(dtype="fp32", seqlen_q=3, seqlen_k=4, head_dim=1, mask=mask)
    case = plain.replace(window_left=side, window_right=side if mask == "full" else None)
    rows, columns = torch.arange(3), torch.arange(4)
    assert torch.equal(visible_mask(case, rows, columns), visible_mask(plain, rows, columns))
    assert limited(case) is limited(plain) is (mask != "full")
    draw(case.replace(regime="copy"))


def test_a_side_that_reaches_fewer_keys_is_a_limit() -> None:
    case = AttentionCase(dtype="fp32", seqlen_q=3, seqlen_k=4, head_dim=1, window_left=6)
    assert limited(case)
    assert first_offset(case) == 1 - 6


def test_key_heads_of_a_ratio_that_is_not_square() -> None:
    case = AttentionCase(dtype="fp32", heads_q=6, heads_kv=2, seqlen_q=1, seqlen_k=1, head_dim=1)
    assert [key_head(case, h) for h in range(6)] == [0, 0, 0, 1, 1, 1]
