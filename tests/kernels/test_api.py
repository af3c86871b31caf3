"""The public functions: names, order and defaults of flash-attn 2.8 and of torch, and what generated calls compute.

Each call is drawn with every argument at once, runs in float64, forward and backward, and is held to plain float64 attention.
"""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from flashverify_kernels import (
    TileConfig,
    Tiles,
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    scaled_dot_product_attention,
)

from flashverify.dropout.mask import Stream, keep
from tests.kernels.reference import attention
from tests.kernels.support import draw

CALLS = range(24)
"""Calls without a bias and sinks, and as many with both."""

FLASH = {
    "dropout_p": 0.0,
    "softmax_scale": None,
    "causal": False,
    "window_size": (-1, -1),
    "softcap": 0.0,
    "alibi_slopes": None,
    "deterministic": False,
    "return_attn_probs": False,
}
SIGNATURES: dict[Callable[..., object], tuple[tuple[str, ...], dict[str, object]]] = {
    flash_attn_func: (("q", "k", "v"), FLASH),
    flash_attn_qkvpacked_func: (("qkv",), FLASH),
    flash_attn_kvpacked_func: (("q", "kv"), FLASH),
    scaled_dot_product_attention: (
        ("query", "key", "value"),
        {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False},
    ),
}
"""Tensors, and the other arguments with their defaults, in order (flash-attn 2.8: flash_attn_interface.py; torch 2.11)."""


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__name__)
def test_names_order_and_defaults(function: Callable[..., object]) -> None:
    tensors, defaults = SIGNATURES[function]
    parameters = inspect.signature(function).parameters
    positional = {name: p for name, p in parameters.items() if p.kind is not inspect.Parameter.KEYWORD_ONLY}
    assert tuple(positional) == (*tensors, *defaults)
    assert {name: p.default for name, p in positional.items() if name in defaults} == defaults
    ours = {"rng_state", "input_precision", "tiles"} | (set() if "attn_mask" in defaults else {"attn_bias", "learnable_sink"})
    assert set(parameters) - set(positional) == ours
    assert all(parameters[name].default is None for name in ours - {"input_precision"})


class Call:
    """One generated call: shapes, and every argument of flash-attn's functions."""

    def __init__(self, number: int, device: torch.device, *, same_length: bool, grouped: bool, biased: bool = False) -> None:
        self.random = random.Random(number)
        pick = self.random.choice
        batch, heads_kv = pick((1, 2)), pick((1, 2))
        heads = heads_kv * (pick((1, 2, 3)) if grouped else 1)
        seqlen_q = pick((1, 7, 20, 33))
        seqlen_k = seqlen_q if same_length else pick((1, 9, 33, 40))
        self.shape = (batch, heads, heads_kv, seqlen_q, seqlen_k, pick((1, 5, 16)))
        self.q, self.k, self.v, self.dout = draw(self.shape, torch.float64, device)
        self.causal = pick((False, True))
        self.window = pick(((-1, -1), (3, -1), (-1, 4), (5, 2)))
        self.scale = pick((None, 0.7, -0.3))
        self.softcap = pick((0.0, 0.0, 1.5))
        slopes = torch.tensor([[self.random.uniform(-1, 1) for _ in range(heads)] for _ in range(batch)], device=device)
        self.slopes = pick((None, slopes, slopes[0]))
        self.tiles = pick((None, Tiles(*[TileConfig(16, 16)] * 3)))
        self.bias = self._bias(device) if biased else None
        self.sink = torch.randn(heads, dtype=torch.float64, device=device, requires_grad=True) if biased else None
        self.stream = pick_stream(self.random)

    def _bias(self, device: torch.device) -> torch.Tensor:
        """A bias that broadcasts along any axes, a fifth of it -inf, or a mask of the same."""
        batch, heads, _, seqlen_q, seqlen_k, _ = self.shape
        sizes = [self.random.choice((1, size)) for size in (batch, heads, seqlen_q)]
        generator = torch.Generator().manual_seed(self.random.randrange(2**32))
        bias = torch.randn(*sizes, seqlen_k, generator=generator, dtype=torch.float64)
        hidden = torch.rand(bias.shape, generator=generator) < 0.2
        if self.random.choice((False, False, True)):
            return hidden.to(device)
        return bias.masked_fill(hidden, -math.inf).to(device).requires_grad_()

    @property
    def options(self) -> dict[str, object]:
        """The arguments behind the tensors."""
        return {
            "dropout_p": self.stream.rate,
            "rng_state": (self.stream.seed, self.stream.offset),
            "softmax_scale": self.scale,
            "causal": self.causal,
            "window_size": self.window,
            "softcap": self.softcap,
            "alibi_slopes": self.slopes,
            "deterministic": self.random.choice((False, True)),
            "return_attn_probs": True,
            "attn_bias": self.bias,
            "learnable_sink": self.sink,
            "input_precision": self.random.choice(("ieee", "bf16x6", "tf32x3", "tf32")),
            "tiles": self.tiles,
        }

    def expected(self, top_left: bool = False):
        """Results (B, H, N, D) from the definition."""
        batch, heads, _, seqlen_q, seqlen_k, _ = self.shape
        position = 0 if top_left else seqlen_k - seqlen_q
        left, right = (None if side == -1 else side for side in self.window)
        right = 0 if self.causal else right
        return attention(
            self.q, self.k, self.v, self.dout,
            scale=self.scale,
            causal_offset=None if right is None else position + right,
            first_offset=None if left is None else position - left,
            softcap=self.softcap or None,
            alibi=None if self.slopes is None else self.slopes.expand(batch, heads),
            bias=self.bias,
            sink=self.sink,
            weight=weights(self.stream, heads, range(batch), (seqlen_q, seqlen_k), self.q.device),
        )  # fmt: skip

    def check(self, out: torch.Tensor, lse: torch.Tensor | None, leaves: tuple[torch.Tensor, ...], top_left: bool) -> None:
        """Fail unless out (B, H, N, D), lse, and the gradients of all tensors are those of the definition."""
        expected = self.expected(top_left)
        named = dict(zip(("dq", "dk", "dv"), leaves, strict=True)) | {"dbias": self.bias, "dsink": self.sink}
        named = {name: x for name, x in named.items() if x is not None and x.requires_grad}
        gradients = torch.autograd.grad(out, tuple(named.values()), self.dout)
        found = {"out": out.detach(), **dict(zip(named, gradients, strict=True))}
        found |= {} if lse is None else {"lse": lse.detach()}
        assert {name: expected.worst(name, x) <= 1.0 for name, x in found.items()} == dict.fromkeys(found, True)


