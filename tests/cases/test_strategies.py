"""Strategies keep to their bounds and shrink to plain small cases."""

from __future__ import annotations

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from flashverify.cases.case import AttentionCase
from flashverify.cases.layouts import LAYOUTS
from flashverify.cases.regimes import REGIMES
from flashverify.cases.strategies import cases


@settings(deadline=None)
@given(st.data(), st.sampled_from((1, 2, 7, 300, 2**14)))
def test_sizes_are_bounded(data: st.DataObject, max_elements: int) -> None:
    case = data.draw(cases(max_elements=max_elements, dtypes=("fp32",)))
    heads = case.batch * case.heads_q
    assert case.dtype == "fp32"
    assert case.regime in REGIMES
    assert case.layout in LAYOUTS
    assert heads * case.seqlen_q * case.seqlen_k <= max_elements
    assert heads * max(case.seqlen_q, case.seqlen_k) * case.head_dim <= max_elements


def test_anything_shrinks_to_the_plainest_case() -> None:
    assert find(cases(), lambda _: True) == AttentionCase(dtype="fp16", seqlen_q=0, seqlen_k=0, head_dim=1)


def test_a_failure_shrinks_to_what_matters() -> None:
    found = find(cases(), lambda case: case.seqlen_k > 32 and case.mask == "causal" and case.seqlen_q > 0)
    assert found == AttentionCase(dtype="fp16", seqlen_q=1, seqlen_k=33, head_dim=1, mask="causal")


@pytest.mark.parametrize(
    "wanted", ["mqa", "gqa", "dlse", "scale", "causal-topleft", "window", "head-dim-v", "softcap", "alibi", "varlen", "dropout"]
)
def test_features_are_reached(wanted: str) -> None:
    assert wanted in find(cases(), lambda case: wanted in case.features).features


def test_bad_bound() -> None:
    with pytest.raises(ValueError, match="max_elements: got 0"):
        find(cases(max_elements=0), lambda _: True)
