"""What the tests of the kernels share: inputs, one call forward and backward, and a record of launches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from flashverify_kernels import Tiles, backward, delta, forward
from flashverify_kernels.ops import attention

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
RESULTS = ("out", "lse", "dq", "dk", "dv")
"""What `run` returns; "dbias" and "dsink" too, where there are a floating bias and sinks."""


def draw(
    shape: tuple[int, int, int, int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    seed: int = 0,
    value_dim: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normal q, k, v and dO of sizes (B, Hq, Hkv, Nq, Nk, D), the same on every device; v and dO with value_dim columns."""
    batch, heads_q, heads_kv, seqlen_q, seqlen_k, head_dim = shape
    generator = torch.Generator().manual_seed(seed)
    columns = head_dim if value_dim is None else value_dim
    keys, queries = (heads_kv, seqlen_k), (heads_q, seqlen_q)
    sizes = [(*queries, head_dim), (*keys, head_dim), (*keys, columns), (*queries, columns)]
    q, k, v, dout = (torch.randn(batch, *size, generator=generator, dtype=torch.float64).to(device, dtype) for size in sizes)
    return q, k, v, dout


def run(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dout: torch.Tensor,
    dlse: torch.Tensor | None = None,
    *,
    scale: float | None = None,
    causal_offset: int | None = None,
    first_offset: int | None = None,
    softcap: float | None = None,
    alibi: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
    tiles: Tiles | None = None,
    dropout_p: float = 0.0,
    rng_state: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """out, lse, dq, dk, dv of the operator for q, k, v, dO (B, H, N, D), strides as they are; dbias and dsink if any."""
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    leaves = {"dq": q, "dk": k, "dv": v}
    if bias is not None and bias.is_floating_point():
        leaves["dbias"] = bias = bias.detach().requires_grad_()
    if sink is not None:
        leaves["dsink"] = sink = sink.detach().requires_grad_()
    scale = q.shape[3] ** -0.5 if scale is None else scale
    forced = None if tiles is None else tiles.flatten()
    features, dropout = (softcap, alibi, bias, sink), (dropout_p, rng_state)
    out, lse = attention(q, k, v, scale, *features, causal_offset, first_offset, "ieee", forced, *dropout)
    outputs, cotangents = ((out,), (dout,)) if dlse is None else ((out, lse), (dout, dlse))
    gradients = torch.autograd.grad(outputs, tuple(leaves.values()), cotangents)
    return {"out": out.detach(), "lse": lse.detach(), **dict(zip(leaves, gradients, strict=True))}


def differing(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> list[str]:
    """The results that are not bitwise the same (-0.0 counts as different from 0.0)."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}

    def bits(x: torch.Tensor) -> torch.Tensor:
        return x.contiguous().view(integer[x.element_size()])

    return [name for name in left if not torch.equal(bits(left[name]), bits(right[name]))]


@dataclass
class Launch:
    """A kernel that was launched.

    Attributes:
        kernel: its name.
        tensors: its tensor arguments in order.
        integers: its other positional arguments in order.
        options: its keyword arguments.
    """

    kernel: str
    tensors: list[torch.Tensor]
    integers: list[int]
    options: dict[str, object]


class _Recorder:
    def __init__(self, name: str, kernel: object, launches: list[Launch]) -> None:
        self._name, self._kernel, self._launches = name, kernel, launches

    def __getitem__(self, grid: tuple[int, ...]):
        def launch(*arguments: object, **options: object) -> object:
            tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
            integers = [x for x in arguments if isinstance(x, int)]
            self._launches.append(Launch(self._name, tensors, integers, options))
            return self._kernel[grid](*arguments, **options)

        return launch


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """The launches made inside the block, which happen as they would without it."""
    places = [(forward, "forward_kernel"), (delta, "delta_kernel"), (backward, "dkdv_kernel"), (backward, "dq_kernel")]
    kernels = [getattr(module, name) for module, name in places]
    launches: list[Launch] = []
    for (module, name), kernel in zip(places, kernels, strict=True):
        setattr(module, name, _Recorder(name, kernel, launches))
    try:
        yield launches
    finally:
        for (module, name), kernel in zip(places, kernels, strict=True):
            setattr(module, name, kernel)