def pick_stream(generator: random.Random) -> Stream:
    """A seed, an offset and a rate of dropout, 0 as often as not."""
    rate = generator.choice((0.0, 0.0, 0.0, 0.1, 0.5, 1.0))
    return Stream(generator.getrandbits(64), 4 * generator.getrandbits(generator.choice((4, 34, 62))), rate)


def weights(stream: Stream, heads: int, entries: Sequence[int], lengths: tuple[int, int], device: torch.device) -> torch.Tensor:
    """What dropout multiplies probabilities by, (entries, heads, Nq, Nk), as the host predicts it."""
    rows, columns = (np.arange(length) for length in lengths)
    kept = [[keep(stream, heads, entry, head, rows, columns) for head in range(heads)] for entry in entries]
    return torch.from_numpy(np.array(kept, dtype=np.float64).reshape(len(entries), heads, *lengths)).to(device) * stream.rescale


def leaf(x: torch.Tensor) -> torch.Tensor:
    return x.detach().clone().requires_grad_()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("number", CALLS)
def test_flash_attn_func(number: int, biased: bool, device: torch.device) -> None:
    call = Call(number, device, same_length=False, grouped=True, biased=biased)
    leaves = q, k, v = leaf(call.q), leaf(call.k), leaf(call.v)
    out, lse, probabilities = flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), **call.options)
    assert (probabilities is None) == (call.stream.rate == 0.0)
    call.check(out.transpose(1, 2), lse, leaves, top_left=False)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("number", CALLS)
def test_flash_attn_qkvpacked_func(number: int, biased: bool, device: torch.device) -> None:
    call = Call(1000 + number, device, same_length=True, grouped=False, biased=biased)
    leaves = q, k, v = leaf(call.q), leaf(call.k), leaf(call.v)
    qkv = torch.stack((q, k, v)).permute(1, 3, 0, 2, 4)
    out, lse, _ = flash_attn_qkvpacked_func(qkv, **call.options)
    call.check(out.transpose(1, 2), lse, leaves, top_left=False)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("number", CALLS)
def test_flash_attn_kvpacked_func(number: int, biased: bool, device: torch.device) -> None:
    call = Call(2000 + number, device, same_length=False, grouped=True, biased=biased)
    leaves = q, k, v = leaf(call.q), leaf(call.k), leaf(call.v)
    kv = torch.stack((k, v)).permute(1, 3, 0, 2, 4)
    out, lse, _ = flash_attn_kvpacked_func(q.transpose(1, 2), kv, **call.options)
    call.check(out.transpose(1, 2), lse, leaves, top_left=False)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("number", CALLS)
def test_scaled_dot_product_attention(number: int, biased: bool, device: torch.device) -> None:
    call = Call(3000 + number, device, same_length=False, grouped=True, biased=biased)
    call.window, call.softcap, call.slopes, call.sink = (-1, -1), 0.0, None, None
    call.causal = call.causal and not biased
    leaves = leaf(call.q), leaf(call.k), leaf(call.v)
    grouped = call.shape[1] != call.shape[2]
    options = {"is_causal": call.causal, "scale": call.scale, "enable_gqa": grouped, "tiles": call.tiles}
    state = call.stream.seed, call.stream.offset
    out = scaled_dot_product_attention(*leaves, call.bias, call.stream.rate, **options, rng_state=state)
    call.check(out, None, leaves, top_left=True)


def test_packed_tensors_are_not_copied(device: torch.device) -> None:
    """The views that are read lie in the packed tensor's own memory, whose gradient comes back packed."""
    qkv = torch.randn(1, 9, 3, 2, 8, dtype=torch.float64, device=device, requires_grad=True)
    out = flash_attn_qkvpacked_func(qkv, causal=True)
    apart = flash_attn_func(*(x.contiguous() for x in qkv.unbind(2)), causal=True)
    assert torch.equal(out, apart)
    (gradient,) = torch.autograd.grad(out.sum(), qkv)
    assert gradient.shape == qkv.shape
