"""The public functions for packed sequences: names, order and defaults of flash-attn 2.8, and what generated calls compute.

Each call is drawn with every argument at once, runs in float64, forward and backward, and is held to plain float64 attention of
each sequence alone.
"""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable

import pytest
import torch
from flashverify_kernels import (
    TileConfig,
    Tiles,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
)

from tests.kernels.packed_support import Inputs, Places, draw_packed
from tests.kernels.reference import attention
from tests.kernels.test_api import FLASH, leaf, pick_stream, weights

CALLS = range(24)

OF_Q_AND_K = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
SIGNATURES: dict[Callable[..., object], tuple[tuple[str, ...], dict[str, object], set[str]]] = {
    flash_attn_varlen_func: (("q", "k", "v", *OF_Q_AND_K), {**FLASH, "block_table": None}, {"seqused_q", "seqused_k"}),
    flash_attn_varlen_qkvpacked_func: (("qkv", "cu_seqlens", "max_seqlen"), FLASH, {"seqused"}),
    flash_attn_varlen_kvpacked_func: (("q", "kv", *OF_Q_AND_K), FLASH, {"seqused_q", "seqused_k"}),
}
"""Arguments without a default, those with one, in order (flash-attn 2.8.3: flash_attn_interface.py), and our own keywords."""


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__name__)
def test_names_order_and_defaults(function: Callable[..., object]) -> None:
    required, defaults, used = SIGNATURES[function]
    parameters = inspect.signature(function).parameters
    positional = {name: p for name, p in parameters.items() if p.kind is not inspect.Parameter.KEYWORD_ONLY}
    assert tuple(positional) == (*required, *defaults)
    assert {name: p.default for name, p in positional.items() if name in defaults} == defaults
    assert all(positional[name].default is inspect.Parameter.empty for name in required)
    ours = {"learnable_sink", "rng_state", "input_precision", "tiles"} | used
    assert set(parameters) - set(positional) == ours
    assert all(parameters[name].default is None for name in ours - {"input_precision"})


class Call:
    """One generated call: where sequences lie, and every argument behind the tensors."""

    def __init__(self, number: int, device: torch.device, *, same_length: bool, grouped: bool) -> None:
        self.random = random.Random(number)
        pick = self.random.choice
        count, lengths = pick((0, 1, 2, 2, 3)), (0, 1, 3, 7, 16, 20)
        stored_q = tuple(pick(lengths) for _ in range(count))
        stored_k = stored_q if same_length else tuple(pick((0, 1, 9, 17, 18)) for _ in range(count))
        used = [self._used(stored_q), self._used(stored_k)]
        used = [used[0]] * 2 if same_length else used
        self.places = Places(stored_q, stored_k, *used, tail=pick((0, 0, 4)))
        heads_kv = pick((1, 1, 2))
        heads = heads_kv * (pick((1, 2, 3)) if grouped and heads_kv == 1 else 1)
        columns = pick((1, 5, 16))
        self.inputs = draw_packed(self.places, device, torch.float64, (heads, heads_kv), (columns, columns))
        self.causal = pick((False, True))
        self.window = pick(((-1, -1), (3, -1), (-1, 4), (5, 2)))
        self.scale = pick((None, 0.7, -0.3))
        self.softcap = pick((0.0, 0.0, 1.5))
        slopes = torch.tensor([self.random.uniform(-1, 1) for _ in range(count * heads)], device=device).view(count, heads)
        self.slopes = pick((None, slopes, slopes[0] if count else torch.ones(heads, device=device)))
        self.tiles = pick((None, Tiles(*[TileConfig(16, 16)] * 3)))
        sink = torch.randn(heads, dtype=torch.float64, generator=torch.Generator().manual_seed(number)).to(device)
        self.sink = pick((None, sink.requires_grad_()))
        self.stream = pick_stream(self.random)

    def _used(self, stored: tuple[int, ...]) -> tuple[int, ...] | None:
        return self.random.choice((None, tuple(self.random.randint(0, rows) for rows in stored)))

    @property
    def options(self) -> dict[str, object]:
        """The arguments that all three functions share."""
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
            "learnable_sink": self.sink,
            "input_precision": self.random.choice(("ieee", "bf16x6", "tf32x3", "tf32")),
            "tiles": self.tiles,
        }

    def _expected(self, sequence: int, of_q: slice, of_k: slice, slopes: torch.Tensor | None):
        """Results of one sequence from the definition."""
        x, sizes = self.inputs, (of_q.stop - of_q.start, of_k.stop - of_k.start)
        left, right = (None if side == -1 else side for side in self.window)
        right = 0 if self.causal else right
        position = sizes[1] - sizes[0]
        return attention(
            *(y[None].transpose(1, 2) for y in (x.q[of_q], x.k[of_k], x.v[of_k], x.dout[of_q])),
            scale=self.scale,
            causal_offset=None if right is None else position + right,
            first_offset=None if left is None else position - left,
            softcap=self.softcap or None,
            alibi=None if slopes is None else slopes.expand(1, x.q.shape[1]),
            sink=self.sink,
            weight=weights(self.stream, x.q.shape[1], (sequence,), sizes, x.q.device),
        )

    def check(self, out: torch.Tensor, lse: torch.Tensor, leaves: tuple[torch.Tensor, ...]) -> None:
        """Fail unless out (rows, H, D), lse and all gradients are the definition's, and 0 or -inf in rows that are unused."""
        named = dict(zip(("dq", "dk", "dv"), leaves, strict=True)) | ({} if self.sink is None else {"dsink": self.sink})
        found = dict(zip(named, torch.autograd.grad(out, tuple(named.values()), self.inputs.dout), strict=True))
        found |= {"out": out.detach(), "lse": lse.detach().T}
        slopes = self.slopes if self.slopes is None or self.slopes.dim() == 2 else self.slopes.expand(self.places.sequences, -1)
        sums = [torch.zeros_like(self.sink.detach())] * 2 if self.sink is not None else []
        for sequence, (of_q, of_k) in enumerate(self.places.slices()):
            expected = self._expected(sequence, of_q, of_k, None if slopes is None else slopes[sequence])
            for name, part in (("out", of_q), ("lse", of_q), ("dq", of_q), ("dk", of_k), ("dv", of_k)):
                rows = found[name][part]
                assert expected.worst(name, (rows.T if name == "lse" else rows.transpose(0, 1))[None]) <= 1.0, (name, sequence)
            if sums:
                sums = [sums[0] + expected.values["dsink"], sums[1] + expected.allowed["dsink"]]
        if sums:
            assert ((found["dsink"] - sums[0]).abs() <= sums[1]).all()
        queries, keys = self.places.unused(out.device)
        assert (found["lse"][queries] == -math.inf).all()
        assert not any(
            found[name][rows].any() for name, rows in (("out", queries), ("dq", queries), ("dk", keys), ("dv", keys))
        )


