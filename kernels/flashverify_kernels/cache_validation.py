"""Validation of arguments about a cache: all of it comes before anything is launched, and so before anything is written."""

import numbers

import torch

from flashverify_kernels.validation import MAX_HEAD_DIM, dtype_name, shown

PAGE_MULTIPLE = 16
"""Keys of a page are a multiple of it."""

MOST_KEYS = 2**30
"""Keys that a sequence may have, so that places of queries and keys, and their distances, are 32-bit integers."""

MOST_SPLITS = 128
ROTARY_MULTIPLE = 16
"""Columns that are turned are a multiple of it, as in flash-attn."""


def check_caches(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor) -> None:
    """Shapes of q (B, Nq, Hq, D), k_cache (., ., Hkv, D) and v_cache (., ., Hkv, Dv).

    Raises:
        ValueError: if they don't fit together.
    """
    for name, size in (("q", q.shape[3]), ("v_cache", v_cache.shape[3])):
        if not 1 <= size <= MAX_HEAD_DIM:
            raise ValueError(f"{name}: got head size {size}, accepted are head sizes from 1 to {MAX_HEAD_DIM}")
    if k_cache.shape[3] != q.shape[3]:
        raise ValueError(f"k_cache: got head size {k_cache.shape[3]}, accepted is q's, {q.shape[3]}")
    if v_cache.shape[:3] != k_cache.shape[:3]:
        accepted = f"k_cache's but for the head size, {tuple(k_cache.shape[:3])}"
        raise ValueError(f"v_cache: got shape {tuple(v_cache.shape)}, accepted is {accepted}")
    heads_q, heads_kv = q.shape[2], k_cache.shape[2]
    if heads_kv == 0 or heads_q % heads_kv:
        accepted = "a divisor of the number of query heads"
        raise ValueError(f"k_cache: got {heads_kv} heads, accepted is {accepted}, {heads_q}")


def check_integers(name: str, x: object, q: torch.Tensor, dimensions: int = 1) -> None:
    """Raise unless x is an int32 tensor on q's device with a row for each batch entry.

    Raises:
        TypeError: if it is no dense tensor of int32.
        ValueError: if its shape or device is wrong.
    """
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name}: got {shown(x)}, accepted are an int32 tensor and None")
    if x.is_nested or x.layout != torch.strided or x.dtype != torch.int32:
        kind = "a nested tensor" if x.is_nested else f"dtype {dtype_name(x.dtype)}, layout {x.layout}"
        raise TypeError(f"{name}: got {kind}, accepted are dense tensors of int32")
    if x.dim() != dimensions or x.shape[0] != q.shape[0]:
        # Formed here alone: a symbolic size that is printed becomes a constant, and other batches are compiled anew.
        shape = f"({q.shape[0]},)" if dimensions == 1 else f"({q.shape[0]}, pages of a sequence)"
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, accepted is {shape}")
    if x.device != q.device:
        raise ValueError(f"{name}: got a tensor on {x.device}, accepted is q's device, {q.device}")


def resolve_capacity(
    q: torch.Tensor, k_cache: torch.Tensor, cache_batch_idx: torch.Tensor | None, block_table: torch.Tensor | None
) -> int:
    """How many keys of a sequence the cache holds.

    Raises:
        TypeError: if cache_batch_idx or block_table is no int32 tensor.
        ValueError: if they don't fit q and k_cache, if both are given, or if the capacity is too large.
    """
    if block_table is not None:
        check_integers("block_table", block_table, q, 2)
        if cache_batch_idx is not None:
            raise ValueError(
                "cache_batch_idx: got a tensor beside block_table, accepted is None: a page table has its own rows"
            )
        page_size = k_cache.shape[1]
        if page_size == 0 or page_size % PAGE_MULTIPLE:
            raise ValueError(f"k_cache: got pages of {page_size} keys, accepted are positive multiples of {PAGE_MULTIPLE}")
        capacity = block_table.shape[1] * page_size
    else:
        capacity = k_cache.shape[1]
        if cache_batch_idx is not None:
            check_integers("cache_batch_idx", cache_batch_idx, q)
        elif k_cache.shape[0] < q.shape[0]:
            accepted = f"at least q's batch size, {q.shape[0]}, without cache_batch_idx"
            raise ValueError(f"k_cache: got {k_cache.shape[0]} entries, accepted are {accepted}")
    if capacity + q.shape[1] > MOST_KEYS:
        raise ValueError(f"k_cache: got room for {capacity} keys beside {q.shape[1]} queries, accepted are {MOST_KEYS} of both")
    return capacity


def check_new(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, k: torch.Tensor | None, v: torch.Tensor | None, capacity: int
) -> int:
    """Shapes of new keys (B, N, Hkv, D) and values (B, N, Hkv, Dv), and that the caches can be written; N.

    Raises:
        ValueError: if one comes without the other, if shapes don't fit, or if elements of a cache share memory.
    """
    if k is None or v is None:
        if k is not None or v is not None:
            given, other = ("k", "v") if v is None else ("v", "k")
            raise ValueError(f"{given}: got a tensor without {other}, accepted are both and neither")
        return 0
    tokens = k.shape[1]
    for name, x, cache in (("k", k, k_cache), ("v", v, v_cache)):
        shape = (q.shape[0], tokens, cache.shape[2], cache.shape[3])
        if tuple(x.shape) != shape:
            raise ValueError(f"{name}: got shape {tuple(x.shape)}, accepted is {shape}")
        if any(size > 1 and stride == 0 for size, stride in zip(cache.shape, cache.stride(), strict=True)):
            raise ValueError(
                f"{name}_cache: got an expanded tensor, accepted for appending are elements with memory of their own"
            )
    if tokens > capacity:
        raise ValueError(f"k: got {tokens} new keys, accepted are at most as many as the cache has room for, {capacity}")
    return tokens


