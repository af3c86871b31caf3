"""The public function for decoding with a cache of keys and values, with the arguments of flash-attn 2.8."""

import torch

from flashverify_kernels.cache_validation import (
    check_caches,
    check_integers,
    check_new,
    check_no_gradients,
    check_rotary,
    check_splits,
    resolve_capacity,
    resolve_seqlens,
)
from flashverify_kernels.ops_cache import append_to_cache, cached_attention
from flashverify_kernels.validation import (
    check_bool,
    check_precision,
    check_tensors,
    check_window,
    resolve_alibi,
    resolve_scale,
    resolve_softcap,
)


def flash_attn_with_kvcache(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
    rotary_cos: torch.Tensor | None = None,
    rotary_sin: torch.Tensor | None = None,
    cache_seqlens: int | torch.Tensor | None = None,
    cache_batch_idx: torch.Tensor | None = None,
    cache_leftpad: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: torch.Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
    *,
    input_precision: str = "ieee",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention of q to a cache of keys and values, to which k and v are appended in place first; flash-attn 2.8's arguments.

    Batch entry b attends to Nk = cache_seqlens[b] + N keys, N new ones among them (0 without k and v): keys
    cache_leftpad[b] .. Nk - 1 of its place in the cache. Causal masks, windows and biases are aligned bottom-right: query i has
    the place i + Nk - Nq. A row that sees no key gives out 0 and lse -inf (flash-attn: +inf). Query head h reads key head
    h // (Hq / Hkv). There is no backward pass. docs/kv-cache.md has the formulas, and where this differs from flash-attn.

    What only the GPU knows is not checked, since that would wait for it: lengths in a tensor are cut off at 0 and at the
    cache's capacity, and new keys beyond the capacity are neither written nor seen; indices in cache_batch_idx and, within a
    sequence's length, in block_table are trusted. Nothing of the cache beyond a sequence's length is read, nor any element of
    block_table that stands for keys beyond it.

    Args:
        q: (B, Nq, Hq, D), float16, bfloat16, float32 or float64, any strides, D from 1 to 256.
        k_cache: (entries, capacity, Hkv, D), of q's dtype and device, any strides; with block_table (pages, page size, Hkv, D),
            page size a multiple of 16. Hkv divides Hq.
        v_cache: as k_cache, with Dv columns, from 1 to 256.
        k: new keys (B, N, Hkv, D), written to k_cache from place cache_seqlens[b] on; None: none.
        v: new values (B, N, Hkv, Dv), likewise.
        rotary_cos: cosines (positions, R / 2) of rotary embedding, of q's dtype or float32, with at least as many positions as
            the cache; R a multiple of 16, at most D. New keys are turned by the angles of their place in the cache (from its
            front, cache_leftpad or not), query i by those of cache_seqlens[b] + i if causal or a window is given, else of
            cache_seqlens[b]; columns from R on stay. A position beyond the table gives NaN. Only with k and v.
        rotary_sin: sines, as rotary_cos.
        cache_seqlens: how many keys the cache holds before k and v: an integer, or int32 (B,); None: all, only without k and v.
        cache_batch_idx: int32 (B,): the cache's entry of each batch entry; None: the first B. Where k and v are appended and
            indices repeat, either one's rows may be what is written.
        cache_leftpad: int32 (B,): as many keys at the front are not seen; None: 0.
        block_table: int32 (B, pages of a sequence): key j lies in page block_table[b, j // page size]; None: no pages.
        softmax_scale: factor of QKᵀ, any finite number; None: 1/sqrt(D).
        causal: whether query i sees no key after i + Nk - Nq.
        window_size: (left, right): query i sees keys i + Nk - Nq - left .. i + Nk - Nq + right alone; -1: no such limit. With
            causal, right is 0.
        softcap: logits x become softcap·tanh(x / softcap) before anything is hidden; 0: they stay. From 2^-20 to 2^40.
        rotary_interleaved: whether columns (2i, 2i + 1) turn together (GPT-J), else (i, i + R / 2) (GPT-NeoX).
        alibi_slopes: float32, (Hq,) or (B, Hq): logits are lowered by slope·|i + Nk - Nq - j|.
        num_splits: into how many parts the keys are split, up to 128; 0: chosen here.
        return_softmax_lse: whether to return lse too.
        input_precision: of float32 products: "ieee" (float32), "bf16x6", "tf32x3" or "tf32". Other dtypes ignore it.

    Returns:
        out (B, Nq, Hq, Dv); with return_softmax_lse (out, lse), lse the natural log-sum-exp (B, Hq, Nq) in float32, or float64
        for float64 inputs.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes, devices or ranges are wrong, or arguments don't go together.
        NotImplementedError: a tensor requires a gradient while gradients are recorded.
    """
    new = tuple((name, x) for name, x in (("k", k), ("v", v)) if x is not None)
    check_tensors((("q", q), ("k_cache", k_cache), ("v_cache", v_cache), *new))
    for name, flag in (
        ("causal", causal),
        ("rotary_interleaved", rotary_interleaved),
        ("return_softmax_lse", return_softmax_lse),
    ):
        check_bool(name, flag)
    check_caches(q, k_cache, v_cache)
    capacity = resolve_capacity(q, k_cache, cache_batch_idx, block_table)
    tokens = check_new(q, k_cache, v_cache, k, v, capacity)
    appends = k is not None
    seqlens, seqlen = resolve_seqlens(cache_seqlens, q, tokens, appends, capacity)
    if cache_leftpad is not None:
        check_integers("cache_leftpad", cache_leftpad, q)
    check_rotary(rotary_cos, rotary_sin, q, appends, capacity)
    left, right = check_window("window_size", window_size)
    if causal:
        right = 0
    advance = left is not None or right is not None
    everything = capacity + tokens + q.shape[1]
    left, right = (None if side is None or side >= everything else side for side in (left, right))
    scale = resolve_scale("softmax_scale", softmax_scale, q)
    cap = resolve_softcap("softcap", softcap, scale, q.dtype)
    alibi = resolve_alibi("alibi_slopes", alibi_slopes, q.transpose(1, 2))
    splits = check_splits("num_splits", num_splits)
    check_precision("input_precision", input_precision)
    check_no_gradients((
        ("q", q), ("k_cache", k_cache), ("v_cache", v_cache), ("k", k), ("v", v),
        ("rotary_cos", rotary_cos), ("rotary_sin", rotary_sin),
    ))  # fmt: skip

    if k is not None and v is not None and tokens > 0:
        append_to_cache(
            k_cache, v_cache, k, v, rotary_cos, rotary_sin, seqlens, seqlen, cache_batch_idx, block_table, rotary_interleaved
        )
    out, lse = cached_attention(
        q, k_cache, v_cache, rotary_cos, rotary_sin, seqlens, seqlen, tokens, cache_batch_idx, cache_leftpad, block_table,
        scale, cap, alibi, right, left, advance, rotary_interleaved, splits, input_precision, None,
    )  # fmt: skip
    return (out, lse) if return_softmax_lse else out
