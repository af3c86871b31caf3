"""A case's keys and values in a cache, as decoding reads them, and what a call must leave of the cache.

Batch entries lie out of order, in entries of their own or in pages that are dealt out at random, some of them shared, and
whatever no key of the case lies in holds NaN: other entries, pages of nobody, places beyond a sequence's length, and left pads.
The table's places beyond a sequence's pages hold an index far outside. The last keys are not in the cache but appended by the
call. The tables of angles have NaN at every position that no row has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from flashverify.adapters.contracts import flash_attention
from flashverify.adapters.kernel import KernelDefectError
from flashverify.cases import rotary
from flashverify.cases.caches import appended, left_pads, page_size, shared_pages
from flashverify.cases.case import AttentionCase
from flashverify.cases.lengths import lengths
from flashverify.cases.tensors import Inputs, Outputs
from flashverify.numerics.coefficients import Coefficients
from flashverify.numerics.contract import ORACLE_FLOAT64
from flashverify.numerics.rotation import turning_error

Decode = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""A function with the arguments of flash-attn's `flash_attn_with_kvcache` that returns out (B, N, H, D) and lse (B, H, N)."""

PLACES_BEYOND = 3
"""Places of an entry beyond the longest sequence, and entries and pages of nobody."""

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


def empty_cache(case: AttentionCase, inputs: Inputs) -> Cache:
    """A cache of a case that holds NaN everywhere."""
    device, capacity = inputs.k.device, capacity_of(case)
    paged = case.cache != "contiguous"
    rows = page_size(case) if paged else capacity
    needed = case.batch * capacity // rows
    shuffled = torch.randperm(needed + PLACES_BEYOND, generator=torch.Generator().manual_seed(case.seed))[:needed]
    owners = shuffled.reshape(case.batch, capacity // rows).to(device)
    for one in shared_pages(case):
        owners[one.entry, one.page] = owners[one.owner, one.owners_page]
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
    """Out and lse of a case whose keys are in a cache but for the last, which the call appends (`caches.appended`).

    Args:
        case: the case, with a cache.
        inputs: its inputs.
        function: what decodes.
        options: further arguments of the function.

    Raises:
        KernelDefectError: if the call leaves anything else in the caches than was there and was appended: bit for bit, but for
            appended keys that are turned, which lie within their budget (docs/numerics.md, lemma 17).
    """
    cache = empty_cache(case, inputs)
    q, k, v = (x.transpose(1, 2) for x in (inputs.q, inputs.k, inputs.v))
    keys = torch.tensor([keys for _, keys in lengths(case)], dtype=torch.int32, device=q.device)
    pads = torch.tensor(left_pads(case), dtype=torch.int32, device=q.device)
    new = appended(case)
    columns = torch.arange(case.seqlen_k, device=k.device)
    places = cache.places[:, : case.seqlen_k]
    before = (columns < (keys - new)[:, None]) & (columns >= pads[:, None])
    written = (columns < keys[:, None]) & (columns >= (keys - new)[:, None])
    caches = {"k_cache": cache.k, "v_cache": cache.v}
    whole = {}
    for (name, stored), x in zip(caches.items(), (k, v), strict=True):
        stored.flatten(0, 1)[places[before]] = x[before]
        whole[name] = stored.clone()
        whole[name].flatten(0, 1)[places[written]] = x[written]
    if case.left_pad:
        options["cache_leftpad"] = pads
    if case.rotary is not None:
        options |= tables(case, cache.capacity, q)
    given = bool(new) or case.rotary is not None  # angles come with new keys alone, of which there may be none
    appends = [x[written].reshape(case.batch, new, *x.shape[2:]) if given else None for x in (k, v)]
    out, lse = function(q, cache.k, cache.v, *appends, cache_seqlens=keys - new, **cache.arguments, **options)
    if case.rotary is not None:
        rows = cache.k.flatten(0, 1)[places[written]]
        _require_turned(case, inputs, rows, written)
        whole["k_cache"].flatten(0, 1)[places[written]] = rows
    for name, stored in caches.items():
        if not torch.equal(stored.view(torch.uint8), whole[name].view(torch.uint8)):  # bits: NaN is to stay NaN
            raise KernelDefectError(f"{name}: the call leaves other keys or values in it than were there and were appended")
    return Outputs(out=out.transpose(1, 2), lse=lse)


def tables(case: AttentionCase, capacity: int, q: torch.Tensor) -> dict[str, object]:
    """The arguments of rotary embedding: tables of angles of q's dtype and device, NaN at positions that no row has."""
    entries, keys = range(case.batch), range(case.seqlen_k)
    of_queries = {rotary.query_position(case, b, i) for b in entries for i in range(case.seqlen_q)}
    of_keys = {place for b in entries for j in keys if (place := rotary.key_position(case, b, j)) is not None}
    positions = sorted(of_queries | of_keys)
    cos, sin = q.new_full((2, max(capacity, *positions, 0) + 1, rotary.rotary_dim(case) // 2), torch.nan)
    for position in positions:
        for table, values in zip((cos, sin), rotary.angles(case, position), strict=True):
            table[position] = torch.tensor(values, dtype=torch.float64)
    return {"rotary_cos": cos, "rotary_sin": sin, "rotary_interleaved": case.rotary == "interleaved"}


def _require_turned(case: AttentionCase, inputs: Inputs, rows: torch.Tensor, written: torch.Tensor) -> None:
    """Raise unless rows (any number, heads_kv, head_dim) of the cache are the appended keys, turned within their budget.

    Args:
        case: the case.
        inputs: its inputs.
        rows: what the cache holds.
        written: bool (batch, seqlen_k), which keys those are.
    """
    _, keys = rotary.turned(case, inputs)
    exact, terms = (x.transpose(1, 2)[written] for x in (keys.values, keys.terms))
    contract = flash_attention(case.dtype, rows.device, block_q=None, block_k=1)  # the formats of any such kernel
    budget, radius = (turning_error(exact, terms, Coefficients(one)) for one in (contract, ORACLE_FLOAT64))
    error = (rows.double() - exact).abs()
    if not bool((error <= budget + radius).all()):
        worst = float(torch.where(error == 0.0, 0.0, error / (budget + radius)).nan_to_num(nan=torch.inf).max())
        raise KernelDefectError(
            f"k_cache: an appended key is not the turned one: off by {worst:.3g} times what rounding allows"
        )
