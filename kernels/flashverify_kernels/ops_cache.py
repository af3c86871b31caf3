"""Registration with `torch.library` of what works on a cache of keys: one operator writes, the other reads.

They are two so that a call that appends nothing changes nothing for the compiler either. Neither has a derivative.
"""

import torch
import triton

from flashverify_kernels.append import append
from flashverify_kernels.cache import capacity_of
from flashverify_kernels.decode import decode
from flashverify_kernels.decode_tiles import decode_tile, splits_for
from flashverify_kernels.launch import accumulator_of
from flashverify_kernels.ops import NAMESPACE, on_device_of
from flashverify_kernels.rotary import rotate
from flashverify_kernels.tiles import TileConfig


def _packed(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else x.contiguous()


@torch.library.custom_op(f"{NAMESPACE}::append_to_cache", mutates_args=("k_cache", "v_cache"))
def append_to_cache(
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rotary_cos: torch.Tensor | None,
    rotary_sin: torch.Tensor | None,
    seqlens: torch.Tensor | None,
    seqlen: int,
    entries: torch.Tensor | None,
    table: torch.Tensor | None,
    interleaved: bool,
) -> None:
    """Write k and v into the cache; see `append.append`."""
    with on_device_of(k_cache):
        places = _packed(seqlens), seqlen, _packed(entries), _packed(table)
        append(k_cache, v_cache, k, v, rotary_cos, rotary_sin, *places, interleaved)


@append_to_cache.register_fake
def _(
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rotary_cos: torch.Tensor | None,
    rotary_sin: torch.Tensor | None,
    seqlens: torch.Tensor | None,
    seqlen: int,
    entries: torch.Tensor | None,
    table: torch.Tensor | None,
    interleaved: bool,
) -> None:
    return None


@torch.library.custom_op(f"{NAMESPACE}::cached_attention", mutates_args=())
def cached_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    rotary_cos: torch.Tensor | None,
    rotary_sin: torch.Tensor | None,
    seqlens: torch.Tensor | None,
    seqlen: int,
    seqlen_new: int,
    entries: torch.Tensor | None,
    leftpad: torch.Tensor | None,
    table: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    alibi: torch.Tensor | None,
    right: int | None,
    left: int | None,
    advance: bool,
    interleaved: bool,
    splits: int,
    precision: str,
    tile: list[int] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention's out (B,N,H,D) and lse (B,H,N) on a cache: `rotary.rotate`, then `decode.decode`.

    splits: 0 leaves the number to `decode_tiles.splits_for`. tile: the four fields of a `TileConfig`, or None for the table's.
    """
    _, seqlen_q, heads_q, head_dim = q.shape
    heads_kv = k_cache.shape[2]
    rows = seqlen_q * (heads_q // heads_kv)
    capacity = capacity_of(k_cache, table)
    with on_device_of(q):
        if tile is None:
            chosen = decode_tile(q.device, q.dtype, head_dim, v_cache.shape[3], rows, table is not None)
        else:
            chosen = TileConfig(*tile)
        if splits == 0:
            programs = q.shape[0] * heads_kv * triton.cdiv(rows, chosen.block_m)
            splits = splits_for(q.device, programs, triton.cdiv(capacity, chosen.block_n))
        seqlens = _packed(seqlens)
        if rotary_cos is not None and rotary_sin is not None:
            turned = torch.empty(q.shape, dtype=q.dtype, device=q.device)
            rotate(q, turned, rotary_cos, rotary_sin, seqlens, seqlen, capacity, advance, interleaved)
            q = turned
        return decode(
            q, k_cache, v_cache, seqlens, seqlen, seqlen_new, _packed(entries), _packed(leftpad), _packed(table),
            scale, softcap, alibi, right, left, splits, precision, chosen,
        )  # fmt: skip


@cached_attention.register_fake
def _(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    rotary_cos: torch.Tensor | None,
    rotary_sin: torch.Tensor | None,
    seqlens: torch.Tensor | None,
    seqlen: int,
    seqlen_new: int,
    entries: torch.Tensor | None,
    leftpad: torch.Tensor | None,
    table: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    alibi: torch.Tensor | None,
    right: int | None,
    left: int | None,
    advance: bool,
    interleaved: bool,
    splits: int,
    precision: str,
    tile: list[int] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, seqlen_q, heads_q, _ = q.shape
    out = torch.empty((batch, seqlen_q, heads_q, v_cache.shape[3]), dtype=q.dtype, device=q.device)
    return out, torch.empty((batch, heads_q, seqlen_q), dtype=accumulator_of(q.dtype), device=q.device)
