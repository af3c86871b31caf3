"""The public functions: attention with the arguments of flash-attn 2.8, and with those of torch.

Note on `input_precision`. "ieee": products of float32 are float32's own. "bf16x6" and "tf32x3" make each of six products of
bfloat16 or three of tf32, summed in float32, on tensor cores; what they leave out is of the order of float32's roundoff. A
"bf16x6" factor beyond bfloat16's largest number becomes infinite. "tf32" rounds factors to 11 bits.
"""

import torch

from flashverify_kernels.autocast import cast_as_autocast
from flashverify_kernels.bias_validation import resolve_bias, resolve_mask, resolve_sink
from flashverify_kernels.generator import RngState, resolve_state
from flashverify_kernels.ops import attention, probabilities
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
    window_offsets,
)

FlashResult = torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Out alone, or out, lse, and probabilities or None."""


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    attn_bias: torch.Tensor | None = None,
    learnable_sink: torch.Tensor | None = None,
    rng_state: RngState = None,
    input_precision: str = "ieee",
    tiles: Tiles | None = None,
) -> FlashResult:
    """softmax(softmax_scale·QKᵀ)V with the layout, the names and the order of flash-attn 2.8.

    Causal masks are aligned bottom-right: query i sees key j iff j <= i + Nk - Nq. A row that sees no key gives out 0 and
    lse -inf (flash-attn gives +inf), and its gradients are 0. Query head h reads key head h // (Hq / Hkv). The backward pass
    is deterministic whatever `deterministic` says. out and lse are differentiable. `torch.autocast` changes nothing, as with
    flash-attn: inputs are taken in the dtypes that they have.

    Args:
        q: (B, Nq, Hq, D), float16, bfloat16, float32 or float64, any strides, D from 1 to 256.
        k: (B, Nk, Hkv, D), of q's dtype and device, any strides; Hkv divides Hq.
        v: (B, Nk, Hkv, Dv), any strides, Dv from 1 to 256.
        dropout_p: drop rate, from 0 to 1: the share of probabilities that are set to 0, while the others are multiplied by what
            makes up for it. lse is that of all. To be 0 in evaluation.
        softmax_scale: factor of QKᵀ, any finite number; None: 1/sqrt(D).
        causal: whether query i sees no key after i + Nk - Nq.
        window_size: (left, right): query i sees keys i + Nk - Nq - left .. i + Nk - Nq + right alone; -1: no such limit. With
            causal, right is 0. Unlike in flash-attn, -1 is no limit where Nq > Nk and the other side is limited too.
        softcap: logits x become softcap·tanh(x / softcap) before anything is hidden; 0: they stay. From 2^-20 to 2^40.
        alibi_slopes: float32, (Hq,) or (B, Hq): logits are lowered by slope·|i + Nk - Nq - j|. They get no gradient.
        deterministic: accepted for compatibility; the backward pass always is.
        return_attn_probs: whether to return lse too, and with dropout the probabilities.
        attn_bias: (1|B, 1|Hq, 1|Nq, Nk), any strides, bool, of q's dtype, or of lse's. Floating: it is added to logits after
            softcap and alibi_slopes, -inf hides a pair, and it gets a gradient of its own shape. bool: False hides a pair.
        learnable_sink: (Hq,), of q's dtype or lse's: one more logit for each head's denominators, not scaled and without a
            value, so that lse = ln(exp(sink) + Σ exp(logits)). A row that sees no key has lse = sink. It gets a gradient.
        rng_state: dropout's seed and offset: two integers (64 bits each, the offset a multiple of 4), or int64 (2,) of their
            bits, on that device; None: torch's generator of the device, which is advanced by the words that are used.
        input_precision: of float32 products: "ieee" (float32), "bf16x6", "tf32x3" or "tf32". Other dtypes ignore it.
        tiles: forces tile sizes, for verification; None: the table's.

    Returns:
        out (B, Nq, Hq, Dv); with return_attn_probs (out, lse, probabilities), lse the natural log-sum-exp (B, Hq, Nq) in
        float32, or float64 for float64 inputs. The probabilities, None without dropout, are (B, Hq, Nq, Nk), of q's dtype and
        without a gradient: before rescaling, with the sign bit set where one is dropped, -0 if it is 0 (`torch.signbit`). They
        take memory of Nq·Nk, and are for looking at.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes, devices or ranges are wrong.
    """
    return _flash(
        (q, k, v), ("q", "k", "v"), dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic,
        return_attn_probs, attn_bias, learnable_sink, rng_state, input_precision, tiles,
    )  # fmt: skip


def flash_attn_qkvpacked_func(
    qkv: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    attn_bias: torch.Tensor | None = None,
    learnable_sink: torch.Tensor | None = None,
    rng_state: RngState = None,
    input_precision: str = "ieee",
    tiles: Tiles | None = None,
) -> FlashResult:
    """`flash_attn_func` of q, k and v that lie in one tensor, with flash-attn 2.8's names and order.

    Nothing is copied: they are read where they lie. Arguments, results and errors but for qkv are those of `flash_attn_func`.

    Args:
        qkv: (B, N, 3, H, D), any strides.
        dropout_p: as there.
        softmax_scale: as there.
        causal: as there.
        window_size: as there.
        softcap: as there.
        alibi_slopes: as there.
        deterministic: as there.
        return_attn_probs: as there.
        attn_bias: as there.
        learnable_sink: as there.
        rng_state: as there.
        input_precision: as there.
        tiles: as there.
    """
    check_packed("qkv", qkv, 3)
    return _flash(
        qkv.unbind(2), ("qkv", "qkv", "qkv"), dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
        deterministic, return_attn_probs, attn_bias, learnable_sink, rng_state, input_precision, tiles,
    )  # fmt: skip


def flash_attn_kvpacked_func(
    q: torch.Tensor,
    kv: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    attn_bias: torch.Tensor | None = None,
    learnable_sink: torch.Tensor | None = None,
    rng_state: RngState = None,
    input_precision: str = "ieee",
    tiles: Tiles | None = None,
) -> FlashResult:
    """`flash_attn_func` of k and v that lie in one tensor, with flash-attn 2.8's names and order.

    Nothing is copied: they are read where they lie. Arguments, results and errors but for kv are those of `flash_attn_func`.

    Args:
        q: (B, Nq, Hq, D), any strides.
        kv: (B, Nk, 2, Hkv, D), any strides; Hkv divides Hq.
        dropout_p: as there.
        softmax_scale: as there.
        causal: as there.
        window_size: as there.
        softcap: as there.
        alibi_slopes: as there.
        deterministic: as there.
        return_attn_probs: as there.
        attn_bias: as there.
        learnable_sink: as there.
        rng_state: as there.
        input_precision: as there.
        tiles: as there.
    """
    check_packed("kv", kv, 2)
    return _flash(
        (q, *kv.unbind(2)), ("q", "kv", "kv"), dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
        deterministic, return_attn_probs, attn_bias, learnable_sink, rng_state, input_precision, tiles,
    )  # fmt: skip


def _flash(
    tensors: tuple[torch.Tensor, ...],
    names: tuple[str, str, str],
    dropout_p: float,
    softmax_scale: float | None,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
    alibi_slopes: torch.Tensor | None,
    deterministic: bool,
    return_attn_probs: bool,
    attn_bias: torch.Tensor | None,
    learnable_sink: torch.Tensor | None,
    rng_state: RngState,
    input_precision: str,
    tiles: Tiles | None,
) -> FlashResult:
    """What flash-attn's functions share; `names` are what q, k and v are called in messages."""
    check_tensors(tuple(zip(names, tensors, strict=True)))
    check_bool("causal", causal)
    check_bool("deterministic", deterministic)
    check_bool("return_attn_probs", return_attn_probs)
    check_dropout("dropout_p", dropout_p)
    left, right = check_window("window_size", window_size)
    check_real("softcap", softcap)
    q, k, v = (x.transpose(1, 2) for x in tensors)
    check_shapes(q, k, v, names)
    check_precision("input_precision", input_precision)
    forced = check_tiles("tiles", tiles)
    scale = resolve_scale("softmax_scale", softmax_scale, q)
    cap = resolve_softcap("softcap", softcap, scale, q.dtype)
    slopes = resolve_alibi("alibi_slopes", alibi_slopes, q)
    bias = resolve_bias("attn_bias", attn_bias, q, k)
    sink = resolve_sink("learnable_sink", learnable_sink, q)
    visible = window_offsets(q.shape[2], k.shape[2], left, 0 if causal else right)
    state = resolve_state("rng_state", rng_state, q, k.shape[2], dropout_p)
    out, lse = attention(q, k, v, scale, cap, slopes, bias, sink, *visible, input_precision, forced, dropout_p, state)
    out = out.transpose(1, 2)
    if not return_attn_probs:
        return out
    if state is None:
        return out, lse, None
    with torch.no_grad():
        probs = probabilities(q, k, lse, scale, cap, slopes, bias, *visible, input_precision, dropout_p, state)
    return out, lse, probs


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    rng_state: RngState = None,
    input_precision: str = "ieee",
    tiles: Tiles | None = None,
) -> torch.Tensor:
    """softmax(scale·QKᵀ)V with the signature and the meaning of `torch.nn.functional.scaled_dot_product_attention`.

    Causal masks are aligned top-left, as torch's are: query i sees key j iff j <= i. Where `torch.autocast` is enabled, query,
    key, value and a floating attn_mask are cast to its dtype first, as it does for torch's; float64 stays.

    Args:
        query: (B, Hq, Nq, D), float16, bfloat16, float32 or float64, any strides, D from 1 to 256.
        key: (B, Hkv, Nk, D), of query's dtype and device, any strides; Hkv = Hq unless enable_gqa.
        value: (B, Hkv, Nk, Dv), any strides, Dv from 1 to 256.
        attn_mask: 2 to 4 dimensions that broadcast to (B, Hq, Nq, Nk), any strides: bool, False hiding a pair, or of query's
            dtype or the accumulator's (float32, for float64 float64), added to logits, -inf hiding a pair; it gets a gradient.
            A query that sees no key gives out 0. None with is_causal.
        dropout_p: drop rate, from 0 to 1; whether a model is trained is not known here, as in torch's.
        is_causal: whether query i sees no key after i.
        scale: factor of QKᵀ, any finite number; None: 1/sqrt(D).
        enable_gqa: whether Hkv may be a proper divisor of Hq.
        rng_state: dropout's seed and offset: two integers (64 bits each, the offset a multiple of 4), or int64 (2,) of their
            bits, on that device; None: torch's generator of the device, which is advanced by the words that are used.
        input_precision: of float32 products: "ieee" (float32), "bf16x6", "tf32x3" or "tf32". Other dtypes ignore it.
        tiles: forces tile sizes, for verification; None: the table's.

    Returns:
        out (B, Hq, Nq, Dv).

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes, devices or ranges are wrong.
    """
    query, key, value, attn_mask = (cast_as_autocast(x) for x in (query, key, value, attn_mask))
    check_tensors((("query", query), ("key", key), ("value", value)))
    check_bool("is_causal", is_causal)
    check_bool("enable_gqa", enable_gqa)
    check_dropout("dropout_p", dropout_p)
    check_shapes(query, key, value, ("query", "key", "value"))
    if not enable_gqa and key.shape[1] != query.shape[1]:
        accepted = f"query's number, {query.shape[1]}, unless enable_gqa=True"
        raise ValueError(f"key: got {key.shape[1]} heads, accepted is {accepted}")
    if attn_mask is not None and is_causal:
        raise ValueError("attn_mask: got a value beside is_causal=True, accepted is None or is_causal=False")
    bias = resolve_mask("attn_mask", attn_mask, query, key)
    check_precision("input_precision", input_precision)
    forced = check_tiles("tiles", tiles)
    resolved = resolve_scale("scale", scale, query)
    visible = 0 if is_causal else None, None
    state = resolve_state("rng_state", rng_state, query, key.shape[2], dropout_p)
    out, _ = attention(
        query, key, value, resolved, None, None, bias, None, *visible, input_precision, forced, dropout_p, state
    )  # fmt: skip
    return out
