"""One call of each public function with each of its features, forward and backward: what tests of torch's own features run.

Each call is drawn from a seed, so that two of one name and size differ in nothing but the numbers in their tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from flashverify_kernels import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    scaled_dot_product_attention,
)

Sizes = tuple[int, int, int, int, int, int]
"""B, Hq, Hkv, Nq, Nk, D."""

SMALL: Sizes = (2, 2, 1, 19, 35, 16)
LARGE: Sizes = (2, 4, 2, 384, 400, 64)
"""For a GPU: large enough for loads by descriptors, where the layout allows."""


def _flash(function: Callable[..., tuple], **options: object) -> Callable[..., tuple[torch.Tensor, ...]]:
    def call(**tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return function(**tensors, **options, return_attn_probs=True)[:2]

    return call


def _sdpa(**options: object) -> Callable[..., tuple[torch.Tensor, ...]]:
    def call(**tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (scaled_dot_product_attention(**tensors, **options, enable_gqa=True),)

    return call


THREE, PACKED, KEYS_PACKED, TORCH = ("q", "k", "v"), ("qkv",), ("q", "kv"), ("query", "key", "value")
WINDOW = {"window_size": (9, 3)}

CALLS: dict[str, tuple[Callable[..., tuple[torch.Tensor, ...]], tuple[str, ...]]] = {
    "full": (_flash(flash_attn_func), THREE),
    "causal": (_flash(flash_attn_func, causal=True), THREE),
    "window": (_flash(flash_attn_func, **WINDOW), THREE),
    "softcap": (_flash(flash_attn_func, softcap=1.5), THREE),
    "alibi": (_flash(flash_attn_func), (*THREE, "alibi_slopes")),
    "bias": (_flash(flash_attn_func), (*THREE, "attn_bias")),
    "mask": (_flash(flash_attn_func), (*THREE, "attn_bias:bool")),
    "sink": (_flash(flash_attn_func), (*THREE, "learnable_sink")),
    "dropout": (_flash(flash_attn_func, dropout_p=0.3), (*THREE, "rng_state")),
    "everything": (
        _flash(flash_attn_func, softcap=1.5, dropout_p=0.1, **WINDOW),
        (*THREE, "alibi_slopes", "attn_bias", "learnable_sink", "rng_state"),
    ),
    "qkvpacked": (_flash(flash_attn_qkvpacked_func, causal=True), PACKED),
    "kvpacked": (_flash(flash_attn_kvpacked_func, **WINDOW), KEYS_PACKED),
    "sdpa": (_sdpa(), TORCH),
    "sdpa-causal": (_sdpa(is_causal=True), TORCH),
    "sdpa-bias": (_sdpa(), (*TORCH, "attn_mask")),
    "sdpa-mask": (_sdpa(), (*TORCH, "attn_mask:bool")),
}
"""name -> function of named tensors, which returns out and perhaps lse, and the names of its tensors."""


class Call:
    """A call with its tensors.

    Attributes:
        function: of the tensors by name; returns (out, lse), or (out,).
        inputs: the tensors by name; none requires a gradient.
        cotangents: of what it returns.
    """

    def __init__(
        self, name: str, dtype: torch.dtype, device: torch.device, *, sizes: Sizes | None = None, seed: int = 0
    ) -> None:
        self.function, names = CALLS[name]
        generator = torch.Generator().manual_seed(seed)
        batch, heads, heads_kv, rows, keys, columns = sizes or (SMALL if device.type == "cpu" else LARGE)
        if names == PACKED:
            heads, keys = heads_kv, rows

        def draw(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, of)

        def bias(*shape: int) -> torch.Tensor:
            hidden = torch.rand(shape, generator=generator) < 0.1
            return draw(*shape).masked_fill(hidden.to(device), -math.inf)

        makers: dict[str, Callable[[], torch.Tensor]] = {
            "q": lambda: draw(batch, rows, heads, columns),
            **dict.fromkeys(("k", "v"), lambda: draw(batch, keys, heads_kv, columns)),
            "qkv": lambda: draw(batch, rows, 3, heads, columns),
            "kv": lambda: draw(batch, keys, 2, heads_kv, columns),
            "query": lambda: draw(batch, heads, rows, columns),
            **dict.fromkeys(("key", "value"), lambda: draw(batch, heads_kv, keys, columns)),
            "alibi_slopes": lambda: draw(batch, heads, of=torch.float32),
            "attn_bias": lambda: bias(1, heads, rows, keys),
            "attn_bias:bool": lambda: bias(batch, 1, rows, keys) > -1.0,
            "learnable_sink": lambda: draw(heads),
            "rng_state": lambda: torch.tensor([seed - 2**40, 4 * seed], device=device),
            "attn_mask": lambda: bias(batch, 1, 1, keys),
            "attn_mask:bool": lambda: bias(rows, keys) > -1.0,
        }
        self.inputs = {name.partition(":")[0]: makers[name]() for name in names}
        lse_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        if names[:3] == TORCH:
            self.cotangents: tuple[torch.Tensor, ...] = (draw(batch, heads, rows, columns),)
        else:
            self.cotangents = draw(batch, rows, heads, columns), draw(batch, heads, rows, of=lse_dtype)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor that is handed over, cotangents included."""
        return self.inputs | {f"cotangent {place}": x for place, x in enumerate(self.cotangents)}

    def copy_(self, other: Call) -> None:
        """Take over the numbers of another call of the same name and sizes."""
        for mine, others in zip(self.tensors.values(), other.tensors.values(), strict=True):
            mine.copy_(others)

    def leaves(self) -> dict[str, torch.Tensor]:
        """The inputs in the same memory, which require gradients where the function gives any."""
        differentiable = {name for name, x in self.inputs.items() if x.is_floating_point() and name != "alibi_slopes"}
        return {name: x.detach().requires_grad_(name in differentiable) for name, x in self.inputs.items()}

    def results(self, function: Callable[..., tuple[torch.Tensor, ...]] | None = None) -> dict[str, torch.Tensor]:
        """Outputs and gradients by name, of `function` in the place of the call's own, if one is given."""
        leaves = self.leaves()
        outputs = (function or self.function)(**leaves)
        return {**named(outputs), **self.gradients(outputs, leaves)}

    def gradients(self, outputs: tuple[torch.Tensor, ...], leaves: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The gradients of leaves, by name."""
        wanted = {name: x for name, x in leaves.items() if x.requires_grad}
        found = torch.autograd.grad(outputs, tuple(wanted.values()), self.cotangents)
        return {f"d{name}": gradient for name, gradient in zip(wanted, found, strict=True)}


def named(outputs: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    """Outputs by name, detached."""
    return {name: x.detach() for name, x in zip(("out", "lse"), outputs, strict=False)}
