"""Decoding from a cache under examination: what the cache holds, and that a function that reads or writes otherwise is seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from flashverify.adapters import cached
from flashverify.adapters.kernel import KernelDefectError
from flashverify.cases import caches, regimes
from flashverify.cases.cached import smoke
from flashverify.cases.case import CACHES, ROTARIES, AttentionCase
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
    cache_leftpad: torch.Tensor | None = None,
    rotary_cos: torch.Tensor | None = None,
    rotary_sin: torch.Tensor | None = None,
    rotary_interleaved: bool = True,
    late: int = 0,
    beyond: int = 0,
    forgets: bool = False,
    in_order: bool = False,
    strays: bool = False,
    unpadded: bool = False,
    unturned: str = "",
    misplaced: int = 0,
    swapped: bool = False,
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

        def turned(x: torch.Tensor, first: int, name: str) -> torch.Tensor:
            if rotary_cos is None or rotary_sin is None or name == unturned:
                return x
            angles = slice(first + misplaced, first + misplaced + x.shape[0])
            turn = torch.complex(rotary_cos[angles].double(), rotary_sin[angles].double())[:, None]
            if rotary_interleaved is not swapped:
                pairs = torch.view_as_complex(x[..., : 2 * turn.shape[2]].double().unflatten(-1, (-1, 2)))
                columns = torch.view_as_real(pairs * turn).flatten(-2)
            else:
                pairs = torch.complex(*x[..., : 2 * turn.shape[2]].double().chunk(2, -1)) * turn
                columns = torch.cat([pairs.real, pairs.imag], -1)
            return torch.cat([columns.to(x.dtype), x[..., columns.shape[-1] :]], -1)

        if k is not None and v is not None and not forgets:
            k_new = turned(k[b], length, "k")
            for j in range(new):
                k_cache[place(length + j + late)], v_cache[place(length + j + late)] = k_new[j], v[b, j]
        if strays:
            k_cache[-1, -1] = 0.0
        pad = 0 if cache_leftpad is None or unpadded else int(cache_leftpad[b])
        keys = [place(j, ordered=in_order) for j in range(pad, length + new + beyond)]
        if not keys:
            outs.append(q.new_zeros(*q.shape[1:3], v_cache.shape[3]).double())
            lses.append(q.new_full((q.shape[2], q.shape[1]), -torch.inf).double())
            continue
        group = q.shape[2] // k_cache.shape[2]
        of_k, of_v = (torch.stack([x[p] for p in keys], 1).repeat_interleave(group, 0).double() for x in (k_cache, v_cache))
        scores = turned(q[b], length, "q").transpose(0, 1).double() @ of_k.mT * q.shape[3] ** -0.5
        position = torch.arange(q.shape[1])[:, None] + length + new - q.shape[1]
        scores = scores.masked_fill(pad + torch.arange(len(keys))[None, :] > position + beyond, -torch.inf)
        lses.append(scores.logsumexp(-1))
        outs.append((scores.softmax(-1).nan_to_num() @ of_v).transpose(0, 1))
    return torch.stack(outs).to(q.dtype), torch.stack(lses)


def decode(case: AttentionCase, **defects: object) -> tuple[Outputs, Outputs]:
    """What `plain` gives with a defect, and truth."""
    inputs = regimes.draw(case)
    return cached.decode(case, inputs, plain, **defects), Outputs(*tiled.forward(case, inputs))


def is_close(found: Outputs, truth: Outputs) -> bool:
    """Equal to 30 bits: far beyond any formula's error in float64, and far below any defect's."""
    pairs = ((found.out, truth.out), (found.lse, truth.lse))
    return all(bool(((x == y) | ((x.double() - y).abs() <= 2.0**-30 * y[y.isfinite()].abs().amax())).all()) for x, y in pairs)


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
    shared = len(caches.shared_pages(CASE.replace(cache=cache))) * caches.page_size(CASE)
    assert made.places.unique().numel() == made.places.numel() - shared < made.k.shape[0] * made.k.shape[1]


FEATURES = CASE.replace(batch=5, seqlen_k=70, head_dim=40, left_pad=True, cache="shared")


@pytest.mark.parametrize("rotary", [None, *ROTARIES])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("seed", [0, 3])
def test_a_plain_function_pads_turns_and_shares(cache: str, rotary: str | None, seed: int) -> None:
    assert is_close(*decode(FEATURES.replace(cache=cache, rotary=rotary, seed=seed)))


@pytest.mark.parametrize("cache", CACHES)
def test_a_plain_function_turns_queries_without_new_keys(cache: str) -> None:
    assert is_close(*decode(FEATURES.replace(cache=cache, rotary="half", lengths="keys", left_pad=False)))


@pytest.mark.parametrize("defect", [{"unpadded": True}, {"unturned": "q"}])
def test_a_function_that_pads_or_turns_otherwise_is_far_off(defect: dict[str, object]) -> None:
    assert not is_close(*decode(FEATURES.replace(rotary="half"), **defect))


@pytest.mark.parametrize("defect", [{"unturned": "k"}, {"misplaced": 1}, {"swapped": True}])
def test_keys_that_are_not_turned_as_they_should_be_are_refused(defect: dict[str, object]) -> None:
    with pytest.raises(KernelDefectError, match="k_cache: an appended key is not the turned one: off by "):
        decode(FEATURES.replace(rotary="half"), **defect)


def test_a_key_that_is_off_by_two_spacings_is_refused() -> None:
    """Budgets of appended keys are half a spacing and what is lost before it."""
    case = FEATURES.replace(dtype="bf16", rotary="half")
    inputs = regimes.draw(case)

    def careless(*tensors: torch.Tensor | None, **arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
        found = plain(*tensors, **arguments)  # type: ignore[arg-type]
        k_cache, places = tensors[1], cached.empty_cache(case, inputs).places
        assert k_cache is not None
        spot = k_cache.flatten(0, 1)[places[1, 69]]
        spot.view(torch.int16)[0, 0] += 2
        k_cache.flatten(0, 1)[places[1, 69]] = spot
        return found

    with pytest.raises(KernelDefectError, match="k_cache: an appended key is not the turned one: off by "):
        cached.decode(case, inputs, careless)
    cached.decode(case, inputs, plain)


def test_left_pads_and_angles_of_no_row_are_poison() -> None:
    case = FEATURES.replace(rotary="half", cache="paged")
    seen: dict[str, torch.Tensor] = {}

    def looks(*tensors: torch.Tensor | None, **arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
        seen.update({name: x for name, x in arguments.items() if isinstance(x, torch.Tensor)})
        assert tensors[1] is not None
        seen["k_cache"] = tensors[1].clone()
        return plain(*tensors, **arguments)  # type: ignore[arg-type]

    cached.decode(case, regimes.draw(case), looks)
    places = cached.empty_cache(case, regimes.draw(case)).places
    rows = seen["k_cache"].flatten(0, 1)[places].isnan().any(-1).any(-1)
    pads = torch.tensor(caches.left_pads(case))[:, None]
    columns = torch.arange(rows.shape[1])
    assert torch.equal(rows, (columns < pads) | (columns >= 67))
    finite = ~seen["rotary_cos"].isnan().all(1)
    assert torch.equal(finite, ~seen["rotary_sin"].isnan().all(1))
    assert finite.nonzero().flatten().tolist() == [67, 68, 69]
    assert len(finite) >= rows.shape[1]


def test_shared_pages_lie_in_the_same_place() -> None:
    table = cached.empty_cache(FEATURES, regimes.draw(FEATURES)).arguments["block_table"]
    for one in caches.shared_pages(FEATURES):
        assert table[one.entry, one.page] == table[one.owner, one.owners_page]
    used = table[table != cached.NOWHERE]
    assert used.numel() - used.unique().numel() == len(caches.shared_pages(FEATURES)) > 0


def test_entries_and_pages_lie_out_of_order() -> None:
    inputs = regimes.draw(CASE.replace(batch=8))
    table = cached.empty_cache(CASE.replace(batch=8), inputs).arguments["block_table"]
    used = table[table != cached.NOWHERE]
    assert not torch.equal(used, used.sort().values)
    entries = cached.empty_cache(CASE.replace(batch=8, cache="contiguous"), inputs).arguments["cache_batch_idx"]
    assert not torch.equal(entries, entries.sort().values)


def test_both_page_sizes_occur_in_the_smoke_matrix() -> None:
    assert {caches.page_size(case) for case in smoke() if case.cache == "paged"} == set(caches.PAGE_SIZES)


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
