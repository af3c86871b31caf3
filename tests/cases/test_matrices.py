"""Matrices keep the promises of their docstrings."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product

import pytest

from flashverify.cases.cached_pairs import PAIRED, pairs_of_cached_features
from flashverify.cases.caches import PAGE_SIZES, appended, left_pads, page_size, shared_pages
from flashverify.cases.case import ALIBIS, BIASES, CACHES, DTYPES, MASKS, ROTARIES, AttentionCase
from flashverify.cases.coverage import coverage, tile_head_dim
from flashverify.cases.dropout_matrices import EDGE_RATES, RATES, many_dropped_pairs
from flashverify.cases.layouts import LAYOUTS
from flashverify.cases.lengths import PACKINGS, lengths
from flashverify.cases.matrices import MATRICES, matrix
from flashverify.cases.packed_matrices import EDGES, HEAD_DIMS, standard_packed
from flashverify.cases.paired import pairs_of_features
from flashverify.cases.regimes import REGIMES
from flashverify.cases.rotary import rotary_dim
from flashverify.checks.function import _is_small

SHARP_DTYPES = ("fp16", "bf16", "fp32")

FEATURES = {
    "plain",
    "causal",
    "causal-topleft",
    "gqa",
    "mqa",
    "cross-length",
    "scale",
    "dlse",
    "layout",
    "window",
    "head-dim-v",
    "softcap",
    "alibi",
    "bias",
    "mask",
    "sink",
    "varlen",
    "cache",
    "paged-cache",
    "cache-lengths",
    "shared-pages",
    "leftpad",
    "rotary",
    "dropout",
}


def _without_tensors(name: str) -> list[AttentionCase]:
    """The cases of a matrix without tensors of biases, sinks, lengths and caches, and but for those that pair features."""
    paired = {case.id for case in pairs_of_features()}
    plain = [case for case in matrix(name) if case.bias is None and not case.sink and case.lengths is None]
    return [case for case in plain if case.cache is None and case.id not in paired]


@pytest.mark.parametrize("name", MATRICES)
def test_ids_are_unique_and_stable(name: str) -> None:
    ids = [case.id for case in matrix(name)]
    assert len(set(ids)) == len(ids)
    assert ids == [case.id for case in matrix(name)]
    assert [AttentionCase.from_id(case_id) for case_id in ids] == list(matrix(name))


@pytest.mark.parametrize("name", MATRICES)
def test_every_value_of_every_axis_occurs(name: str) -> None:
    counts = coverage(matrix(name))
    assert set(counts["dtype"]) == set(DTYPES)
    assert set(counts["mask"]) == set(MASKS)
    assert set(counts["regime"]) == set(REGIMES)
    assert set(counts["layout"]) == set(LAYOUTS)
    assert set(counts["feature"]) == FEATURES
    assert {0, 1, 3} <= set(counts["batch"])
    assert {0, 1} <= set(counts["seqlen_q"])
    assert {0, 1} <= set(counts["seqlen_k"])
    assert {1, 3, 256} <= set(counts["head_dim"])
    assert set(counts["bias"]) == {None, *BIASES}
    assert set(counts["sink"]) == {False, True}
    assert {(4, 2), (6, 2)} <= set(counts["heads"])


def test_smoke_is_small() -> None:
    cases = matrix("smoke")
    assert 120 <= len(cases) <= 240
    tiles = [c.heads_q * sum(-(-queries // 16) * -(-keys // 16) for queries, keys in lengths(c)) for c in cases]
    assert sum(tiles) < 3_600
    longest = [case for case in cases if max(case.seqlen_q, case.seqlen_k) > 65 and case.cache is None]
    assert {(case.dtype, case.seqlen_q, case.seqlen_k) for case in longest} == {(dtype, 128, 144) for dtype in SHARP_DTYPES}


def test_smoke_has_every_regime_in_every_dtype() -> None:
    pairs = {(case.regime, case.dtype) for case in matrix("smoke")}
    assert len(pairs) == len(REGIMES) * len(DTYPES)


def test_smoke_ties_no_axis_to_the_dtype() -> None:
    # Lists that take turns with the dtypes in step would give each dtype only some of their entries.
    cases = matrix("smoke")
    for dtype in DTYPES:
        of_dtype = [case for case in cases if case.dtype == dtype]
        assert {case.mask for case in of_dtype} == set(MASKS)
        assert len({case.head_dim for case in of_dtype}) >= 5
        assert len({(case.seqlen_q, case.seqlen_k) for case in of_dtype}) >= 8
        assert len({case.layout for case in of_dtype}) >= 4
        assert len({(case.heads_q, case.heads_kv) for case in of_dtype}) >= 3


def test_smoke_meets_scales_below_at_and_above_zero() -> None:
    scales = {case.scale for case in matrix("smoke") if case.scale is not None}
    assert min(scales) < 0 < max(scales)
    assert 0 in scales


@pytest.mark.parametrize("name", MATRICES)
def test_softcaps_of_several_sizes_under_every_view_in_every_dtype(name: str) -> None:
    capped = [case for case in _without_tensors(name) if case.softcap is not None]
    for dtype in DTYPES:
        of_dtype = [case for case in capped if case.dtype == dtype]
        assert len({case.softcap for case in of_dtype}) >= 2
        assert {True, False} == {"window" in case.features for case in of_dtype}
        assert {"causal", "cross-length"} <= {feature for case in of_dtype for feature in case.features}
    assert {True, False} == {case.lse_grad for case in capped}


@pytest.mark.parametrize("name", MATRICES)
def test_biases_of_both_kinds_under_every_view(name: str) -> None:
    biased = [case for case in _without_tensors(name) if case.alibi is not None]
    assert {(case.alibi, case.batch) for case in biased} >= {("heads", 1), ("batch", 2)}
    assert {("full", False), ("causal", False), ("causal", True)} == {(c.mask, c.window_left is not None) for c in biased}
    assert {True, False} == {case.lse_grad for case in biased} == {case.softcap is None for case in biased}
    assert {case.dtype for case in biased} == set(DTYPES)


def test_standard_has_both_kinds_of_biases_in_every_view_regime_and_dtype() -> None:
    biased = [case for case in _without_tensors("standard") if case.alibi is not None]
    kinds = [(case.alibi, case.dtype) for case in biased]
    assert len(biased) == 44
    views = [(case.mask, case.window_left is not None) for case in biased]
    assert len(set(zip(kinds, views, strict=True))) == 2 * 3 * len(DTYPES)
    assert len(set(zip(kinds, (case.regime for case in biased), strict=True))) == 2 * 4 * len(DTYPES)
    assert {(case.dtype, case.softcap) for case in biased} == {(d, cap) for d in DTYPES for cap in (None, 15.0)}
    assert {(case.dtype, case.lse_grad) for case in biased} == {(d, grad) for d in DTYPES for grad in (False, True)}


def test_standard_has_every_regime_of_softcaps_under_every_view_and_at_every_cap() -> None:
    capped = [case for case in _without_tensors("standard") if case.softcap is not None and case.alibi is None]
    views = [(case.mask, "window" in case.features, case.regime) for case in capped]
    assert len(capped) == 48
    assert len(set(zip(views, (case.dtype for case in capped), strict=True))) == 48
    assert len(set(zip(views, (case.softcap for case in capped), strict=True))) == 48


@pytest.mark.parametrize("name", MATRICES)
def test_every_bias_in_every_dtype_with_and_without_a_sink(name: str) -> None:
    cases = [case for case in matrix(name) if case.bias is not None or case.sink]
    assert {(case.bias, case.dtype) for case in cases} == {(bias, dtype) for bias in (None, *BIASES) for dtype in DTYPES}
    assert {(case.bias, case.sink) for case in cases} == {(b, s) for b in BIASES for s in (False, True)} | {(None, True)}
    assert {(case.sink, case.mask) for case in cases} == {(sink, mask) for sink in (False, True) for mask in MASKS}
    for feature in ("dlse", "softcap", "alibi"):
        assert {True, False} == {feature in case.features for case in cases}, feature


def test_standard_has_every_bias_in_every_dtype_with_and_without_a_sink() -> None:
    cases = [case for case in matrix("standard") if case.bias is not None or case.sink]
    kinds = {(case.bias, case.sink, case.dtype) for case in cases}
    assert kinds == {(b, s, d) for b in (None, *BIASES) for s in (False, True) for d in DTYPES if b is not None or s}
    assert {(c.dtype, "window" in c.features) for c in cases} == {(d, window) for d in DTYPES for window in (False, True)}
    for feature in ("gqa", "cross-length", "head-dim-v", "softcap", "scale", "dlse", "layout"):
        assert {case.sink for case in cases if feature in case.features} == {False, True}, feature
    assert any(case.alibi is not None for case in cases)


def test_standard_is_large_enough_and_bounded() -> None:
    cases = matrix("standard")
    assert 1_000 <= len(cases) <= 2_000
    pairs = {case: case.batch * case.heads_q * case.seqlen_q * case.seqlen_k for case in cases}
    assert sum(pairs.values()) - sum(pairs[case] for case in many_dropped_pairs()) < 725e6
    assert sum(pairs[case] for case in cases if case.dropout is not None) > 1e9
    assert max(max(case.seqlen_q, case.seqlen_k) for case in cases) == 4096


def test_standard_covers_the_axes() -> None:
    counts = coverage(matrix("standard"))
    edges = {1, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 255, 257, 511, 512, 513, 1023, 1024, 1025, 2048, 4095, 4096}
    assert edges <= set(counts["seqlen_q"]) & set(counts["seqlen_k"])
    assert {1, 3, 8, 16, 17, 32, 40, 64, 72, 80, 96, 128, 160, 192, 256} <= set(counts["head_dim"])
    assert {0.0, 1.0, -1.0, 2.0, None} <= set(counts["scale"])
    assert set(counts["softcap"]) == {None, 1.0, 2.0, 15.0, 30.0, 50.0}
    assert set(counts["alibi"]) == {None, "heads", "batch"}
    assert counts["sink"][True] >= 24
    assert min(counts["bias"][bias] for bias in BIASES) >= 8
    assert counts["seqlen_q"][1] >= 50
    assert {(4, 2), (6, 2), (8, 1), (3, 3)} <= set(counts["heads"])
    assert len(counts["regime x dtype x mask"]) == len(REGIMES) * len(DTYPES) * len(MASKS)
    assert len(counts["layout x dtype"]) == len(LAYOUTS) * len(DTYPES)
    some_dtypes = {
        "_distributions",
        "distributed_dropouts",
        "many_dropped_pairs",
        "_narrow_values",
        "_biases",
        "pairs_of_features",
        "pairs_of_cached_features",
        "standard_packed",
    }
    drawn_in_every_dtype = [builder for builder in MATRICES["standard"] if builder.__name__ not in some_dtypes]
    by_dtype = Counter(
        case.dtype for case in {case.id: case for builder in drawn_in_every_dtype for case in builder()}.values()
    )
    assert max(by_dtype.values()) == min(by_dtype.values())
    assert set(by_dtype) == set(DTYPES)


def test_standard_exercises_every_tile_over_several_tiles() -> None:
    tiles = coverage(matrix("standard"))["tile"]
    expected = {(dtype, d, causal) for dtype in DTYPES for d in (16, 32, 64, 128, 256) for causal in (False, True)}
    assert set(tiles) == expected
    assert min(tiles.values()) >= 3


def test_standard_has_more_keys_and_fewer_keys_than_queries_under_each_mask() -> None:
    cases = matrix("standard")
    for mask in MASKS:
        for dtype in DTYPES:
            signs = {
                (c.seqlen_q > c.seqlen_k) - (c.seqlen_q < c.seqlen_k)
                for c in cases
                if c.mask == mask and c.dtype == dtype and min(c.seqlen_q, c.seqlen_k) > 0
            }
            assert signs == {-1, 0, 1}


def test_standard_tells_swapped_strides_apart() -> None:
    cases = [c for c in matrix("standard") if len({c.batch, c.heads_q, c.heads_kv, c.seqlen_q, c.seqlen_k}) == 5]
    assert {c.dtype for c in cases if c.batch > 1 and c.heads_kv > 1} == set(DTYPES)


@pytest.mark.parametrize("name", MATRICES)
def test_windows_of_each_side_and_of_both_in_every_dtype(name: str) -> None:
    sides = {(c.dtype, c.window_left is not None, c.window_right is not None) for c in matrix(name) if "window" in c.features}
    assert sides == {(dtype, *side) for dtype in DTYPES for side in ((True, False), (False, True), (True, True))}


def test_full_contains_standard_and_very_long_cases() -> None:
    full, standard = matrix("full"), matrix("standard")
    assert full[: len(standard)] == standard
    longest = [case for case in full if case.seqlen_k == 65536]
    assert {case.mask for case in longest} == {"full", "causal"}
    assert {case.dtype for case in longest} == {"fp16", "bf16", "fp32"}
    assert {8192, 16384} <= {case.seqlen_q for case in full}


@pytest.mark.parametrize("name", MATRICES)
def test_both_packings_in_every_dtype_with_every_feature(name: str) -> None:
    cases = [case for case in matrix(name) if case.lengths is not None]
    assert {(case.dtype, case.lengths) for case in cases} >= {(dtype, kind) for dtype in DTYPES for kind in PACKINGS}
    assert {(case.mask, "window" in case.features) for case in cases} == {(m, w) for m in MASKS[:2] for w in (False, True)}
    for feature in ("gqa", "cross-length", "head-dim-v", "softcap", "alibi", "sink", "dlse"):
        assert {feature in case.features for case in cases} == {True, False}, feature
    assert {case.alibi for case in cases} == {None, *ALIBIS}


@pytest.mark.parametrize("name", MATRICES)
def test_packings_have_empty_and_mixed_sequences_first_in_the_middle_and_last(name: str) -> None:
    cases = [lengths(case) for case in matrix(name) if case.lengths is not None]
    for side in (0, 1):
        places = [[pair[side] == 0 for pair in pairs] for pairs in cases]
        assert any(empty[0] for empty in places)
        assert any(empty[-1] for empty in places)
        assert any(True in empty[1:-1] for empty in places)
    kinds = {(queries > 0, keys > 0) for pairs in cases for queries, keys in pairs}
    assert kinds == {(False, False), (False, True), (True, False), (True, True)}


def test_standard_packs_every_edge_and_head_size_in_every_dtype_and_long_and_many_sequences() -> None:
    cases = list(standard_packed())
    assert {(c.dtype, c.seqlen_q, c.seqlen_k) for c in cases} >= {(d, *edge) for d in DTYPES for edge in EDGES}
    assert {(c.dtype, c.head_dim) for c in cases} >= {(d, size) for d in DTYPES for size in HEAD_DIMS}
    assert any((2000, 2000) in lengths(case) for case in cases)
    assert any(case.batch == 300 and case.seqlen_k <= 32 for case in cases)
    large = {(case.dtype, case.lengths) for case in cases if case.seqlen_q == 512}
    assert large == {(dtype, kind) for dtype in SHARP_DTYPES for kind in PACKINGS}


@pytest.mark.parametrize("name", MATRICES)
def test_a_third_of_the_cases_with_a_backward_pass_drop_pairs(name: str) -> None:
    cases = [case for case in matrix(name) if case.cache is None]
    dropping = [case for case in cases if case.dropout is not None]
    assert 0.3 < len(dropping) / len(cases) < 0.42
    assert {(c.dtype, c.dropout) for c in dropping} >= {(d, rate) for d in DTYPES for rate in RATES}
    assert {case.dropout for case in dropping} >= set(EDGE_RATES)
    if name != "smoke":
        assert {(c.dtype, c.dropout) for c in dropping} >= {(d, rate) for d in DTYPES for rate in EDGE_RATES}


@pytest.mark.parametrize("name", MATRICES)
def test_every_feature_layout_and_regime_occurs_with_dropout_and_without(name: str) -> None:
    with_it, without = (
        coverage(case for case in matrix(name) if case.cache is None and (case.dropout is not None) is drops)
        for drops in (True, False)
    )
    for axis in ("dtype", "mask", "bias", "sink", "lengths", "alibi"):
        assert set(with_it[axis]) == set(without[axis]), axis
    assert set(without["feature"]) - {"plain"} <= set(with_it["feature"])
    if name != "smoke":
        assert set(with_it["regime"]) == set(without["regime"]) == set(REGIMES)
        assert set(with_it["layout"]) == set(without["layout"]) == set(LAYOUTS)
        assert min(with_it["tile"].values()) >= 1


def test_the_very_long_cases_do_not_drop() -> None:
    assert all(case.dropout is None for case in matrix("full") if case.seqlen_k >= 8192)


def test_unknown_matrix() -> None:
    with pytest.raises(ValueError, match="matrix: got 'huge', accepted are smoke, standard, full"):
        matrix("huge")


@pytest.mark.parametrize("name", ["smoke", "standard"])
def test_decoding_in_every_dtype_from_both_kinds_of_cache(name: str) -> None:
    cases = [case for case in matrix(name) if case.cache is not None]
    assert {case.dtype for case in cases} == set(DTYPES)
    assert {case.cache for case in cases} == set(CACHES)
    found = {feature for case in cases for feature in case.features}
    assert {"causal", "window", "softcap", "alibi", "gqa", "mqa", "head-dim-v", "scale", "cross-length"} <= found
    assert {True, False} == {case.seqlen_q == 1 for case in cases}
    assert 0 in {case.seqlen_k for case in cases}
    if name == "standard":
        assert {(case.dtype, case.cache, tile_head_dim(case)) for case in cases} >= set(
            product(DTYPES, ("contiguous", "paged"), (16, 32, 64, 128, 256))
        )


@pytest.mark.parametrize("name", ["smoke", "standard"])
def test_left_pads_turned_rows_and_shared_pages_of_both_kinds(name: str) -> None:
    cases = [case for case in matrix(name) if case.cache is not None]
    assert {case.rotary for case in cases} == {None, *ROTARIES}
    assert any(rotary_dim(case) < case.head_dim for case in cases if case.rotary)
    assert any(rotary_dim(case) == case.head_dim for case in cases if case.rotary)
    assert any(case.left_pad and case.rotary for case in cases)
    sharing = [case for case in cases if case.cache == "shared" and case.batch > 1]
    assert all(shared_pages(case) for case in sharing if case.lengths is None)
    # of a sequence that nothing is appended to, of one whose pads hide all, and of both
    assert {pad for case in cases if case.left_pad for pad in left_pads(case)} >= {0, 1}
    assert any(
        appended(case) and pad == keys for case in cases for pad, (_, keys) in zip(left_pads(case), lengths(case), strict=True)
    )
    if name == "standard":
        assert {page_size(case) for case in sharing} == set(PAGE_SIZES)
        for feature in ("leftpad", "rotary", "shared-pages"):
            assert {case.dtype for case in cases if feature in case.features} == set(DTYPES)


def test_every_two_features_of_decoding_meet() -> None:
    cases = list(pairs_of_cached_features())
    assert len(cases) < 40

    def values(case: AttentionCase) -> dict[str, object]:
        fields = {
            name: getattr(case, name) for name in ("rotary", "dtype", "cache", "left_pad", "lengths", "alibi", "head_dim")
        }
        others = {"softcap": case.softcap, "head_dim_v": case.head_dim_v, "scale": case.scale, "parity": case.seed % 2}
        return fields | others | {"heads": (case.heads_q, case.heads_kv), "sizes": (case.seqlen_q, case.seqlen_k)}

    def meets(settings: dict[str, object]) -> bool:
        return any(settings.items() <= values(case).items() for case in cases)

    names = [name for name in PAIRED if name != "view"]
    apart = {("cache", "shared"): ({"parity": 1}, {"sizes": (20, 33)}, {"sizes": (33, 20)})}
    for one, other in combinations(names, 2):
        for first, second in product(PAIRED[one], PAIRED[other]):
            never = any({other: second} == refused for refused in apart.get((one, first), ()))
            assert meets({one: first, other: second}) is not never, (one, first, other, second)
    assert all(appended(case) and _is_small(case) for case in cases)
    assert all(shared_pages(case) for case in cases if case.cache == "shared" and case.lengths is None)
