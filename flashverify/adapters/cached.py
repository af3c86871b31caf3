"""A case's keys and values in a cache, as decoding reads them, and what a call must leave of the cache.

Batch entries lie out of order, in entries of their own or in pages that are dealt out at random, and whatever no key of the
case lies in holds NaN: other entries, pages of nobody, places beyond a sequence's length. The table's places beyond a
sequence's pages hold an index far outside. The last keys are not in the cache but appended by the call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from flashverify.adapters.kernel import KernelDefectError
from flashverify.cases.case import AttentionCase
from flashverify.cases.lengths import lengths
from flashverify.cases.tensors import Inputs, Outputs

Decode = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""A function with the arguments of flash-attn's `flash_attn_with_kvcache` that returns out (B, N, H, D) and lse (B, H, N)."""

PLACES_BEYOND = 3
"""Places of an entry beyond the longest sequence, and entries and pages of nobody."""

PAGE_SIZES = (16, 256)
"""Keys of a page, by turns: smaller than any tile, so that a tile has several, and larger than all."""

NOWHERE = 2**30
"""An index that no cache has."""


@dataclass(frozen=True)
class Cache:
    """Caches of keys and values with where batch entries lie in them.

    Attributes:
        k: (entries, capacity, heads_kv, head_dim), or (pages, page size, heads_kv, head_dim).
        v: likewise, with value_dim columns.
        places: int64 (batch, capacity): where in the flattened first two axes each place of each batch entry lies.
        arguments: `cache_batch_idx`, or `block_table`.
    """

    k: torch.Tensor
    v: torch.Tensor
    places: torch.Tensor
    arguments: dict[str, torch.Tensor]

    @property
    def capacity(self) -> int:
        """Keys that a sequence has room for."""
        return self.places.shape[1]


def capacity_of(case: AttentionCase) -> int:
    """Keys that a sequence has room for in the cache of a case."""
    room = case.seqlen_k + PLACES_BEYOND
    return room if case.cache == "contiguous" else -(-room // page_size(case)) * page_size(case)


def page_size(case: AttentionCase) -> int:
    """Keys of a page of a paged case."""
    return PAGE_SIZES[case.seed % len(PAGE_SIZES)]


def empty_cache(case: AttentionCase, inputs: Inputs) -> Cache:
    """A cache of a case that holds NaN everywhere."""
    device, capacity = inputs.k.device, capacity_of(case)
    paged = case.cache == "paged"
    rows = page_size(case) if paged else capacity
    needed = case.batch * capacity // rows
    shuffled = torch.randperm(needed + PLACES_BEYOND, generator=torch.Generator().manual_seed(case.seed))[:needed]
    owners = shuffled.reshape(case.batch, capacity // rows).to(device)
    places = (owners[:, :, None] * rows + torch.arange(rows, device=device)).reshape(case.batch, capacity)
    if paged:
        used = -(-case.seqlen_k // rows)
        table = owners.int()
        table[:, used:] = NOWHERE
        arguments = {"block_table": table}
    else:
        arguments = {"cache_batch_idx": owners[:, 0].int()}
    shape = (needed + PLACES_BEYOND, rows, case.heads_kv)
    k, v = (inputs.k.new_full((*shape, columns), torch.nan) for columns in (case.head_dim, case.value_dim))
    return Cache(k, v, places, arguments)


def decode(case: AttentionCase, inputs: Inputs, function: Decode, **options: object) -> Outputs:
    """Out and lse of a case whose keys are in a cache but for the last, which the call appends.

    Those are as many as queries, or as the shortest sequence has keys.

    Args:
        case: the case, with a cache.
        inputs: its inputs.
        function: what decodes.
        options: further arguments of the function.

    Raises:
        KernelDefectError: if the call leaves anything else in the caches than was there and was appended.
    """
    cache = empty_cache(case, inputs)
    q, k, v = (x.transpose(1, 2) for x in (inputs.q, inputs.k, inputs.v))
    keys = torch.tensor([keys for _, keys in lengths(case)], dtype=torch.int32, device=q.device)
    new = min(case.seqlen_q, case.seqlen_k, *keys.tolist())
    columns = torch.arange(case.seqlen_k, device=k.device)
    places = cache.places[:, : case.seqlen_k]
    before, after = columns < (keys - new)[:, None], columns < keys[:, None]
    caches = {"k_cache": cache.k, "v_cache": cache.v}
    whole = {}
    for (name, stored), x in zip(caches.items(), (k, v), strict=True):
        stored.flatten(0, 1)[places[before]] = x[before]
        whole[name] = stored.clone()
        whole[name].flatten(0, 1)[places[after]] = x[after]
    appended = [x[after & ~before].reshape(case.batch, new, *x.shape[2:]) if new else None for x in (k, v)]
    out, lse = function(q, cache.k, cache.v, *appended, cache_seqlens=keys - new, **cache.arguments, **options)
    for name, stored in caches.items():
        if not torch.equal(stored.view(torch.uint8), whole[name].view(torch.uint8)):  # bits: NaN is to stay NaN
            raise KernelDefectError(f"{name}: the call leaves other keys or values in it than were there and were appended")
    return Outputs(out=out.transpose(1, 2), lse=lse)
