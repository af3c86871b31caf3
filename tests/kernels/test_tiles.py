"""The tile tables: whole, well-formed, and found by device, dtype, head size and visibility."""

from __future__ import annotations

import itertools

import pytest
import torch
from flashverify_kernels import TileConfig, Tiles, tiles
from flashverify_kernels.tiles import HEAD_DIMS, SPLIT_TABLES, TABLES, architecture, entry, padded_head_dim, tiles_for

from tests.kernels.reference import attention
from tests.kernels.support import DTYPES, RESULTS, draw, run

KEYS = set(itertools.product(HEAD_DIMS, (False, True)))
LARGEST_TENSOR = 2**20
"""Elements of Triton's largest tensor."""


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_every_row(name: str) -> None:
    assert set(TABLES[name]) == set(DTYPES)
    for rows in TABLES[name].values():
        assert set(rows) == KEYS
        for (head_dim, _), row in rows.items():
            for tile in (row.forward, row.dkdv, row.dq):
                assert isinstance(tile, TileConfig)
                assert max(tile.block_m, tile.block_n) * max(head_dim, tile.block_m, tile.block_n) <= LARGEST_TENSOR


@pytest.mark.parametrize("name", TABLES)
def test_float32_in_other_precisions_has_every_row(name: str) -> None:
    assert set(SPLIT_TABLES[name]) == KEYS
    assert set(SPLIT_TABLES) == set(TABLES)


def test_precision_chooses_the_table_of_float32_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "architecture", lambda _: "sm90")
    device = torch.device("cuda", 0)
    assert tiles_for(device, torch.float32, 64, 64, False) == TABLES["sm90"][torch.float32][64, False]
    assert tiles_for(device, torch.float32, 64, 64, False, "bf16x6") == SPLIT_TABLES["sm90"][64, False]
    assert tiles_for(device, torch.bfloat16, 64, 64, False, "bf16x6") == TABLES["sm90"][torch.bfloat16][64, False]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "masked"), sorted(KEYS))
def test_dropout_keeps_the_keys_of_forward_tiles(name: str, dtype: torch.dtype, head_dim: int, masked: bool) -> None:
    """lse is summed by tiles of keys: others would give it other bits with dropout than without."""
    for value_dim in (16, head_dim):
        plain, dropping = (entry(name, dtype, head_dim, value_dim, masked, dropout=dropout) for dropout in (False, True))
        assert plain.forward.block_n == dropping.forward.block_n


def test_tables_by_name() -> None:
    assert set(TABLES) >= {"interpreter", "sm80", "sm90"}


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 1)])
def test_a_device_without_a_table_gets_that_of_an_older_one(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    name = architecture(torch.device("cuda", 0))
    assert name == ("sm80" if capability < (9, 0) else "sm90") or name not in {"sm80", "sm90"}
    assert int(name.removeprefix("sm")) <= 10 * capability[0] + capability[1]


def test_a_device_older_than_every_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    with pytest.raises(ValueError, match=r"device: got compute capability 7.5, accepted are 8.0 and newer"):
        architecture(torch.device("cuda", 0))


@pytest.mark.parametrize("head_dim", range(1, 257))
def test_every_head_size_has_tiles(head_dim: int, device: torch.device) -> None:
    padded = padded_head_dim(head_dim)
    assert padded in HEAD_DIMS
    assert head_dim <= padded < 2 * max(head_dim, 16)
    for dtype in DTYPES:
        assert tiles_for(device, dtype, head_dim, head_dim, True) == TABLES[architecture(device)][dtype][padded, True]


@pytest.mark.parametrize(("head_dim", "value_dim", "keys"), [(64, 24, 32), (128, 32, 32), (64, 33, 64), (24, 64, 64)])
def test_narrow_values_have_fewer_keys_on_hopper(head_dim: int, value_dim: int, keys: int) -> None:
    wide = TABLES["sm90"][torch.bfloat16][padded_head_dim(max(head_dim, value_dim)), True]
    tiles = entry("sm90", torch.bfloat16, head_dim, value_dim, True)
    assert tiles.forward.block_n == keys
    assert (tiles.dkdv, tiles.dq) == (wide.dkdv, wide.dq)
    assert entry("sm80", torch.bfloat16, head_dim, value_dim, True) in TABLES["sm80"][torch.bfloat16].values()


def test_flattened_tiles_come_back() -> None:
    each = Tiles(TileConfig(16, 32, 1, 2), TileConfig(64, 128, 2, 3), TileConfig(256, 512, 4, 5))
    assert each.flatten() == [16, 32, 1, 2, 64, 128, 2, 3, 256, 512, 4, 5]
    assert Tiles.unflatten(each.flatten()) == each


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_fits_the_device_and_gives_finite_results(
    dtype: torch.dtype, head_dim: int, causal: bool, device: torch.device
) -> None:
    inputs = draw((1, 2, 1, 200, 210, head_dim), dtype, device)
    results = run(*inputs, causal_offset=10 if causal else None)
    assert all(x.isfinite().all() for x in results.values())
    if dtype == torch.float64:
        expected = attention(*inputs, causal_offset=10 if causal else None)
        assert max(expected.worst(name, results[name]) for name in RESULTS) <= 1.0


@pytest.mark.parametrize(("available", "refused"), [(99 * 1024, True), (163 * 1024, False), (227 * 1024, False)])
def test_float64_at_the_largest_head_size_wants_shared_memory(
    available: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Properties:
        shared_memory_per_block_optin = available

    monkeypatch.setattr(tiles, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    device = torch.device("cuda", 0)
    assert tiles_for(device, torch.float64, 128, 128, True)
    assert tiles_for(device, torch.bfloat16, 256, 256, True)
    if not refused:
        assert tiles_for(device, torch.float64, 129, 1, False)
        return
    with pytest.raises(NotImplementedError, match=f"head size: got 129 in float64, .* this device has {available}; accepted"):
        tiles_for(device, torch.float64, 129, 1, False)
