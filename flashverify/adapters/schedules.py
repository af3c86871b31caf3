"""Other schedules of our kernels than those that they choose: tiles, warps and stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from flashverify.cases.case import AttentionCase
from flashverify.numerics.formats import TORCH_DTYPES

INTERPRETER = "interpreter"
SIZES = ((16, 16), (16, 32), (32, 16))
"""Rows and keys of other tiles in the interpreter, whose table has one entry and neither warps nor stages."""

ONE_WARP_GROUP = 4
"""Warps of a tile, at least: so many share a product of Hopper's tensor cores."""


def other_tiles(tables: ModuleType, own: Any, case: AttentionCase, device: torch.device, precision: str) -> list[Any]:
    """Tiles of larger heads, which fit smaller ones, under either kind of mask; and a case's own with other warps and stages.

    Args:
        tables: the module of our kernels that has the tables.
        own: the case's own tiles.
        case: the case.
        device: where it runs.
        precision: of float32 products.
    """
    name, dtype = tables.architecture(device), TORCH_DTYPES[case.dtype]
    if name == INTERPRETER:
        return [tables.Tiles(*(tables.TileConfig(rows, keys),) * 3) for rows, keys in SIZES]
    largest = tables.padded_head_dim(max(case.head_dim, case.value_dim))
    wider = [size for size in tables.HEAD_DIMS if size >= largest]
    given = precision, bool(case.dropout)
    found = [tables.entry(name, dtype, size, case.value_dim, masked, *given) for size in wider for masked in (False, True)]
    found.append(_changed(own, "num_warps", lambda warps: warps // 2 if warps > ONE_WARP_GROUP else 2 * warps))
    found.append(_changed(own, "num_stages", lambda stages: stages - 1 if stages > 1 else 2))
    return [tiles for tiles in dict.fromkeys(found) if tiles != own]


def _changed(tiles: Any, field: str, change: Callable[[int], int]) -> Any:
    """Tiles with one field of each kernel's changed."""
    kernels = (tiles.forward, tiles.dkdv, tiles.dq)
    return type(tiles)(*(dataclasses.replace(tile, **{field: change(getattr(tile, field))}) for tile in kernels))