def _call(function: Callable[..., object], call: Call, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    starts_q, starts_k, used_q, used_k = call.places.stated(call.inputs.q.device)
    longest = (max(stored, default=0) for stored in (call.places.stored_q, call.places.stored_k))
    out, lse, probabilities = function(
        *tensors, starts_q, starts_k, *longest, **call.options, seqused_q=used_q, seqused_k=used_k
    )
    assert (probabilities is None) == (call.stream.rate == 0.0)
    return out, lse


def _leaves(x: Inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return leaf(x.q), leaf(x.k), leaf(x.v)


@pytest.mark.parametrize("number", CALLS)
def test_flash_attn_varlen_func(number: int, device: torch.device) -> None:
    call = Call(number, device, same_length=False, grouped=True)
    leaves = _leaves(call.inputs)
    call.check(*_call(flash_attn_varlen_func, call, *leaves), leaves)


@pytest.mark.parametrize("number", CALLS)
def test_flash_attn_varlen_qkvpacked_func(number: int, device: torch.device) -> None:
    call = Call(1000 + number, device, same_length=True, grouped=False)
    leaves = _leaves(call.inputs)
    starts, _, used, _ = call.places.stated(device)
    longest = max(call.places.stored_q, default=0)
    out, lse, _ = flash_attn_varlen_qkvpacked_func(torch.stack(leaves, 1), starts, longest, **call.options, seqused=used)
    call.check(out, lse, leaves)


@pytest.mark.parametrize("number", CALLS)
def test_flash_attn_varlen_kvpacked_func(number: int, device: torch.device) -> None:
    call = Call(2000 + number, device, same_length=False, grouped=True)
    leaves = q, k, v = _leaves(call.inputs)
    call.check(*_call(flash_attn_varlen_kvpacked_func, call, q, torch.stack((k, v), 1)), leaves)


def test_packed_tensors_are_not_copied(device: torch.device) -> None:
    """The views that are read lie in the packed tensor's own memory, whose gradient comes back packed."""
    places = Places((5, 4), (5, 4))
    starts, *_ = places.stated(device)
    qkv = torch.randn(9, 3, 2, 8, dtype=torch.float64, device=device, requires_grad=True)
    out = flash_attn_varlen_qkvpacked_func(qkv, starts, 5, causal=True)
    apart = flash_attn_varlen_func(*(x.contiguous() for x in qkv.unbind(1)), starts, starts, 5, 5, causal=True)
    assert torch.equal(out, apart)
    (gradient,) = torch.autograd.grad(out.sum(), qkv)
    assert gradient.shape == qkv.shape


@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_lse_alone_is_differentiable(dropout_p: float, device: torch.device) -> None:
    """(H, rows of all); v gets nothing of it, and without it out is returned alone. Beside probabilities it once was not."""
    places = Places((3, 2), (4, 5))
    starts_q, starts_k, *_ = places.stated(device)
    leaves = _leaves(draw_packed(places, device, torch.float64))
    options = {"dropout_p": dropout_p, "rng_state": (1, 0)}
    out, lse, _ = flash_attn_varlen_func(*leaves, starts_q, starts_k, 3, 5, return_attn_probs=True, **options)
    assert lse.shape == (2, 5)
    dq, dk, dv = torch.autograd.grad(lse.sum(), leaves)
    assert dq.any(-1).all()
    assert dk.any(-1).all()
    assert not dv.any()
    assert torch.equal(flash_attn_varlen_func(*leaves, starts_q, starts_k, 3, 5, **options), out)