def resolve_seqlens(
    value: object, q: torch.Tensor, tokens: int, appends: bool, capacity: int
) -> tuple[torch.Tensor | None, int]:
    """The cache's lengths as a tensor (B,) and None, or as one integer for all.

    Raises:
        TypeError: if the value is no integer, tensor of int32, or None.
        ValueError: if a tensor has the wrong shape or device; if an integer is negative or leaves no room; if it is None
            where keys are appended.
    """
    if value is None:
        if appends:
            raise ValueError("cache_seqlens: got None beside k and v, accepted are an integer and an int32 tensor")
        return None, capacity
    if isinstance(value, torch.Tensor):
        check_integers("cache_seqlens", value, q)
        return value, 0
    if isinstance(value, bool) or not isinstance(value, numbers.Integral | torch.SymInt):
        raise TypeError(f"cache_seqlens: got {shown(value)}, accepted are an integer, an int32 tensor and None")
    length = value if isinstance(value, torch.SymInt) else int(value)
    if not 0 <= length <= capacity - tokens:
        accepted = f"lengths from 0 to {capacity - tokens}: the cache has room for {capacity} keys, {tokens} are new"
        raise ValueError(f"cache_seqlens: got {length}, accepted are {accepted}")
    return None, length


def check_rotary(
    rotary_cos: torch.Tensor | None, rotary_sin: torch.Tensor | None, q: torch.Tensor, appends: bool, capacity: int
) -> None:
    """Tables of angles (positions, rotary dim / 2).

    Raises:
        TypeError: if one is no dense tensor of q's dtype or float32.
        ValueError: if one comes without the other or without k and v, or if shapes or devices are wrong.
    """
    if rotary_cos is None or rotary_sin is None:
        if rotary_cos is not None or rotary_sin is not None:
            given, other = ("rotary_cos", "rotary_sin") if rotary_sin is None else ("rotary_sin", "rotary_cos")
            raise ValueError(f"{given}: got a tensor without {other}, accepted are both and neither")
        return
    for name, x in (("rotary_cos", rotary_cos), ("rotary_sin", rotary_sin)):
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name}: got {type(x).__name__}, accepted are a torch.Tensor and None")
        if x.is_nested or x.layout != torch.strided or x.dtype not in (q.dtype, torch.float32):
            kind = "a nested tensor" if x.is_nested else f"dtype {dtype_name(x.dtype)}, layout {x.layout}"
            raise TypeError(
                f"{name}: got {kind}, accepted are dense tensors of q's dtype, {dtype_name(q.dtype)}, and of float32"
            )
        if x.device != q.device:
            raise ValueError(f"{name}: got a tensor on {x.device}, accepted is q's device, {q.device}")
    if not appends:
        raise ValueError(
            "rotary_cos: got a tensor without k and v, accepted is None: keys in the cache have been turned already"
        )
    if rotary_cos.dim() != 2 or rotary_cos.shape[0] < capacity:
        accepted = f"(positions, rotary dim / 2) with at least {capacity} positions, the cache's"
        raise ValueError(f"rotary_cos: got shape {tuple(rotary_cos.shape)}, accepted is {accepted}")
    rotary_dim = 2 * rotary_cos.shape[1]
    if rotary_dim % ROTARY_MULTIPLE or not 0 < rotary_dim <= q.shape[3]:
        accepted = f"positive multiples of {ROTARY_MULTIPLE} up to q's head size, {q.shape[3]}"
        raise ValueError(f"rotary_cos: got a rotary dim of {rotary_dim}, accepted are {accepted}")
    if rotary_sin.shape != rotary_cos.shape or rotary_sin.dtype != rotary_cos.dtype:
        found = f"shape {tuple(rotary_sin.shape)}, dtype {dtype_name(rotary_sin.dtype)}"
        accepted = f"rotary_cos's, {tuple(rotary_cos.shape)}, {dtype_name(rotary_cos.dtype)}"
        raise ValueError(f"rotary_sin: got {found}, accepted is {accepted}")


def check_splits(name: str, value: object) -> int:
    """The number of parts, 0 for the kernels' choice.

    Raises:
        TypeError: if it is no integer.
        ValueError: if it is negative or too large.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: got {shown(value)}, accepted are integers")
    if not 0 <= value <= MOST_SPLITS:
        raise ValueError(f"{name}: got {value}, accepted are integers from 0 (chosen here) to {MOST_SPLITS}")
    return int(value)


def check_no_gradients(named: tuple[tuple[str, object], ...]) -> None:
    """Raise NotImplementedError if a gradient could be asked for: there is no backward pass through a cache."""
    if not torch.is_grad_enabled():
        return
    for name, x in named:
        if isinstance(x, torch.Tensor) and x.requires_grad:
            accepted = "a detached tensor, or a call under torch.no_grad()"
            raise NotImplementedError(
                f"{name}: got a tensor that requires a gradient; there is no backward pass, accepted is {accepted}"
            )
