"""FlashAttention backward: dQ, dK and dV from the stored lse, deterministic and without atomics.

    P = exp(scale·S - lse),   delta = Σ_d dO·out - dlse,   dP = dO·Vᵀ,   dS = P·(dP - delta)
    dV = Pᵀ·dO,   dQ = scale·dS·K,   dK = scale·dSᵀ·Q

With a soft cap c, t = tanh(S·scale / c) takes the place of S and c that of scale in P, and dS gets the factor 1 - t², formed
without cancellation. Linear biases lower S as in the forward pass.

The recomputation from lse is that of FlashAttention (Dao et al., arXiv 2205.14135). Two kernels own their outputs: one program
of `dkdv_kernel` a block of keys, summing over the query heads of its group, one program of `dq_kernel` a block of query rows.
The exponent is formed as (round(S·scale) - lse)·log2 e with contraction off: lse of a row that one key dominates is that same
rounded product, so its difference stays exact for logits of any size. P and dS are rounded to the inputs' dtype for products.
"""

import torch
import triton

from flashverify_kernels.delta import row_statistics
from flashverify_kernels.dkdv import dkdv_kernel
from flashverify_kernels.dq import dq_kernel
from flashverify_kernels.launch import (
    EMULATE_BF16,
    TileOf,
    alibi_strides,
    dot_precision,
    heads_at_once,
    needs_wide_offsets,
    output_like,
    scale_bits,
    storage_of,
    tile_sources,
)
from flashverify_kernels.tiles import TileConfig, padded_head_dim


def attention_backward(
    dout: torch.Tensor,
    dlse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    causal_offset: int | None,
    first_offset: int | None,
    precision: str,
    dkdv_tile: TileConfig,
    dq_tile: TileConfig,
    output_dtype: torch.dtype | None = None,
    softcap: float | None = None,
    alibi: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launch the backward kernels.

    Args:
        dout: cotangent of out, (B, Hq, Nq, Dv), any strides.
        dlse: cotangent of lse, (B, Hq, Nq), or None.
        q: (B, Hq, Nq, D), any strides.
        k: (B, Hkv, Nk, D), any strides.
        v: (B, Hkv, Nk, Dv), any strides.
        out: the forward's output, any strides.
        lse: the forward's lse, (B, Hq, Nq), contiguous.
        scale: softmax scale.
        causal_offset: query i sees no key after i + causal_offset; None: no such limit.
        first_offset: query i sees no key before i + first_offset; None: no such limit.
        precision: Triton's input precision of float32 products.
        dkdv_tile: block sizes, warps and stages of the dK/dV kernel.
        dq_tile: the same of the dQ kernel.
        output_dtype: dtype that the gradients are rounded to; None: that of q.
        softcap: logits were softcap·tanh(logit / softcap); None: they were not capped.
        alibi: slopes (B, Hq) of linear biases, float32, any strides; None: there were none.

    Returns:
        dq, dk, dv: shaped like q, k, v, laid out as B,N,H,D in memory.
    """
    batch, heads_q, seqlen_q, head_dim = q.shape
    heads_kv, seqlen_k = k.shape[1], k.shape[2]
    dq, dk, dv = (output_like(x, output_dtype) for x in (q, k, v))
    rows_lse, rows_delta = row_statistics(dout, dlse, out, lse, max(dkdv_tile.block_m, dq_tile.block_m))
    value_dim = v.shape[3]
    block_d, block_dv = padded_head_dim(head_dim), padded_head_dim(value_dim)
    group_size = heads_q // heads_kv
    options = {
        "CAUSAL": causal_offset is not None,
        "WINDOW": first_offset is not None,
        "SOFTCAP": softcap is not None,
        "ALIBI": alibi is not None,
        "SIGNED": scale <= 0.0,
        "BLOCK_D": block_d,
        "BLOCK_DV": block_dv,
        "CHECK_D": block_d != head_dim,
        "CHECK_DV": block_dv != value_dim,
        "VALUE_DIM": 0 if value_dim == head_dim else value_dim,
        "STORAGE": storage_of(q.dtype),
        "ACCUMULATOR": storage_of(lse.dtype),
        "PRECISION": dot_precision(precision),
        "BF16": EMULATE_BF16 and q.dtype == torch.bfloat16,
        "enable_fp_fusion": False,  # see the module's docstring: the exponent's difference must not be contracted
    }
    slopes = rows_lse if alibi is None else alibi
    strides = (*q.stride(), *k.stride(), *v.stride(), *dout.stride())
    offsets = (0 if offset is None else offset for offset in (causal_offset, first_offset))
    sizes = (seqlen_q, rows_lse.shape[2], seqlen_k, head_dim, *offsets, scale_bits(scale), scale_bits(softcap or 0.0))
    products = batch * heads_q * seqlen_q * seqlen_k * head_dim

    def sources_of(tile: TileConfig) -> tuple[TileOf, ...]:
        rows, keys = tile.block_m, tile.block_n
        return (q, rows, block_d), (k, keys, block_d), (v, keys, block_dv), (dout, rows, block_dv)

    key_programs = triton.cdiv(seqlen_k, dkdv_tile.block_n) * batch * heads_kv
    if key_programs:
        tile = dkdv_tile
        tiles = sources_of(tile)
        sources, has_descriptors = tile_sources(*tiles, products=products)
        section = max(1, heads_at_once(q, 1, batch * heads_q) // max(1, group_size))
        dkdv_kernel[(key_programs,)](
            *sources, rows_lse, rows_delta, slopes, dk, dv, *strides, *dk.stride(), *alibi_strides(alibi),
            heads_kv, group_size, section, *sizes,
            WIDE=needs_wide_offsets(*tiles, (dk, tile.block_n, block_d), (dv, tile.block_n, block_dv)),
            DESCRIPTORS=has_descriptors,
            BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, num_warps=tile.num_warps, num_stages=tile.num_stages, **options,
        )  # fmt: skip
    query_programs = triton.cdiv(seqlen_q, dq_tile.block_m) * batch * heads_q
    if query_programs:
        tile = dq_tile
        tiles = sources_of(tile)
        sources, has_descriptors = tile_sources(*tiles, products=products)
        dq_kernel[(query_programs,)](
            *sources, rows_lse, rows_delta, slopes, dq, *strides, *dq.stride(), *alibi_strides(alibi),
            heads_q, group_size, heads_at_once(k, group_size, batch * heads_q), *sizes,
            WIDE=needs_wide_offsets(*tiles, (dq, tile.block_m, block_d)), DESCRIPTORS=has_descriptors,
            BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, num_warps=tile.num_warps, num_stages=tile.num_stages, **options,
        )  # fmt: skip
    return dq, dk, dv
