"""The package `flashverify_kernels` decoding from a cache: what it runs a case with, and how."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

from flashverify.adapters import cached
from flashverify.cases.case import AttentionCase
from flashverify.cases.semantics import by_entry, sides
from flashverify.cases.tensors import Inputs, Outputs
from flashverify.numerics.formats import TORCH_DTYPES


class TritonDecoder:
    """The decoding part of the package, or of a copy of it under another name."""

    def __init__(self, package: ModuleType, device: torch.device) -> None:
        """The decoder of a package on a device."""
        self._decode = package.flash_attn_with_kvcache
        self._tiles: ModuleType = importlib.import_module(f"{package.__name__}.decode_tiles")
        self._device = device

    def walk(self, case: AttentionCase) -> dict[str, object]:
        """What the contract states of the walk over keys. Parts are shared out by what a block of rows sees: see `splits`."""
        tile, splits = self._chosen(case)
        rows = case.seqlen_q * case.group_size
        of_a_block = case.mask == "full" or rows <= tile.block_m
        sees_all = of_a_block and sides(case)[0] is None and case.window_right is None and not by_entry(case)
        return {"block_q": None, "block_k": tile.block_n, "splits": splits if splits == 1 or sees_all else None}

    def configuration(self, case: AttentionCase) -> dict[str, str]:
        """Tile and number of parts."""
        tile, splits = self._chosen(case)
        shape = f"{tile.block_m}x{tile.block_n}, {tile.num_warps} warps, {tile.num_stages} stages"
        return {"decode": shape, "parts of the keys": str(splits)}

    def run(self, case: AttentionCase, inputs: Inputs, **options: object) -> Outputs:
        """Out and lse; `options` are those that all functions of flash-attn have."""
        return cached.decode(case, inputs, self._decode, return_softmax_lse=True, **options)

    def _chosen(self, case: AttentionCase):  # type: ignore[no-untyped-def]  # the package is imported late
        """The tile, and the number of parts that the keys are split into."""
        rows = case.seqlen_q * case.group_size
        sizes = TORCH_DTYPES[case.dtype], case.head_dim, case.value_dim
        tile = self._tiles.decode_tile(self._device, *sizes, rows, case.cache != "contiguous")
        programs = case.batch * case.heads_kv * -(-rows // tile.block_m)
        return tile, self._tiles.splits_for(self._device, programs, -(-cached.capacity_of(case) // tile.block_n))
