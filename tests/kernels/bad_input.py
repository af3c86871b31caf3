"""Calls that the public functions refuse, and the table of what they say: `python -m tests.kernels.bad_input`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch


@dataclass(frozen=True)
class BadCall:
    """A refused call.

    Attributes:
        source: the call; `q`, `k`, `v` are good float32 tensors of shape (2, 3, 4, 8), `x(...)` one of another shape.
        error: the exception that it must raise.
        words: what the message must contain: the argument, what came, what is accepted.
    """

    source: str
    error: type[Exception]
    words: tuple[str, ...]

    def run(self, device: torch.device) -> None:
        """Execute the call on a device."""
        eval(self.source, namespace(device))

    def require_refusal(self, device: torch.device) -> None:
        """Fail unless the call raises exactly its error, with its words."""
        with pytest.raises(self.error) as raised:
            self.run(device)
        assert raised.type is self.error
        for words in self.words:
            assert words in str(raised.value)


def namespace(device: torch.device) -> dict[str, object]:
    """The names that a call may use."""
    import numpy
    from flashverify_kernels import (
        TileConfig,
        Tiles,
        flash_attn_func,
        flash_attn_kvpacked_func,
        flash_attn_qkvpacked_func,
        scaled_dot_product_attention,
    )

    def x(*shape: int) -> torch.Tensor:
        return torch.ones(shape, device=device)

    names: dict[str, Callable[..., object]] = {
        "flash": flash_attn_func, "qkvpacked": flash_attn_qkvpacked_func, "kvpacked": flash_attn_kvpacked_func,
        "sdpa": scaled_dot_product_attention, "TileConfig": TileConfig, "Tiles": Tiles,
    }  # fmt: skip
    q, k, v = (x(2, 3, 4, 8) for _ in range(3))
    return {**names, "x": x, "q": q, "k": k, "v": v, "torch": torch, "numpy": numpy}


def _rows(error: type[Exception], *rows: tuple[str, tuple[str, ...]]) -> tuple[BadCall, ...]:
    return tuple(BadCall(source, error, words) for source, words in rows)


_FLOATS = "float16, bfloat16, float32, float64"
_DENSE = "dense tensors"

TYPES = _rows(
    TypeError,
    ("flash(None, k, v)", ("q: got NoneType", "torch.Tensor")),
    ("flash(q, [[1.0]], v)", ("k: got list", "torch.Tensor")),
    ("flash(q, k, v.cpu().numpy())", ("v: got ndarray", "torch.Tensor")),
    ("sdpa(None, k, v)", ("query: got NoneType", "torch.Tensor")),
    ("sdpa(q, k, 1.0)", ("value: got float", "torch.Tensor")),
    ("flash(q.to_sparse(), k, v)", ("q: got", "sparse_coo", _DENSE)),
    ("flash(q, torch.nested.nested_tensor([x(4, 4, 8), x(3, 4, 8)]), v)", ("k: got a nested tensor", _DENSE)),
    ("flash(q.int(), k, v)", ("q: got dtype int32", _FLOATS)),
    ("flash(q, k.bool(), v)", ("k: got dtype bool", _FLOATS)),
    ("flash(q.to(torch.complex64), k, v)", ("q: got dtype complex64", _FLOATS)),
    ("sdpa(q, k, v.to(torch.float8_e4m3fn))", ("value: got dtype float8_e4m3fn", _FLOATS)),
    ("flash(q, k.half(), v)", ("k: got dtype float16", "q's, float32")),
    ("flash(q.half(), k.half(), v.bfloat16())", ("v: got dtype bfloat16", "q's, float16")),
    ("sdpa(q.double(), k, v)", ("key: got dtype float32", "query's, float64")),
    ("flash(q, k, v, softmax_scale='0.5')", ("softmax_scale: got '0.5' of type str", "real numbers")),
    ("flash(q, k, v, softmax_scale=True)", ("softmax_scale: got True of type bool", "real numbers")),
    ("flash(q, k, v, softmax_scale=torch.tensor(0.5))", ("softmax_scale: got", "of type Tensor", "real numbers")),
    ("sdpa(q, k, v, scale=1j)", ("scale: got 1j of type complex", "real numbers")),
    ("sdpa(q, k, v, scale=numpy.ones(1))", ("scale: got", "of type ndarray", "real numbers")),
    ("flash(q, k, v, causal=1)", ("causal: got 1 of type int", "True and False")),
    ("flash(q, k, v, causal=None)", ("causal: got None of type NoneType", "True and False")),
    ("flash(q, k, v, deterministic='yes')", ("deterministic: got 'yes' of type str", "True and False")),
    ("flash(q, k, v, return_attn_probs=2)", ("return_attn_probs: got 2 of type int", "True and False")),
    ("sdpa(q, k, v, is_causal=0)", ("is_causal: got 0 of type int", "True and False")),
    ("sdpa(q, k, v, enable_gqa=numpy.array(True))", ("enable_gqa: got array(True) of type ndarray", "True and False")),
    ("flash(q, k, v, dropout_p='x')", ("dropout_p: got 'x' of type str", "real numbers")),
    ("flash(q, k, v, dropout_p=None)", ("dropout_p: got None of type NoneType", "real numbers")),
    ("flash(q, k, v, dropout_p=False)", ("dropout_p: got False of type bool", "real numbers")),
    ("flash(q, k, v, rng_state=7)", ("rng_state: got 7 of type int", "two integers", "tensor of torch.int64")),
    ("flash(q, k, v, rng_state=(1, 2, 3))", ("rng_state: got (1, 2, 3) of type tuple", "two integers")),
    ("sdpa(q, k, v, rng_state=(1.0, 0))", ("rng_state: got (1.0, 0) of type tuple", "two integers")),
    ("flash(q, k, v, rng_state=torch.ones(2))", ("rng_state: got a tensor of torch.float32", "torch.int64")),
    ("qkvpacked(None)", ("qkv: got NoneType", "torch.Tensor")),
    ("qkvpacked(x(2, 3, 3, 4, 8).int())", ("qkv: got dtype int32", _FLOATS)),
    ("kvpacked(q, x(2, 3, 2, 4, 8).half())", ("kv: got dtype float16", "q's, float32")),
    ("flash(q, k, v, alibi_slopes=[0.5])", ("alibi_slopes: got list", "torch.Tensor and None")),
    ("flash(q, k, v, alibi_slopes=x(4).half())", ("alibi_slopes: got dtype float16", "float32")),
    ("flash(q, k, v, attn_bias=0.0)", ("attn_bias: got float", "torch.Tensor and None")),
    ("flash(q, k, v, attn_bias=x(2, 4, 3, 3).half())", ("attn_bias: got dtype float16", "float32 are bool, float32")),
    ("flash(q.half(), k.half(), v.half(), attn_bias=x(1, 1, 3, 3).int())", ("got dtype int32", "bool, float16, float32")),
    ("flash(q, k, v, attn_bias=x(1, 1, 3, 3).to_sparse())", ("attn_bias: got", "sparse_coo", _DENSE)),
    ("qkvpacked(x(2, 3, 3, 4, 8), attn_bias=[])", ("attn_bias: got list", "torch.Tensor and None")),
    ("sdpa(q, k, v, [[True]])", ("attn_mask: got list", "torch.Tensor and None")),
    ("sdpa(q, k, v, x(4, 4).double())", ("attn_mask: got dtype float64", "float32 are bool, float32")),
    ("flash(q, k, v, learnable_sink=1.0)", ("learnable_sink: got float", "torch.Tensor and None")),
    ("flash(q, k, v, learnable_sink=x(4).bool())", ("learnable_sink: got dtype bool", "float32")),
    ("kvpacked(q, x(2, 3, 2, 4, 8), learnable_sink=x(4).half())", ("learnable_sink: got dtype float16", "float32")),
    ("sdpa(q, k, v, learnable_sink=x(3))", ("scaled_dot_product_attention()", "unexpected keyword argument")),
    ("flash(q, k, v, softcap='30')", ("softcap: got '30' of type str", "real numbers")),
    ("flash(q, k, v, softcap=None)", ("softcap: got None of type NoneType", "real numbers")),
    ("flash(q, k, v, window_size=128)", ("window_size: got 128 of type int", "pairs of integers")),
    ("flash(q, k, v, window_size=(1, 2, 3))", ("window_size: got (1, 2, 3)", "pairs of integers")),
    ("flash(q, k, v, window_size=(-1.0, -1.0))", ("window_size: got (-1.0, -1.0)", "pairs of integers")),
    ("flash(q, k, v, window_size=None)", ("window_size: got None", "pairs of integers")),
    ("flash(q, k, v, input_precision=32)", ("input_precision: got 32 of type int", "ieee, bf16x6, tf32x3, tf32")),
    ("sdpa(q, k, v, input_precision=None)", ("input_precision: got None", "ieee, bf16x6, tf32x3, tf32")),
    ("flash(q, k, v, tiles={'forward': (16, 16)})", ("tiles: got dict", "Tiles and None")),
    ("sdpa(q, k, v, tiles=(16, 16))", ("tiles: got tuple", "Tiles and None")),
    ("flash(q, k, v, tiles=TileConfig(16, 16))", ("tiles: got TileConfig", "Tiles and None")),
    ("TileConfig(True, 16)", ("block_m: got True of type bool", "integers")),
    ("TileConfig(16, 1.5)", ("block_n: got 1.5 of type float", "integers")),
    ("TileConfig(16, 16, num_warps=None)", ("num_warps: got None of type NoneType", "integers")),
    ("Tiles((16, 16), (16, 16), (16, 16))", ("forward: got (16, 16) of type tuple", "TileConfig")),
    ("Tiles(TileConfig(16, 16), TileConfig(16, 16), None)", ("dq: got None of type NoneType", "TileConfig")),
    (
        "flash(q, k, v, 0.0, None, False, (-1, -1), 0.0, None, False, False, 'ieee')",
        ("flash_attn_func()", "positional arguments", "12"),
    ),
    ("sdpa(q, k, v, None, 0.0, False, None, False, 'ieee')", ("scaled_dot_product_attention()", "positional", "9")),
    ("flash(q, k, v, scale=1.0)", ("flash_attn_func()", "unexpected keyword argument 'scale'")),
    ("sdpa(q, k)", ("scaled_dot_product_attention()", "missing", "'value'")),
)

VALUES = _rows(
    ValueError,
    ("flash(q[0], k, v)", ("q: got 3 dimensions, shape (3, 4, 8)", "4 dimensions")),
    ("flash(q, k[None], v)", ("k: got 5 dimensions", "4 dimensions")),
    ("sdpa(q, k, x())", ("value: got 0 dimensions, shape ()", "4 dimensions")),
    ("flash(q.to('meta'), k.to('meta'), v.to('meta'))", ("q: got a tensor on meta", "CUDA device")),
    ("flash(q, k.to('meta'), v)", ("k: got a tensor on meta", "q's device")),
    ("sdpa(q, k, v.to('meta'))", ("value: got a tensor on meta", "query's device")),
    ("flash(x(2, 3, 4, 0), x(2, 3, 4, 0), x(2, 3, 4, 0))", ("q: got head size 0", "from 1 to 256")),
    ("flash(x(1, 1, 1, 257), x(1, 1, 1, 257), x(1, 1, 1, 257))", ("q: got head size 257", "from 1 to 256")),
    ("sdpa(x(1, 1, 1, 512), k, v)", ("query: got head size 512", "from 1 to 256")),
    ("flash(q, k, x(2, 3, 4, 0))", ("v: got head size 0", "from 1 to 256")),
    ("sdpa(q, k, x(2, 3, 4, 257))", ("value: got head size 257", "from 1 to 256")),
    ("flash(q, x(2, 3, 4, 16), v)", ("k: got head size 16", "q's, 8")),
    ("sdpa(q, x(2, 3, 4, 7), v)", ("key: got head size 7", "query's, 8")),
    ("flash(q, x(1, 3, 4, 8), v)", ("k: got batch size 1", "q's, 2")),
    ("flash(q, k, x(3, 3, 4, 8))", ("v: got batch size 3", "q's, 2")),
    ("flash(q, k, x(2, 5, 4, 8))", ("v: got sequence length 5", "k's, 3")),
    ("sdpa(q, k, x(2, 3, 5, 8))", ("value: got sequence length 5", "key's, 4")),
    ("flash(q, k, x(2, 3, 2, 8))", ("v: got 2 heads", "k's number, 4")),
    ("flash(q, x(2, 3, 3, 8), x(2, 3, 3, 8))", ("k: got 3 heads", "divisor", "4")),
    ("flash(q, x(2, 3, 8, 8), x(2, 3, 8, 8))", ("k: got 8 heads", "divisor", "4")),
    ("flash(q, x(2, 3, 0, 8), x(2, 3, 0, 8))", ("k: got 0 heads", "divisor", "4")),
    ("sdpa(x(2, 4, 3, 8), x(2, 2, 3, 8), x(2, 2, 3, 8))", ("key: got 2 heads", "query's number, 4", "enable_gqa=True")),
    ("sdpa(x(2, 4, 3, 8), x(2, 3, 3, 8), x(2, 3, 3, 8), enable_gqa=True)", ("key: got 3 heads", "divisor", "4")),
    ("flash(q, k, v, softmax_scale=float('nan'))", ("softmax_scale: got nan", "finite numbers and None")),
    ("flash(q, k, v, softmax_scale=float('inf'))", ("softmax_scale: got inf", "finite numbers and None")),
    ("sdpa(q, k, v, scale=-float('inf'))", ("scale: got -inf", "finite numbers and None")),
    ("flash(q, k, v, softmax_scale=3e38)", ("softmax_scale: got 3e+38", "float32", "magnitudes from 1.18e-38 to")),
    ("sdpa(q.half(), k.half(), v.half(), scale=-1e39)", ("scale: got -1e+39", "float16", "magnitudes")),
    ("sdpa(q, k, v, scale=1e-40)", ("scale: got 1e-40", "float32", "0 and magnitudes from 1.18e-38")),
    ("sdpa(q.double(), k.double(), v.double(), scale=1e308)", ("scale: got 1e+308", "float64", "to 8.99e+307")),
    ("sdpa(q.double(), k.double(), v.double(), scale=5e-324)", ("scale: got 5e-324", "float64", "from 2.23e-308")),
    ("flash(q, k, v, softmax_scale=10**5000)", ("softmax_scale: got a number too large", "real numbers")),
    ("flash(q, k, v, dropout_p=-0.1)", ("dropout_p: got -0.1", "probabilities from 0 to 1")),
    ("flash(q, k, v, rng_state=(0, 6))", ("rng_state: got the offset 6", "multiples of 4")),
    ("flash(q, k, v, rng_state=(0, -4))", ("rng_state: got the offset -4", "from 0 to")),
    ("flash(q, k, v, rng_state=(2**64, 0))", ("rng_state: got the seed 18446744073709551616", "from -2^63")),
    ("flash(q, k, v, rng_state=torch.ones(3, dtype=torch.int64))", ("rng_state: got shape (3,)", "shape (2,)")),
    ("flash(q, k, v, dropout_p=1.5)", ("dropout_p: got 1.5", "probabilities from 0 to 1")),
    ("sdpa(q, k, v, dropout_p=float('nan'))", ("dropout_p: got nan", "probabilities from 0 to 1")),
    ("qkvpacked(x(2, 3, 2, 4, 8))", ("qkv: got shape (2, 3, 2, 4, 8)", "(batch, sequence, 3, heads, head size)")),
    ("qkvpacked(q)", ("qkv: got shape (2, 3, 4, 8)", "(batch, sequence, 3, heads, head size)")),
    ("qkvpacked(x(2, 3, 3, 4, 300))", ("qkv: got head size 300", "from 1 to 256")),
    ("kvpacked(q, x(2, 3, 3, 4, 8))", ("kv: got shape (2, 3, 3, 4, 8)", "(batch, sequence, 2, heads, head size)")),
    ("kvpacked(q, x(2, 3, 2, 3, 8))", ("kv: got 3 heads", "number of query heads, 4")),
    ("flash(q, k, v, alibi_slopes=x(3))", ("alibi_slopes: got shape (3,)", "accepted are (4,) and (2, 4)")),
    ("flash(q, k, v, alibi_slopes=x(4, 2))", ("alibi_slopes: got shape (4, 2)", "accepted are (4,) and (2, 4)")),
    ("flash(q, k, v, attn_bias=x(3, 3))", ("attn_bias: got shape (3, 3)", "shapes (2 or 1, 4 or 1, 3 or 1, 3)")),
    ("flash(q, k, v, attn_bias=x(2, 4, 3, 1))", ("attn_bias: got shape (2, 4, 3, 1)", "(2 or 1, 4 or 1, 3 or 1, 3)")),
    ("kvpacked(q, x(2, 3, 2, 2, 8), attn_bias=x(2, 2, 3, 3))", ("attn_bias: got shape (2, 2, 3, 3)", "4 or 1")),
    ("flash(q, k, v, attn_bias=x(1, 1, 3, 3).to('meta'))", ("attn_bias: got a tensor on meta", "q's device")),
    ("sdpa(q, k, v, x(4))", ("attn_mask: got shape (4,)", "2 to 4 dimensions that broadcast to (2, 3, 4, 4)")),
    ("sdpa(q, k, v, x(2, 4, 4))", ("attn_mask: got shape (2, 4, 4)", "broadcast to (2, 3, 4, 4)")),
    ("sdpa(q, k, v, x(1, 2, 3, 4, 4))", ("attn_mask: got shape (1, 2, 3, 4, 4)", "2 to 4 dimensions")),
    ("sdpa(q, k, v, x(4, 4).bool(), is_causal=True)", ("attn_mask: got a value beside is_causal=True", "accepted is None")),
    ("flash(q, k, v, learnable_sink=x(3))", ("learnable_sink: got shape (3,)", "accepted is (4,)")),
    ("flash(q, k, v, learnable_sink=x(2, 4))", ("learnable_sink: got shape (2, 4)", "accepted is (4,)")),
    ("flash(q, k, v, learnable_sink=x(4).to('meta'))", ("learnable_sink: got a tensor on meta", "q's device")),
    ("flash(q, k, v, softcap=-1.0)", ("softcap: got -1.0", "0 and numbers from 9.54e-07 to 1.1e+12")),
    ("flash(q, k, v, softcap=float('nan'))", ("softcap: got nan", "0 and numbers from")),
    ("flash(q, k, v, softcap=1e-7)", ("softcap: got 1e-07", "0 and numbers from")),
    ("flash(q, k, v, softmax_scale=1e38, softcap=1e-3)", ("softcap: got 0.001 beside the scale 1e+38", "to 1.7e+38")),
    ("flash(q, k, v, window_size=(-2, 0))", ("window_size: got (-2, 0)", "-1 (unlimited), 0 or more")),
    ("flash(q, k, v, input_precision='tf32x2')", ("input_precision: got 'tf32x2'", "ieee, bf16x6, tf32x3, tf32")),
    ("sdpa(q, k, v, input_precision='')", ("input_precision: got ''", "ieee, bf16x6, tf32x3, tf32")),
    ("TileConfig(0, 16)", ("block_m: got 0", "at least 16")),
    ("TileConfig(16, 8)", ("block_n: got 8", "at least 16")),
    ("TileConfig(-16, 16)", ("block_m: got -16", "at least 16")),
    ("TileConfig(48, 16)", ("block_m: got 48", "powers of two")),
    ("TileConfig(16, 16, num_warps=3)", ("num_warps: got 3", "powers of two")),
    ("TileConfig(16, 16, num_warps=0)", ("num_warps: got 0", "at least 1")),
    ("TileConfig(16, 16, num_stages=0)", ("num_stages: got 0", "at least 1")),
    ("TileConfig(2048, 16)", ("block_m: got 2048", "at most 1024")),
    ("TileConfig(16, 16, num_warps=64)", ("num_warps: got 64", "at most 32")),
)

NOT_THERE_YET = _rows(
    NotImplementedError,
    ("flash(q, k, v, alibi_slopes=x(4).requires_grad_())", ("alibi_slopes: got", "requires a gradient")),
)

BAD_CALLS = TYPES + VALUES + NOT_THERE_YET

_HEADING = """# Bad input: what the kernels' public functions refuse

