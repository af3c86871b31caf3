"""Registration with `torch.library`: the operators, their fakes, and their derivatives.

The operators' namespace is the package's name, so that a copy of the package under another name (a mutant) has its own.
"""

import torch

from flashverify_kernels.backward import attention_backward
from flashverify_kernels.forward import attention_forward
from flashverify_kernels.launch import accumulator_of, output_like
from flashverify_kernels.tiles import Tiles, is_masked, tiles_for

NAMESPACE = __name__.partition(".")[0]


def _tiles(q: torch.Tensor, v: torch.Tensor, masked: bool, precision: str, forced: list[int] | None) -> Tiles:
    if forced is not None:
        return Tiles.unflatten(forced)
    return tiles_for(q.device, q.dtype, q.shape[3], v.shape[3], masked, precision)


def _on_device_of(x: torch.Tensor) -> torch.cuda.device:
    return torch.cuda.device(x.device if x.is_cuda else -1)


@torch.library.custom_op(f"{NAMESPACE}::attention", mutates_args=())
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    softcap: float | None,
    alibi: torch.Tensor | None,
    causal_offset: int | None,
    first_offset: int | None,
    precision: str,
    tiles: list[int] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention's out (B,H,N,D) and lse (B,H,N); see `forward.attention_forward`."""
    tile = _tiles(q, v, is_masked(causal_offset, first_offset), precision, tiles).forward
    with _on_device_of(q):
        return attention_forward(q, k, v, scale, causal_offset, first_offset, precision, tile, softcap=softcap, alibi=alibi)


@attention.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    softcap: float | None,
    alibi: torch.Tensor | None,
    causal_offset: int | None,
    first_offset: int | None,
    precision: str,
    tiles: list[int] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return output_like(q, columns=v.shape[3]), torch.empty(q.shape[:3], dtype=accumulator_of(q.dtype), device=q.device)


@torch.library.custom_op(f"{NAMESPACE}::attention_backward", mutates_args=())
def backward(
    dout: torch.Tensor,
    dlse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    softcap: float | None,
    alibi: torch.Tensor | None,
    causal_offset: int | None,
    first_offset: int | None,
    precision: str,
    tiles: list[int] | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention's dq, dk, dv (B,H,N,D); see `backward.attention_backward`."""
    chosen = _tiles(q, v, is_masked(causal_offset, first_offset), precision, tiles)
    with _on_device_of(q):
        limits = causal_offset, first_offset
        return attention_backward(
            dout, dlse, q, k, v, out, lse, scale, *limits, precision, chosen.dkdv, chosen.dq, softcap=softcap, alibi=alibi
        )


@backward.register_fake
def _(
    dout: torch.Tensor,
    dlse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    softcap: float | None,
    alibi: torch.Tensor | None,
    causal_offset: int | None,
    first_offset: int | None,
    precision: str,
    tiles: list[int] | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return output_like(q), output_like(k), output_like(v)


def _save(ctx, inputs, output) -> None:
    q, k, v, scale, softcap, alibi, *options = inputs
    ctx.scale, ctx.softcap, ctx.options = scale, softcap, options
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, alibi, *output)


def _differentiate(ctx, dout, dlse):
    q, k, v, alibi, out, lse = ctx.saved_tensors
    if dout is None:
        dout = torch.zeros_like(out)
    options = (ctx.scale, ctx.softcap, alibi, *ctx.options)
    return *backward(dout, dlse, q, k, v, out, lse, *options), *(None for _ in options)


attention.register_autograd(_differentiate, setup_context=_save)
