"""Registration with `torch.library`: the operators, their fakes, and their derivatives.

The operators' namespace is the package's name, so that a copy of the package under another name (a mutant) has its own.
"""

import torch

from flashverify_kernels.attn_probs import attention_probabilities
from flashverify_kernels.backward import attention_backward
from flashverify_kernels.dropout import Dropout, dropout_of
from flashverify_kernels.forward import attention_forward
from flashverify_kernels.launch import accumulator_of, output_like
from flashverify_kernels.tiles import Tiles, is_masked, tiles_for

NAMESPACE = __name__.partition(".")[0]


def tiles_of(
    q: torch.Tensor,
    v: torch.Tensor,
    last_offset: int | None,
    first_offset: int | None,
    precision: str,
    forced: list[int] | None,
    dropout: Dropout | None,
) -> Tiles:
    """The tiles of q and v (B, H, N, D) with these limits of visibility, or those that are forced."""
    if forced is not None:
        return Tiles.unflatten(forced)
    masked, has_dropout = is_masked(last_offset, first_offset), dropout is not None
    return tiles_for(q.device, q.dtype, q.shape[3], v.shape[3], masked, precision, has_dropout)


def on_device_of(x: torch.Tensor) -> torch.cuda.device:
    """A context in which x's device is the current one."""
    return torch.cuda.device(x.device if x.is_cuda else -1)


@torch.library.custom_op(f"{NAMESPACE}::attention", mutates_args=())
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    softcap: float | None,
    alibi: torch.Tensor | None,
    bias: torch.Tensor | None,
    sink: torch.Tensor | None,
    causal_offset: int | None,
    first_offset: int | None,
    precision: str,
    tiles: list[int] | None,
    dropout_p: float = 0.0,
    rng_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention's out (B,H,N,D) and lse (B,H,N); see `forward.attention_forward`."""
    dropout = dropout_of(dropout_p, rng_state)
    tile = tiles_of(q, v, causal_offset, first_offset, precision, tiles, dropout).forward
    with on_device_of(q):
        features = {"softcap": softcap, "alibi": alibi, "bias": bias, "sink": sink, "dropout": dropout}
        return attention_forward(q, k, v, scale, causal_offset, first_offset, precision, tile, **features)


@attention.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    softcap: float | None,
    alibi: torch.Tensor | None,
    bias: torch.Tensor | None,
    sink: torch.Tensor | None,
    causal_offset: int | None,
    first_offset: int | None,
    precision: str,
    tiles: list[int] | None,
    dropout_p: float = 0.0,
    rng_state: torch.Tensor | None = None,
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
    bias: torch.Tensor | None,
    sink: torch.Tensor | None,
    causal_offset: int | None,
    first_offset: int | None,
    precision: str,
    needs_bias_grad: bool,
    needs_sink_grad: bool,
    tiles: list[int] | None,
    dropout_p: float = 0.0,
    rng_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention's dq, dk, dv (B,H,N,D), and dbias and dsink, of size 0 unless needed; see `backward.attention_backward`."""
    dropout = dropout_of(dropout_p, rng_state)
    chosen = tiles_of(q, v, causal_offset, first_offset, precision, tiles, dropout)
    with on_device_of(q):
        limits = causal_offset, first_offset
        features = {"softcap": softcap, "alibi": alibi, "bias": bias, "sink": sink, "dropout": dropout}
        needs = {"needs_bias_grad": needs_bias_grad, "needs_sink_grad": needs_sink_grad}
        tensors = dout, dlse, q, k, v, out, lse
        dq, dk, dv, dbias, dsink = attention_backward(
            *tensors, scale, *limits, precision, chosen.dkdv, chosen.dq, **features, **needs
        )
        return dq, dk, dv, *(q.new_empty(0) if x is None else x for x in (dbias, dsink))


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
    bias: torch.Tensor | None,
    sink: torch.Tensor | None,
    causal_offset: int | None,
    first_offset: int | None,
    precision: str,
    needs_bias_grad: bool,
    needs_sink_grad: bool,
    tiles: list[int] | None,
    dropout_p: float = 0.0,
    rng_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    dbias = torch.empty_like(bias, memory_format=torch.contiguous_format) if needs_bias_grad else q.new_empty(0)
    dsink = torch.empty_like(sink, memory_format=torch.contiguous_format) if needs_sink_grad else q.new_empty(0)
    return output_like(q), output_like(k), output_like(v), dbias, dsink


@torch.library.custom_op(f"{NAMESPACE}::attention_probabilities", mutates_args=())
def probabilities(
    q: torch.Tensor,
    k: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    softcap: float | None,
    alibi: torch.Tensor | None,
    bias: torch.Tensor | None,
    causal_offset: int | None,
    first_offset: int | None,
    precision: str,
    dropout_p: float,
    rng_state: torch.Tensor | None,
) -> torch.Tensor:
    """Probabilities (B,H,Nq,Nk) with the dropout mask in their sign bits; see `attn_probs.attention_probabilities`."""
    dropout = dropout_of(dropout_p, rng_state)
    with on_device_of(q):
        limits = causal_offset, first_offset
        return attention_probabilities(q, k, lse.contiguous(), scale, *limits, precision, dropout, softcap, alibi, bias)


@probabilities.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    softcap: float | None,
    alibi: torch.Tensor | None,
    bias: torch.Tensor | None,
    causal_offset: int | None,
    first_offset: int | None,
    precision: str,
    dropout_p: float,
    rng_state: torch.Tensor | None,
) -> torch.Tensor:
    return q.new_empty((*q.shape[:3], k.shape[2]))


def _save(ctx, inputs, output) -> None:
    q, k, v, scale, softcap, alibi, bias, sink, *options, rng_state = inputs
    ctx.scale, ctx.softcap, ctx.options = scale, softcap, options
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, alibi, bias, sink, rng_state, *output)


def _differentiate(ctx, dout, dlse):
    q, k, v, alibi, bias, sink, rng_state, out, lse = ctx.saved_tensors
    if dout is None:
        dout = torch.zeros_like(out)
    features = (ctx.scale, ctx.softcap, alibi, bias, sink)
    *options, tiles, dropout_p = ctx.options
    needs = ctx.needs_input_grad[6:8]
    dropout = dropout_p, rng_state
    dq, dk, dv, *others = backward(dout, dlse, q, k, v, out, lse, *features, *options, *needs, tiles, *dropout)
    dbias, dsink = (x if needed else None for x, needed in zip(others, needs, strict=True))
    return dq, dk, dv, None, None, None, dbias, dsink, *(None for _ in ctx.options), None


attention.register_autograd(_differentiate, setup_context=_save)
