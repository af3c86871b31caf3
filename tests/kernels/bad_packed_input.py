"""Refused calls of the functions for packed sequences, and the table of them: `python -m tests.kernels.bad_packed_input`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tests.kernels.bad_input import BadCall, printed, write


@dataclass(frozen=True)
class BadPackedCall(BadCall):
    """A refused call of a function for packed sequences.

    `q`, `k`, `v` are good float32 tensors of shape (6, 4, 8), `c` are good int32 starts (3,) of two sequences, `n` good int32
    numbers of used rows (2,), and `x(...)` is a float32, `i(...)` an int32 tensor of another shape.
    """

    def run(self, device: torch.device) -> None:
        eval(self.source, namespace(device))


def namespace(device: torch.device) -> dict[str, object]:
    """The names that a call may use."""
    from flashverify_kernels import (
        flash_attn_varlen_func,
        flash_attn_varlen_kvpacked_func,
        flash_attn_varlen_qkvpacked_func,
    )

    def x(*shape: int) -> torch.Tensor:
        return torch.ones(shape, device=device)

    def i(*shape: int) -> torch.Tensor:
        return torch.ones(shape, dtype=torch.int32, device=device)

    functions = {
        "varlen": flash_attn_varlen_func,
        "qkvpacked": flash_attn_varlen_qkvpacked_func,
        "kvpacked": flash_attn_varlen_kvpacked_func,
    }
    starts = torch.tensor((0, 2, 6), dtype=torch.int32, device=device)
    tensors = {name: x(6, 4, 8) for name in ("q", "k", "v")} | {"c": starts, "n": i(2)}
    return {**functions, **tensors, "x": x, "i": i, "torch": torch}


def _rows(error: type[Exception], *rows: tuple[str, tuple[str, ...]]) -> tuple[BadCall, ...]:
    return tuple(BadPackedCall(source, error, words) for source, words in rows)


_INT32 = "dense tensors of int32"
_LONGEST = "integers of at least 0"

TYPES = _rows(
    TypeError,
    ("varlen(None, k, v, c, c, 4, 4)", ("q: got NoneType", "torch.Tensor")),
    ("varlen(q, [k], v, c, c, 4, 4)", ("k: got list", "torch.Tensor")),
    ("varlen(q, k, v.half(), c, c, 4, 4)", ("v: got dtype float16", "q's, float32")),
    ("varlen(q.int(), k, v, c, c, 4, 4)", ("q: got dtype int32", "float16, bfloat16, float32, float64")),
    ("varlen(torch.nested.nested_tensor([x(2, 8), x(4, 8)]), k, v, c, c, 4, 4)", ("q: got a nested tensor", "dense tensors")),
    ("varlen(q, k, v, None, c, 4, 4)", ("cu_seqlens_q: got None of type NoneType", "int32 tensors")),
    ("varlen(q, k, v, c, [0, 2, 6], 4, 4)", ("cu_seqlens_k: got [0, 2, 6] of type list", "int32 tensors")),
    ("varlen(q, k, v, c.long(), c, 4, 4)", ("cu_seqlens_q: got dtype int64", _INT32)),
    ("varlen(q, k, v, c, x(3), 4, 4)", ("cu_seqlens_k: got dtype float32", _INT32)),
    ("varlen(q, k, v, c, c.to_sparse(), 4, 4)", ("cu_seqlens_k: got dtype int32, layout torch.sparse_coo", _INT32)),
    ("varlen(q, k, v, c, c, None, 4)", ("max_seqlen_q: got None of type NoneType", _LONGEST)),
    ("varlen(q, k, v, c, c, 4, 4.0)", ("max_seqlen_k: got 4.0 of type float", _LONGEST)),
    ("varlen(q, k, v, c, c, True, 4)", ("max_seqlen_q: got True of type bool", _LONGEST)),
    ("varlen(q, k, v, c, c, c.diff().max(), 4)", ("max_seqlen_q: got tensor(4", "of type Tensor", _LONGEST)),
    ("varlen(q, k, v, c, c, 4, 4, seqused_q=[2, 4])", ("seqused_q: got [2, 4] of type list", "int32 tensors")),
    ("varlen(q, k, v, c, c, 4, 4, seqused_k=n.long())", ("seqused_k: got dtype int64", _INT32)),
    ("varlen(q, k, v, c, c, 4, 4, '0')", ("dropout_p: got '0' of type str", "real numbers")),
    ("varlen(q, k, v, c, c, 4, 4, softmax_scale='1')", ("softmax_scale: got '1' of type str", "real numbers")),
    ("varlen(q, k, v, c, c, 4, 4, causal=1)", ("causal: got 1 of type int", "True and False")),
    ("varlen(q, k, v, c, c, 4, 4, window_size=5)", ("window_size: got 5 of type int", "pairs of integers")),
    ("varlen(q, k, v, c, c, 4, 4, softcap=None)", ("softcap: got None", "real numbers")),
    ("varlen(q, k, v, c, c, 4, 4, alibi_slopes=[0.5])", ("alibi_slopes: got list", "torch.Tensor and None")),
    ("varlen(q, k, v, c, c, 4, 4, deterministic=None)", ("deterministic: got None", "True and False")),
    ("varlen(q, k, v, c, c, 4, 4, return_attn_probs=1)", ("return_attn_probs: got 1", "True and False")),
    ("varlen(q, k, v, c, c, 4, 4, learnable_sink=i(4))", ("learnable_sink: got dtype int32", "float32")),
    ("varlen(q, k, v, c, c, 4, 4, input_precision=32)", ("input_precision: got 32", "ieee, bf16x6, tf32x3, tf32")),
    ("varlen(q, k, v, c, c, 4, 4, tiles=(16, 16))", ("tiles: got tuple", "flashverify_kernels.Tiles and None")),
    ("varlen(q, k, v, c, c, 4, 4, attn_bias=x(1, 1, 6, 6))", ("unexpected keyword argument 'attn_bias'",)),
    ("qkvpacked(None, c, 4)", ("qkv: got NoneType", "torch.Tensor")),
    ("qkvpacked(x(6, 3, 4, 8), [0, 6], 4)", ("cu_seqlens: got [0, 6] of type list", "int32 tensors")),
    ("qkvpacked(x(6, 3, 4, 8), c, '4')", ("max_seqlen: got '4' of type str", _LONGEST)),
    ("qkvpacked(x(6, 3, 4, 8), c, 4, seqused=n.long())", ("seqused: got dtype int64", _INT32)),
    ("qkvpacked(x(6, 3, 4, 8).int(), c, 4)", ("qkv: got dtype int32", "float16, bfloat16, float32, float64")),
    ("kvpacked(q, [k, v], c, c, 4, 4)", ("kv: got list", "torch.Tensor")),
    ("kvpacked(q, x(6, 2, 4, 8).half(), c, c, 4, 4)", ("kv: got dtype float16", "q's, float32")),
    ("kvpacked(q, x(6, 2, 4, 8), c, c, 4, 4, seqused_k=2)", ("seqused_k: got 2 of type int", "int32 tensors")),
)

VALUES = _rows(
    ValueError,
    ("varlen(x(2, 3, 4, 8), k, v, c, c, 4, 4)", ("q: got 4 dimensions", "3 dimensions")),
    ("varlen(q, k[0], v, c, c, 4, 4)", ("k: got 2 dimensions", "3 dimensions")),
    ("varlen(q, k.to('meta'), v, c, c, 4, 4)", ("k: got a tensor on meta", "q's device")),
    ("varlen(x(6, 4, 300), x(6, 4, 300), v, c, c, 4, 4)", ("q: got head size 300", "from 1 to 256")),
    ("varlen(q, k, x(6, 4, 0), c, c, 4, 4)", ("v: got head size 0", "from 1 to 256")),
    ("varlen(q, x(6, 4, 16), v, c, c, 4, 4)", ("k: got head size 16", "q's, 8")),
    ("varlen(q, x(6, 3, 8), x(6, 3, 8), c, c, 4, 4)", ("k: got 3 heads", "number of query heads, 4")),
    ("varlen(q, k, x(6, 2, 8), c, c, 4, 4)", ("v: got 2 heads", "k's number, 4")),
    ("varlen(q, k, x(5, 4, 8), c, c, 4, 4)", ("v: got 5 rows", "k's number, 6")),
    ("varlen(q, k, v, c[0], c, 4, 4)", ("cu_seqlens_q: got shape ()", "(sequences + 1,)")),
    ("varlen(q, k, v, c[:0], c, 4, 4)", ("cu_seqlens_q: got shape (0,)", "(sequences + 1,)")),
    ("varlen(q, k, v, c[None], c, 4, 4)", ("cu_seqlens_q: got shape (1, 3)", "(sequences + 1,)")),
    ("varlen(q, k, v, c, c[:2], 4, 4)", ("cu_seqlens_k: got shape (2,)", "(3,)")),
    ("varlen(q, k, v, c, c.to('meta'), 4, 4)", ("cu_seqlens_k: got a tensor on meta", "q's device")),
    ("varlen(q, k, v, c, c, -1, 4)", ("max_seqlen_q: got -1", _LONGEST)),
    ("varlen(q, k, v, c, c, 4, 4, seqused_q=c)", ("seqused_q: got shape (3,)", "(2,)")),
    ("varlen(q, k, v, c, c, 4, 4, seqused_k=n[:1])", ("seqused_k: got shape (1,)", "(2,)")),
    ("varlen(q, k, v, c, c, 4, 4, seqused_k=n.to('meta'))", ("seqused_k: got a tensor on meta", "q's device")),
    ("varlen(q, k, v, c, c, 4, 4, 1.5)", ("dropout_p: got 1.5", "probabilities from 0 to 1")),
    ("varlen(q, k, v, c, c, 4, 4, rng_state=(0, 2))", ("rng_state: got the offset 2", "multiples of 4")),
    ("varlen(q, k, v, c, c, 4, 4, softmax_scale=float('nan'))", ("softmax_scale: got nan", "finite numbers")),
    ("varlen(q, k, v, c, c, 4, 4, window_size=(-2, 0))", ("window_size: got (-2, 0)", "sides of -1 (unlimited)")),
    ("varlen(q, k, v, c, c, 4, 4, softcap=-1.0)", ("softcap: got -1.0", "accepted are 0")),
    ("varlen(q, k, v, c, c, 4, 4, alibi_slopes=x(6, 4))", ("alibi_slopes: got shape (6, 4)", "(4,) and (2, 4)")),
    ("varlen(q, k, v, c, c, 4, 4, learnable_sink=x(2))", ("learnable_sink: got shape (2,)", "accepted is (4,)")),
    ("varlen(q, k, v, c, c, 4, 4, input_precision='fp8')", ("input_precision: got 'fp8'", "ieee, bf16x6, tf32x3, tf32")),
    ("qkvpacked(x(2, 3, 3, 4, 8), c, 4)", ("qkv: got shape (2, 3, 3, 4, 8)", "(rows of all, 3, heads, head size)")),
    ("qkvpacked(x(6, 2, 4, 8), c, 4)", ("qkv: got shape (6, 2, 4, 8)", "(rows of all, 3, heads, head size)")),
    ("qkvpacked(x(6, 3, 4, 8), c, -4)", ("max_seqlen: got -4", _LONGEST)),
    ("qkvpacked(x(6, 3, 4, 8), c[:0], 4)", ("cu_seqlens: got shape (0,)", "(sequences + 1,)")),
    ("qkvpacked(x(6, 3, 4, 8), c, 4, seqused=c)", ("seqused: got shape (3,)", "(2,)")),
    ("kvpacked(q, x(6, 3, 4, 8), c, c, 4, 4)", ("kv: got shape (6, 3, 4, 8)", "(rows of all, 2, heads, head size)")),
    ("kvpacked(q, x(6, 2, 4, 16), c, c, 4, 4)", ("kv: got head size 16", "q's, 8")),
    ("kvpacked(q, x(6, 2, 3, 8), c, c, 4, 4)", ("kv: got 3 heads", "number of query heads, 4")),
)

NOT_THERE = _rows(
    NotImplementedError,
    ("varlen(q, k, v, c, c, 4, 4, block_table=i(2, 1))", ("block_table: got Tensor", "flash_attn_with_kvcache reads pages")),
    (
        "varlen(q, k, v, c, c, 4, 4, alibi_slopes=x(4).requires_grad_())",
        ("alibi_slopes: got a tensor that requires a gradient", "detached"),
    ),
)

BAD_CALLS = (*TYPES, *VALUES, *NOT_THERE)

_HEADING = """# Bad input: what the functions for packed sequences refuse

`varlen` is `flash_attn_varlen_func`, `qkvpacked` and `kvpacked` are `flash_attn_varlen_qkvpacked_func` and
`flash_attn_varlen_kvpacked_func`. `q`, `k`, `v` are good float32 tensors of shape (6, 4, 8), `c` good int32 starts (3,) of
two sequences, `n` good int32 numbers of used rows (2,); `x(*shape)` is a float32, `i(*shape)` an int32 tensor of another shape.
Every call is refused before anything is launched. What only the GPU knows, the numbers in `c` and `n`, is not checked
([contract.md](contract.md)). The table is printed by `python -m tests.kernels.bad_packed_input`, and the tests compare it with
what the functions raise. The other functions' is [bad-input.md](bad-input.md).

| # | call | error | message |
|--:|---|---|---|
"""


def table(device: torch.device) -> str:
    """The calls with the error that each of them gets, as Markdown."""
    return printed(BAD_CALLS, _HEADING, device)


if __name__ == "__main__":
    write(table)
