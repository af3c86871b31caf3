"""The public functions for packed sequences of different lengths, with the arguments of flash-attn 2.8."""

import torch

from flashverify_kernels.api import FlashResult
from flashverify_kernels.bias_validation import resolve_sink
from flashverify_kernels.generator import RngState, resolve_state
from flashverify_kernels.ops_packed import packed_attention, packed_probabilities
from flashverify_kernels.packed_validation import check_longest, check_rows, check_starts, check_used
from flashverify_kernels.tiles import Tiles
from flashverify_kernels.validation import (
    check_bool,
    check_dropout,
    check_packed,
    check_precision,
    check_real,
    check_shapes,
    check_tensors,
    check_tiles,
    check_window,
    resolve_alibi,
    resolve_scale,
    resolve_softcap,
)


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: torch.Tensor | None = None,
    *,
    learnable_sink: torch.Tensor | None = None,
    seqused_q: torch.Tensor | None = None,
    seqused_k: torch.Tensor | None = None,
    rng_state: RngState = None,
    input_precision: str = "ieee",
    tiles: Tiles | None = None,
) -> FlashResult:
    """`flash_attn_func` of each of B sequences that lie one after another, with flash-attn 2.8's names and order.

    Sequence b has the rows cu_seqlens_q[b] .. cu_seqlens_q[b + 1] - 1 of q, and those of cu_seqlens_k of k and v; of them it
    uses seqused_q[b] and seqused_k[b], if given. Lengths may be 0. Causal masks, windows and linear biases are aligned
    bottom-right by each sequence's own lengths Nq and Nk. Work follows the lengths, not the longest of them. Rows that no
    sequence uses are not seen by any; out and gradients of them are 0, lse is -inf (flash-attn leaves them as they are).

    What only the GPU knows is not checked, since that would wait for it: cu_seqlens_q and cu_seqlens_k begin with 0 and
    ascend; a number beyond a tensor's end is cut off there, so that nothing outside is touched.

    Args:
        q: (rows of all, Hq, D), float16, bfloat16, float32 or float64, any strides, D from 1 to 256.
        k: (rows of all, Hkv, D), of q's dtype and device, any strides; Hkv divides Hq.
        v: (rows of all, Hkv, Dv), any strides, Dv from 1 to 256.
        cu_seqlens_q: int32 (B + 1,), where sequences begin in q, and where the last one ends.
        cu_seqlens_k: int32 (B + 1,), the same of k and v.
        max_seqlen_q: of the sequences in q: how many queries of each the probabilities show; nothing else depends on it.
        max_seqlen_k: of the sequences in k, likewise.
        dropout_p: as for `flash_attn_func`; b is the sequence, and queries and keys count from its start.
        softmax_scale: factor of QKᵀ, any finite number; None: 1/sqrt(D).
        causal: whether query i sees no key after i + Nk - Nq.
        window_size: (left, right), as for `flash_attn_func`.
        softcap: as for `flash_attn_func`.
        alibi_slopes: float32, (Hq,) or (B, Hq): logits are lowered by slope·|i + Nk - Nq - j|. They get no gradient.
        deterministic: accepted for compatibility; the backward pass always is.
        return_attn_probs: whether to return lse too, and with dropout the probabilities.
        block_table: None; pages of keys are there in `flash_attn_with_kvcache` alone.
        learnable_sink: as for `flash_attn_func`.
        seqused_q: int32 (B,): how many rows of each stretch of q are the sequence; None: all.
        seqused_k: int32 (B,): the same of k and v.
        rng_state: as for `flash_attn_func`.
        input_precision: as for `flash_attn_func`.
        tiles: as for `flash_attn_func`.

    Returns:
        out (rows of all, Hq, Dv); with return_attn_probs (out, lse, probabilities), lse the natural log-sum-exp (Hq, rows of
        all) in float32, or float64 for float64 inputs. The probabilities are those of `flash_attn_func`, (B, Hq, max_seqlen_q,
        max_seqlen_k), 0 beyond a sequence's lengths.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes, devices or ranges are wrong.
        NotImplementedError: a feature that is not there yet is asked for; the message names it.
    """
    if block_table is not None:
        accepted = "accepted is None; flash_attn_with_kvcache reads pages"
        raise NotImplementedError(f"block_table: got {type(block_table).__name__}, {accepted}")
    return _flash(
        (q, k, v), ("q", "k", "v"), ("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k),
        ("max_seqlen_q", max_seqlen_q), ("max_seqlen_k", max_seqlen_k), dropout_p, softmax_scale, causal, window_size, softcap,
        alibi_slopes, deterministic, return_attn_probs, learnable_sink, ("seqused_q", seqused_q), ("seqused_k", seqused_k),
        rng_state, input_precision, tiles,
    )  # fmt: skip


def flash_attn_varlen_qkvpacked_func(
    qkv: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    learnable_sink: torch.Tensor | None = None,
    seqused: torch.Tensor | None = None,
    rng_state: RngState = None,
    input_precision: str = "ieee",
    tiles: Tiles | None = None,
) -> FlashResult:
    """`flash_attn_varlen_func` of q, k and v that lie in one tensor, with flash-attn 2.8's names and order.

    Nothing is copied: they are read where they lie. What is not said here is as there.

    Args:
        qkv: (rows of all, 3, H, D), any strides.
        cu_seqlens: int32 (B + 1,), where sequences begin, and where the last one ends.
        max_seqlen: of the sequences; accepted for compatibility.
        dropout_p: as there.
        softmax_scale: as there.
        causal: as there.
        window_size: as there.
        softcap: as there.
        alibi_slopes: as there.
        deterministic: as there.
        return_attn_probs: as there.
        learnable_sink: as there.
        seqused: int32 (B,): how many rows of each stretch are the sequence; None: all.
        rng_state: as there.
        input_precision: as there.
        tiles: as there.
    """
    check_packed("qkv", qkv, 3, "rows of all")
    starts, longest, used = ("cu_seqlens", cu_seqlens), ("max_seqlen", max_seqlen), ("seqused", seqused)
    return _flash(
        qkv.unbind(1), ("qkv", "qkv", "qkv"), starts, starts, longest, longest, dropout_p, softmax_scale, causal, window_size,
        softcap, alibi_slopes, deterministic, return_attn_probs, learnable_sink, used, used, rng_state, input_precision, tiles,
    )  # fmt: skip


def flash_attn_varlen_kvpacked_func(
    q: torch.Tensor,
    kv: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    learnable_sink: torch.Tensor | None = None,
    seqused_q: torch.Tensor | None = None,
    seqused_k: torch.Tensor | None = None,
    rng_state: RngState = None,
    input_precision: str = "ieee",
    tiles: Tiles | None = None,
) -> FlashResult:
    """`flash_attn_varlen_func` of k and v that lie in one tensor, with flash-attn 2.8's names and order.

    Nothing is copied: they are read where they lie. What is not said here is as there.

    Args:
        q: (rows of all, Hq, D), any strides.
        kv: (rows of all, 2, Hkv, D), any strides; Hkv divides Hq.
        cu_seqlens_q: as there.
        cu_seqlens_k: as there.
        max_seqlen_q: as there.
        max_seqlen_k: as there.
        dropout_p: as there.
        softmax_scale: as there.
        causal: as there.
        window_size: as there.
        softcap: as there.
        alibi_slopes: as there.
        deterministic: as there.
        return_attn_probs: as there.
        learnable_sink: as there.
        seqused_q: as there.
        seqused_k: as there.
        rng_state: as there.
        input_precision: as there.
        tiles: as there.
    """
    check_packed("kv", kv, 2, "rows of all")
    return _flash(
        (q, *kv.unbind(1)), ("q", "kv", "kv"), ("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k),
        ("max_seqlen_q", max_seqlen_q), ("max_seqlen_k", max_seqlen_k), dropout_p, softmax_scale, causal, window_size, softcap,
        alibi_slopes, deterministic, return_attn_probs, learnable_sink, ("seqused_q", seqused_q), ("seqused_k", seqused_k),
        rng_state, input_precision, tiles,
    )  # fmt: skip


Named = tuple[str, object]
"""An argument by its name in messages."""


def _flash(
    tensors: tuple[torch.Tensor, ...],
    names: tuple[str, str, str],
    starts_q: Named,
    starts_k: Named,
    longest_q: Named,
    longest_k: Named,
    dropout_p: float,
    softmax_scale: float | None,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
    alibi_slopes: torch.Tensor | None,
    deterministic: bool,
    return_attn_probs: bool,
    learnable_sink: torch.Tensor | None,
    used_q: Named,
    used_k: Named,
    rng_state: RngState,
    input_precision: str,
    tiles: Tiles | None,
) -> FlashResult:
    """What the three functions share; `names` are what q, k and v are called in messages."""
    named = tuple(zip(names, tensors, strict=True))
    check_tensors(named, dims=3)
    device = tensors[0].device
    sequences = check_starts((starts_q, starts_k), device)
    for longest in (longest_q, longest_k):
        check_longest(*longest)
    for used in (used_q, used_k):
        check_used(*used, sequences, device)
    check_rows(named)
    for name, flag in (("causal", causal), ("deterministic", deterministic), ("return_attn_probs", return_attn_probs)):
        check_bool(name, flag)
    check_dropout("dropout_p", dropout_p)
    left, right = check_window("window_size", window_size)
    check_real("softcap", softcap)
    q, k, v = (x[None].transpose(1, 2) for x in tensors)
    check_shapes(q, k, v, names)
    check_precision("input_precision", input_precision)
    forced = check_tiles("tiles", tiles)
    scale = resolve_scale("softmax_scale", softmax_scale, q)
    cap = resolve_softcap("softcap", softcap, scale, q.dtype)
    slopes = resolve_alibi("alibi_slopes", alibi_slopes, q, sequences)
    sink = resolve_sink("learnable_sink", learnable_sink, q)
    everything = q.shape[2] + k.shape[2]
    last = 0 if causal else right
    last = None if last is None or last >= everything > 0 else last
    first = None if left is None or left >= everything else -left
    where = starts_q[1], starts_k[1], used_q[1], used_k[1]
    state = resolve_state("rng_state", rng_state, q, k.shape[2], dropout_p)
    options = scale, cap, slopes, last, first, input_precision
    out, lse = packed_attention(q, k, v, sink, *where, *options, forced, dropout_p, state)
    out, rows_lse = out[0].transpose(0, 1), lse[0]
    if not return_attn_probs:
        return out
    if state is None:
        return out, rows_lse, None
    with torch.no_grad():
        probs = packed_probabilities(q, k, lse, *where, longest_q[1], longest_k[1], *options, dropout_p, state)
    return out, rows_lse, probs
