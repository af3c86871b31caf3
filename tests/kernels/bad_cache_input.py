"""Calls that the function with a cache refuses, and the table of what it says: `python -m tests.kernels.bad_cache_input`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tests.kernels.bad_input import BadCall, printed, write


@dataclass(frozen=True)
class BadCacheCall(BadCall):
    """A refused call of `flash_attn_with_kvcache`.

    `q` (2, 1, 4, 32), `K` and `V` (2, 64, 2, 32), the caches, and `k` and `v` (2, 1, 2, 32) are good float32 tensors, `n` are
    good int32 lengths (2,), `pool` is a cache (8, 16, 2, 32) of pages, `table` a good page table (2, 4), `cos` (64, 8) a good
    table of angles, and `x(...)` a float32, `i(...)` an int32 tensor of another shape.
    """

    def run(self, device: torch.device) -> None:
        eval(self.source, namespace(device))


def namespace(device: torch.device) -> dict[str, object]:
    """The names that a call may use."""
    from flashverify_kernels import flash_attn_with_kvcache

    def x(*shape: int) -> torch.Tensor:
        return torch.ones(shape, device=device)

    def i(*shape: int) -> torch.Tensor:
        return torch.ones(shape, dtype=torch.int32, device=device)

    tensors = {"q": x(2, 1, 4, 32), "K": x(2, 64, 2, 32), "V": x(2, 64, 2, 32), "k": x(2, 1, 2, 32), "v": x(2, 1, 2, 32)}
    places = {"n": i(2), "pool": x(8, 16, 2, 32), "table": i(2, 4), "cos": x(64, 8)}
    return {**tensors, **places, "x": x, "i": i, "torch": torch, "cached": flash_attn_with_kvcache}


def _rows(error: type[Exception], *rows: tuple[str, tuple[str, ...]]) -> tuple[BadCall, ...]:
    return tuple(BadCacheCall(source, error, words) for source, words in rows)


_INT32 = "dense tensors of int32"

TYPES = _rows(
    TypeError,
    ("cached(None, K, V)", ("q: got NoneType", "torch.Tensor")),
    ("cached(q, [K], V)", ("k_cache: got list", "torch.Tensor")),
    ("cached(q, K, V.half())", ("v_cache: got dtype float16", "q's, float32")),
    ("cached(q, K.int(), V)", ("k_cache: got dtype int32", "float16, bfloat16, float32, float64")),
    ("cached(q, K, V, k.double(), v, cache_seqlens=n)", ("k: got dtype float64", "q's, float32")),
    ("cached(q, K, V, k, 1.0, cache_seqlens=n)", ("v: got float", "torch.Tensor")),
    ("cached(q, K, V, cache_seqlens=1.0)", ("cache_seqlens: got 1.0 of type float", "an int32 tensor and None")),
    ("cached(q, K, V, cache_seqlens=True)", ("cache_seqlens: got True of type bool", "an integer")),
    ("cached(q, K, V, cache_seqlens=[1, 2])", ("cache_seqlens: got [1, 2] of type list", "an integer")),
    ("cached(q, K, V, cache_seqlens=n.long())", ("cache_seqlens: got dtype int64", _INT32)),
    ("cached(q, K, V, cache_batch_idx=[0, 1])", ("cache_batch_idx: got [0, 1] of type list", "int32 tensor and None")),
    ("cached(q, K, V, cache_batch_idx=n.long())", ("cache_batch_idx: got dtype int64", _INT32)),
    ("cached(q, K, V, cache_leftpad=3)", ("cache_leftpad: got 3 of type int", "int32 tensor and None")),
    ("cached(q, K, V, cache_leftpad=x(2))", ("cache_leftpad: got dtype float32", _INT32)),
    ("cached(q, pool, pool, block_table=table.tolist())", ("block_table: got", "of type list", "int32 tensor and None")),
    ("cached(q, pool, pool, block_table=table.long())", ("block_table: got dtype int64", _INT32)),
    ("cached(q, K, V, k, v, [1.0], cos, n)", ("rotary_cos: got list", "torch.Tensor and None")),
    ("cached(q, K, V, k, v, cos.half(), cos.half(), n)", ("rotary_cos: got dtype float16", "q's dtype, float32")),
    ("cached(q, K, V, causal=1)", ("causal: got 1 of type int", "True and False")),
    ("cached(q, K, V, rotary_interleaved=None)", ("rotary_interleaved: got None", "True and False")),
    ("cached(q, K, V, return_softmax_lse='yes')", ("return_softmax_lse: got 'yes'", "True and False")),
    ("cached(q, K, V, num_splits=2.0)", ("num_splits: got 2.0 of type float", "integers")),
    ("cached(q, K, V, num_splits=True)", ("num_splits: got True of type bool", "integers")),
    ("cached(q, K, V, window_size=5)", ("window_size: got 5 of type int", "pairs of integers")),
    ("cached(q, K, V, softmax_scale='1')", ("softmax_scale: got '1' of type str", "real numbers")),
    ("cached(q, K, V, softcap=None)", ("softcap: got None", "real numbers")),
    ("cached(q, K, V, alibi_slopes=[0.5])", ("alibi_slopes: got list", "torch.Tensor and None")),
    ("cached(q, K, V, input_precision=32)", ("input_precision: got 32 of type int", "ieee, bf16x6, tf32x3, tf32")),
)

VALUES = _rows(
    ValueError,
    ("cached(x(2, 4, 32), K, V)", ("q: got 3 dimensions", "4 dimensions")),
    ("cached(x(2, 1, 4, 300), x(2, 64, 2, 300), V)", ("q: got head size 300", "from 1 to 256")),
    ("cached(q, K, x(2, 64, 2, 0))", ("v_cache: got head size 0", "from 1 to 256")),
    ("cached(q, x(2, 64, 2, 16), V)", ("k_cache: got head size 16", "q's, 32")),
    ("cached(q, K, x(2, 63, 2, 32))", ("v_cache: got shape (2, 63, 2, 32)", "(2, 64, 2)")),
    ("cached(q, x(2, 64, 3, 32), x(2, 64, 3, 32))", ("k_cache: got 3 heads", "number of query heads, 4")),
    ("cached(q, x(2, 64, 0, 32), x(2, 64, 0, 32))", ("k_cache: got 0 heads", "number of query heads, 4")),
    ("cached(q, K[:1], V[:1])", ("k_cache: got 1 entries", "at least q's batch size, 2")),
    ("cached(q, K, V, k, cache_seqlens=n)", ("k: got a tensor without v", "both and neither")),
    ("cached(q, K, V, v=v, cache_seqlens=n)", ("v: got a tensor without k", "both and neither")),
    ("cached(q, K, V, k, v)", ("cache_seqlens: got None beside k and v", "an int32 tensor")),
    ("cached(q, K, V, k[:1], v, cache_seqlens=n)", ("k: got shape (1, 1, 2, 32)", "(2, 1, 2, 32)")),
    ("cached(q, K, V, k, x(2, 2, 2, 32), cache_seqlens=n)", ("v: got shape (2, 2, 2, 32)", "(2, 1, 2, 32)")),
    ("cached(q, K, V, x(2, 1, 4, 32), v, cache_seqlens=n)", ("k: got shape (2, 1, 4, 32)", "(2, 1, 2, 32)")),
    ("cached(q, K, V, x(2, 65, 2, 32), x(2, 65, 2, 32), cache_seqlens=n)", ("k: got 65 new keys", "room for, 64")),
    ("cached(q, K[:1].expand(2, -1, -1, -1), V, k, v, cache_seqlens=n)", ("k_cache: got an expanded tensor", "their own")),
    ("cached(q, K, V, cache_seqlens=65)", ("cache_seqlens: got 65", "from 0 to 64")),
    ("cached(q, K, V, cache_seqlens=-1)", ("cache_seqlens: got -1", "from 0 to 64")),
    ("cached(q, K, V, k, v, cache_seqlens=64)", ("cache_seqlens: got 64", "from 0 to 63", "1 are new")),
    ("cached(q, K, V, cache_seqlens=i(3))", ("cache_seqlens: got shape (3,)", "(2,)")),
    ("cached(q, K, V, cache_batch_idx=i(2, 1))", ("cache_batch_idx: got shape (2, 1)", "(2,)")),
    ("cached(q, K, V, cache_leftpad=i(1))", ("cache_leftpad: got shape (1,)", "(2,)")),
    ("cached(q, pool, pool, block_table=i(3, 4))", ("block_table: got shape (3, 4)", "(2, pages of a sequence)")),
    ("cached(q, pool, pool, block_table=i(2))", ("block_table: got shape (2,)", "(2, pages of a sequence)")),
    (
        "cached(q, pool, pool, cache_batch_idx=n, block_table=table)",
        ("cache_batch_idx: got a tensor beside block_table", "None"),
    ),
    ("cached(q, pool[:, :15], pool[:, :15], block_table=table)", ("k_cache: got pages of 15 keys", "multiples of 16")),
    ("cached(q, pool[:, :0], pool[:, :0], block_table=table)", ("k_cache: got pages of 0 keys", "multiples of 16")),
    ("cached(q, pool, pool, block_table=i(2, 1).expand(2, 2**27))", ("k_cache: got room for 2147483648 keys", "1073741824")),
    ("cached(q, K, V, k, v, cos, None, n)", ("rotary_cos: got a tensor without rotary_sin", "both and neither")),
    ("cached(q, K, V, k, v, None, cos, n)", ("rotary_sin: got a tensor without rotary_cos", "both and neither")),
    ("cached(q, K, V, rotary_cos=cos, rotary_sin=cos)", ("rotary_cos: got a tensor without k and v", "accepted is None")),
    ("cached(q, K, V, k, v, x(63, 8), x(63, 8), n)", ("rotary_cos: got shape (63, 8)", "at least 64 positions")),
    ("cached(q, K, V, k, v, x(64), x(64), n)", ("rotary_cos: got shape (64,)", "(positions, rotary dim / 2)")),
    ("cached(q, K, V, k, v, x(64, 4), x(64, 4), n)", ("rotary_cos: got a rotary dim of 8", "multiples of 16 up to q's")),
    ("cached(q, K, V, k, v, x(64, 0), x(64, 0), n)", ("rotary_cos: got a rotary dim of 0", "multiples of 16 up to q's")),
    ("cached(q, K, V, k, v, x(64, 24), x(64, 24), n)", ("rotary_cos: got a rotary dim of 48", "head size, 32")),
    ("cached(q, K, V, k, v, cos, x(65, 8), n)", ("rotary_sin: got shape (65, 8)", "rotary_cos's, (64, 8)")),
    ("cached(q, K, V, num_splits=-1)", ("num_splits: got -1", "from 0 (chosen here) to 128")),
    ("cached(q, K, V, num_splits=129)", ("num_splits: got 129", "from 0 (chosen here) to 128")),
    ("cached(q, K, V, window_size=(-2, 0))", ("window_size: got (-2, 0)", "sides of -1 (unlimited)")),
    ("cached(q, K, V, softmax_scale=float('nan'))", ("softmax_scale: got nan", "finite numbers")),
    ("cached(q, K, V, softcap=-1.0)", ("softcap: got -1.0", "accepted are 0")),
    ("cached(q, K, V, alibi_slopes=x(3))", ("alibi_slopes: got shape (3,)", "(4,) and (2, 4)")),
    ("cached(q, K, V, input_precision='fp8')", ("input_precision: got 'fp8'", "ieee, bf16x6, tf32x3, tf32")),
)

_DETACHED = ("requires a gradient; there is no backward pass", "torch.no_grad()")

NOT_THERE = _rows(
    NotImplementedError,
    ("cached(q.requires_grad_(), K, V)", ("q: got a tensor that", *_DETACHED)),
    ("cached(q, K, V.requires_grad_())", ("v_cache: got a tensor that", *_DETACHED)),
    ("cached(q, K, V, k.requires_grad_(), v, cache_seqlens=n)", ("k: got a tensor that", *_DETACHED)),
    ("cached(q, K, V, k, v, cos, cos.clone().requires_grad_(), n)", ("rotary_sin: got a tensor that", *_DETACHED)),
    (
        "cached(q, K, V, alibi_slopes=x(4).requires_grad_())",
        ("alibi_slopes: got a tensor that requires a gradient", "detached"),
    ),
)

BAD_CALLS = (*TYPES, *VALUES, *NOT_THERE)

_HEADING = """# Bad input: what decoding with a cache refuses

`cached` is `flash_attn_with_kvcache`. `q` (2, 1, 4, 32), the caches `K` and `V` (2, 64, 2, 32), and `k` and `v` (2, 1, 2, 32)
are good float32 tensors, `n` good int32 lengths (2,), `pool` a cache (8, 16, 2, 32) of pages, `table` a good page table (2, 4),
`cos` (64, 8) a good table of angles; `x(*shape)` is a float32, `i(*shape)` an int32 tensor of another shape. Every call is
refused before anything is launched or written. The table is printed by `python -m tests.kernels.bad_cache_input`, and the tests
compare it with what the function raises. The other functions' is [bad-input.md](bad-input.md).

| # | call | error | message |
|--:|---|---|---|
"""


def table(device: torch.device) -> str:
    """The calls with the error that each of them gets, as Markdown."""
    return printed(BAD_CALLS, _HEADING, device)


if __name__ == "__main__":
    write(table)
