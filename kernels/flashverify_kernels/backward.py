"""FlashAttention backward: dQ, dK, dV and dbias from the stored lse, deterministic and without atomics.

    P = exp(scale·S - lse),   delta = Σ_d dO·out - dlse,   dP = dO·Vᵀ,   dS = P·(dP - delta)
    dV = Pᵀ·dO,   dQ = scale·dS·K,   dK = scale·dSᵀ·Q

With a soft cap c, t = tanh(S·scale / c) takes the place of S and c that of scale in P, and dS gets the factor 1 - t², formed
without cancellation. Linear biases lower S as in the forward pass, and other biases and masks change it as there; of pairs that
they hide, P and dS are 0. Dropout (`dropout.py`), with Z = 1 for kept pairs and r their rescaling, has dV = r·(Z·P)ᵀ·dO and
dS = P·(Z·dP·r - delta). A sink is in lse, and P needs nothing else of it. dbias and dsink: see `dbias.py` and `dsink.py`.

The recomputation from lse is that of FlashAttention (Dao et al., arXiv 2205.14135). Two kernels own their outputs: one program
of `dkdv_kernel` a block of keys, summing over the query heads of its group, one program of `dq_kernel` a block of query rows.
The exponent is formed as (round(S·scale) - lse)·log2 e with contraction off: lse of a row that one key dominates is that same
rounded product, so its difference stays exact for logits of any size. P and dS are rounded to the inputs' dtype for products.
"""

import torch
import triton

from flashverify_kernels.dbias import bias_gradient
from flashverify_kernels.delta import row_statistics
from flashverify_kernels.dkdv import dkdv_kernel
from flashverify_kernels.dq import dq_kernel
from flashverify_kernels.dropout import Dropout, dropout_arguments
from flashverify_kernels.dsink import sink_gradient
from flashverify_kernels.launch import (
    EMULATE_BF16,
    TileOf,
    alibi_strides,
    bias_kind,
    dot_precision,
    expanded_bias,
    heads_at_once,
    loadable_bias,
    needs_wide_offsets,
    output_like,
    scale_bits,
    storage_of,
    tile_sources,
    with_strides,
)
from flashverify_kernels.packed import Packed, packed_arguments
from flashverify_kernels.tiles import TileConfig, padded_head_dim, stages_of


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
    bias: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
    dropout: Dropout | None = None,
    needs_bias_grad: bool = False,
    needs_sink_grad: bool = False,
    packed: Packed | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
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
        bias: the forward's bias or mask, (1|B, 1|Hq, 1|Nq, Nk), any strides, or None.
        sink: the forward's sinks, (Hq,), or None.
        dropout: the forward's dropout, or None.
        needs_bias_grad: whether to compute the gradient of a floating bias.
        needs_sink_grad: whether to compute that of sinks.
        packed: where sequences lie, as for the forward pass; gradients of rows that are no sequence's are 0.

    Returns:
        dq, dk, dv, dbias, dsink: the first three shaped like q, k, v, laid out as B,N,H,D in memory, the others shaped like
        bias and sink, contiguous, or None.
    """
    has_bias_grad = needs_bias_grad and bias is not None and bias.is_floating_point()
    bias = loadable_bias(bias, q.dtype)
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
        "BIAS": bias_kind(bias),
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
    bias_view = expanded_bias(bias, q, k)
    scores_of = (slopes, *with_strides(bias_view, 4))
    strides = (*q.stride(), *k.stride(), *v.stride(), *dout.stride())
    offsets = (0 if offset is None else offset for offset in (causal_offset, first_offset))
    factors = (scale_bits(scale), scale_bits(softcap or 0.0), *dropout_arguments(dropout))
    sizes = (seqlen_q, rows_lse.shape[2], seqlen_k, head_dim, *offsets, *factors)
    products = batch * heads_q * seqlen_q * seqlen_k * head_dim if packed is None else None

    def sources_of(tile: TileConfig) -> tuple[TileOf, ...]:
        rows, keys = tile.block_m, tile.block_n
        return (q, rows, block_d), (k, keys, block_d), (v, keys, block_dv), (dout, rows, block_dv)

    def wide(tile: TileConfig, *others: TileOf) -> bool:
        biases = () if bias_view is None else ((bias_view, tile.block_m, tile.block_n),)
        return needs_wide_offsets(*sources_of(tile), *biases, *others)

    def slots(rows: int, block: int) -> int:
        return triton.cdiv(rows, block) if packed is None or rows == 0 else packed.slots(rows, block)

    key_programs = slots(seqlen_k, dkdv_tile.block_n) * batch * heads_kv
    if key_programs:
        tile = dkdv_tile
        tiles = sources_of(tile)
        sources, has_descriptors = tile_sources(*tiles, products=products)
        section = max(1, heads_at_once(q, 1, batch * heads_q) // max(1, group_size))
        dkdv_kernel[(key_programs,)](
            *sources, rows_lse, rows_delta, *scores_of, dk, dv, *strides, *dk.stride(), *alibi_strides(alibi),
            *packed_arguments(packed), heads_kv, group_size, section, *sizes,
            WIDE=wide(tile, (dk, tile.block_n, block_d), (dv, tile.block_n, block_dv)),
            DESCRIPTORS=has_descriptors,
            BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, num_warps=tile.num_warps, num_stages=stages_of(tile, bias), **options,
        )  # fmt: skip
    query_programs = slots(seqlen_q, dq_tile.block_m) * batch * heads_q
    if query_programs:
        tile = dq_tile
        tiles = sources_of(tile)
        sources, has_descriptors = tile_sources(*tiles, products=products)
        dq_kernel[(query_programs,)](
            *sources, rows_lse, rows_delta, *scores_of, dq, *strides, *dq.stride(), *alibi_strides(alibi),
            *packed_arguments(packed), heads_q, group_size, heads_at_once(k, group_size, batch * heads_q), *sizes,
            WIDE=wide(tile, (dq, tile.block_m, block_d)), DESCRIPTORS=has_descriptors,
            BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, num_warps=tile.num_warps, num_stages=stages_of(tile, bias), **options,
        )  # fmt: skip
    dbias = dsink = None
    if has_bias_grad:
        inputs = dout, q, k, v, rows_lse, rows_delta
        dbias = bias_gradient(*inputs, bias, alibi, dq_tile, output_dtype, sizes, options)
    if needs_sink_grad and sink is not None:
        dsink = sink_gradient(rows_lse, rows_delta, sink, output_dtype)
    return dq, dk, dv, dbias, dsink