`q`, `k`, `v` are good float32 tensors of shape (2, 3, 4, 8), `x(*shape)` is one of another shape; `flash` is
`flash_attn_func`, `sdpa` is `scaled_dot_product_attention`. Every call is refused before anything is launched. The
table is printed by `python -m tests.kernels.bad_input`, and the tests compare it with what the functions raise.

| # | call | error | message |
|--:|---|---|---|
"""


def message_of(call: BadCall, device: torch.device) -> tuple[str, str]:
    """The name of the exception that a call raises, and its message, with the device as cpu.

    Raises:
        AssertionError: if it raises nothing.
    """
    try:
        call.run(device)
    except Exception as error:
        return type(error).__name__, str(error).replace(str(device), "cpu")
    raise AssertionError(f"{call.source} was not refused")


def printed(calls: tuple[BadCall, ...], heading: str, device: torch.device) -> str:
    """Calls with the error that each of them gets, as a Markdown page."""
    rows = []
    for number, call in enumerate(calls, 1):
        error, message = message_of(call, device)
        line = " ".join(message.split()).replace("|", r"\|")
        rows.append(f"| {number} | `{call.source}` | {error} | {line} |\n")
    return heading + "".join(rows)


def write(page: Callable[[torch.device], str]) -> None:
    """Print a page of refused calls, on a GPU if there is one, else in the interpreter."""
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    sys.path.insert(0, "kernels")
    sys.stdout.write(page(torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda:0")))


def table(device: torch.device) -> str:
    """The calls with the error that each of them gets, as Markdown."""
    return printed(BAD_CALLS, _HEADING, device)


if __name__ == "__main__":
    write(table)
