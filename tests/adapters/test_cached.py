"""Decoding from a cache under examination: what the cache holds, and that a function that reads or writes otherwise is seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from flashverify.adapters import cached
from flashverify.adapters.kernel import KernelDefectError
from flashverify.cases import regimes
from flashverify.cases.cached import smoke
from flashverify.cases.case import CACHES, AttentionCase
from flashverify.cases.tensors import Outputs
from flashverify.oracles import tiled

CASE = AttentionCase(
    dtype="fp64",
    batch=2,
    heads_q=4,
    heads_kv=2,
    seqlen_q=3,
    seqlen_k=40,
    head_dim=8,
    head_dim_v=5,
    mask="causal",
    cache="paged",
)


def plain(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    *,
    cache_seqlens: torch.Tensor,
    cache_batch_idx: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    late: int = 0,
    beyond: int = 0,
    forgets: bool = False,
    in_order: bool = False,
    strays: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decoding in plain torch, one place after another; the last arguments plant defects."""
    outs, lses = [], []
    for b in range(q.shape[0]):

        def place(j: int, b: int = b, ordered: bool = False) -> tuple[int, int]:
            if block_table is None:
                assert cache_batch_idx is not None
                return (b if ordered else int(cache_batch_idx[b])), j
            rows = k_cache.shape[1]
            page = int(block_table[0 if ordered else b, j // rows])
            return page % len(k_cache), j % rows

        length = int(cache_seqlens[b])
        new = 0 if k is None else k.shape[1]
        if k is not None and v is not None and not forgets:
            for j in range(new):
                k_cache[place(length + j + late)], v_cache[place(length + j + late)] = k[b, j], v[b, j]
        if strays:
            k_cache[-1, -1] = 0.0
        keys = [place(j, ordered=in_order) for j in range(length + new + beyond)]
        group = q.shape[2] // k_cache.shape[2]
        of_k, of_v = (torch.stack([x[p] for p in keys], 1).repeat_interleave(group, 0).double() for x in (k_cache, v_cache))
        scores = q[b].transpose(0, 1).double() @ of_k.mT * q.shape[3] ** -0.5
        position = torch.arange(q.shape[1])[:, None] + length + new - q.shape[1]
        scores = scores.masked_fill(torch.arange(len(keys))[None, :] > position + beyond, -torch.inf)
        lses.append(scores.logsumexp(-1))
        outs.append((scores.softmax(-1) @ of_v).transpose(0, 1))
    return torch.stack(outs).to(q.dtype), torch.stack(lses)


def decode(case: AttentionCase, **defects: object) -> tuple[Outputs, Outputs]:
    """What `plain` gives with a defect, and truth."""
    inputs = regimes.draw(case)
    return cached.decode(case, inputs, plain, **defects), Outputs(*tiled.forward(case, inputs))


def is_close(found: Outputs, truth: Outputs) -> bool:
    """Equal to 30 bits: far beyond any formula's error in float64, and far below any defect's."""
    pairs = ((found.out, truth.out), (found.lse, truth.lse))
    return all(bool(((x.double() - y).abs() <= 2.0**-30 * y.abs().amax()).all()) for x, y in pairs)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_plain_function_finds_its_keys(cache: str, seed: int) -> None:
    assert is_close(*decode(CASE.replace(cache=cache, seed=seed)))


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("defect", [{"beyond": 1}, {"in_order": True}])
def test_a_function_that_reads_elsewhere_is_far_off(cache: str, defect: dict[str, object]) -> None:
    assert not is_close(*decode(CASE.replace(cache=cache), **defect))


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("defect", [{"late": 1}, {"forgets": True}, {"strays": True}])
def test_a_function_that_writes_elsewhere_is_refused(cache: str, defect: dict[str, object]) -> None:
    with pytest.raises(KernelDefectError, match="_cache: the call leaves other keys or values"):
        decode(CASE.replace(cache=cache), **defect)


@pytest.mark.parametrize("cache", CACHES)
def test_what_no_key_lies_in_is_poison(cache: str) -> None:
    inputs = regimes.draw(CASE)
    made = cached.empty_cache(CASE.replace(cache=cache), inputs)
    assert made.k.isnan().all()
    assert made.v.isnan().all()
    assert made.capacity == cached.capacity_of(CASE.replace(cache=cache)) > CASE.seqlen_k
    assert made.places.unique().numel() == made.places.numel() < made.k.shape[0] * made.k.shape[1]


def test_entries_and_pages_lie_out_of_order() -> None:
    inputs = regimes.draw(CASE.replace(batch=8))
    table = cached.empty_cache(CASE.replace(batch=8), inputs).arguments["block_table"]
    used = table[table != cached.NOWHERE]
    assert not torch.equal(used, used.sort().values)
    entries = cached.empty_cache(CASE.replace(batch=8, cache="contiguous"), inputs).arguments["cache_batch_idx"]
    assert not torch.equal(entries, entries.sort().values)


def test_both_page_sizes_occur_in_the_smoke_matrix() -> None:
    assert {cached.page_size(case) for case in smoke() if case.cache == "paged"} == set(cached.PAGE_SIZES)


@pytest.mark.parametrize(
    ("field", "value"),
    [("bias", "full"), ("sink", True), ("lse_grad", True), ("layout", "bnhd"), ("mask", "causal-topleft"), ("cache", "pages")],
)
def test_what_a_cache_does_not_take_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field}: got "):
        dataclasses.replace(CASE, **{field: value})


def test_a_cache_has_an_id_and_features_of_its_own() -> None:
    assert AttentionCase.from_id(CASE.id) == CASE
    assert "_cache-paged_" in CASE.id
    assert "paged-cache" in CASE.features
    assert CASE.forward_only
    assert "cache" in CASE.replace(cache="contiguous").features


def test_a_cotangent_of_zero_is_drawn() -> None:
    drawn: Callable[[AttentionCase], torch.Tensor] = lambda case: regimes.draw(case).dout  # noqa: E731
    assert not drawn(CASE).any()
    assert drawn(CASE.replace(cache=None)).any()
