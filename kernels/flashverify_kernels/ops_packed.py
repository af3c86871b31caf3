"""Registration with `torch.library` of attention of packed sequences; see `ops.py`."""

import torch

from flashverify_kernels.attn_probs import attention_probabilities
from flashverify_kernels.backward import attention_backward
from flashverify_kernels.dropout import dropout_of
from flashverify_kernels.forward import attention_forward
from flashverify_kernels.launch import accumulator_of, output_like
from flashverify_kernels.ops import NAMESPACE, on_device_of, tiles_of
from flashverify_kernels.packed import Packed


def _packed(starts_q: torch.Tensor, starts_k: torch.Tensor, used_q: torch.Tensor | None, used_k: torch.Tensor | None) -> Packed:
    used = (None if x is None else x.contiguous() for x in (used_q, used_k))
    return Packed(starts_q.contiguous(), starts_k.contiguous(), *used)


def _slopes(alibi: torch.Tensor | None, packed: Packed) -> torch.Tensor | None:
    """Slopes, or None if there is no sequence: rows are then written by programs that have no slope to read."""
    return alibi if packed.sequences else None


@torch.library.custom_op(f"{NAMESPACE}::packed_attention", mutates_args=())
def packed_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sink: torch.Tensor | None,
    starts_q: torch.Tensor,
    starts_k: torch.Tensor,
    used_q: torch.Tensor | None,
    used_k: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    alibi: torch.Tensor | None,
    last_offset: int | None,
    first_offset: int | None,
    precision: str,
    tiles: list[int] | None,
    dropout_p: float = 0.0,
    rng_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Out (1, H, rows, D) and lse (1, H, rows) of packed sequences; see `forward.attention_forward`."""
    limits = last_offset, first_offset
    dropout = dropout_of(dropout_p, rng_state)
    tile = tiles_of(q, v, *limits, precision, tiles, dropout).forward
    packed = _packed(starts_q, starts_k, used_q, used_k)
    with on_device_of(q):
        features = {"softcap": softcap, "alibi": _slopes(alibi, packed), "sink": sink, "dropout": dropout, "packed": packed}
        return attention_forward(q, k, v, scale, *limits, precision, tile, **features)


@packed_attention.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sink: torch.Tensor | None,
    starts_q: torch.Tensor,
    starts_k: torch.Tensor,
    used_q: torch.Tensor | None,
    used_k: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    alibi: torch.Tensor | None,
    last_offset: int | None,
    first_offset: int | None,
    precision: str,
    tiles: list[int] | None,
    dropout_p: float = 0.0,
    rng_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return output_like(q, columns=v.shape[3]), torch.empty(q.shape[:3], dtype=accumulator_of(q.dtype), device=q.device)


@torch.library.custom_op(f"{NAMESPACE}::packed_attention_backward", mutates_args=())
def packed_backward(
    dout: torch.Tensor,
    dlse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sink: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    starts_q: torch.Tensor,
    starts_k: torch.Tensor,
    used_q: torch.Tensor | None,
    used_k: torch.Tensor | None,
    alibi: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    last_offset: int | None,
    first_offset: int | None,
    precision: str,
    needs_sink_grad: bool,
    tiles: list[int] | None,
    dropout_p: float = 0.0,
    rng_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Dq, dk, dv (1, H, rows, D), and dsink, of size 0 unless needed; see `backward.attention_backward`."""
    limits = last_offset, first_offset
    dropout = dropout_of(dropout_p, rng_state)
    chosen = tiles_of(q, v, *limits, precision, tiles, dropout)
    packed = _packed(starts_q, starts_k, used_q, used_k)
    with on_device_of(q):
        features = {"softcap": softcap, "alibi": _slopes(alibi, packed), "sink": sink, "dropout": dropout, "packed": packed}
        given = dout, dlse, q, k, v, out, lse, scale, *limits, precision
        features["needs_sink_grad"] = needs_sink_grad
        dq, dk, dv, _, dsink = attention_backward(*given, chosen.dkdv, chosen.dq, **features)
        return dq, dk, dv, q.new_empty(0) if dsink is None else dsink


@packed_backward.register_fake
def _(
    dout: torch.Tensor,
    dlse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sink: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    starts_q: torch.Tensor,
    starts_k: torch.Tensor,
    used_q: torch.Tensor | None,
    used_k: torch.Tensor | None,
    alibi: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    last_offset: int | None,
    first_offset: int | None,
    precision: str,
    needs_sink_grad: bool,
    tiles: list[int] | None,
    dropout_p: float = 0.0,
    rng_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    dsink = torch.empty_like(sink, memory_format=torch.contiguous_format) if needs_sink_grad else q.new_empty(0)
    return output_like(q), output_like(k), output_like(v), dsink


@torch.library.custom_op(f"{NAMESPACE}::packed_attention_probabilities", mutates_args=())
def packed_probabilities(
    q: torch.Tensor,
    k: torch.Tensor,
    lse: torch.Tensor,
    starts_q: torch.Tensor,
    starts_k: torch.Tensor,
    used_q: torch.Tensor | None,
    used_k: torch.Tensor | None,
    longest_q: int,
    longest_k: int,
    scale: float,
    softcap: float | None,
    alibi: torch.Tensor | None,
    last_offset: int | None,
    first_offset: int | None,
    precision: str,
    dropout_p: float,
    rng_state: torch.Tensor | None,
) -> torch.Tensor:
    """Probabilities (sequences, H, longest_q, longest_k) with the dropout mask in their sign bits."""
    packed = _packed(starts_q, starts_k, used_q, used_k)
    dropout = dropout_of(dropout_p, rng_state)
    with on_device_of(q):
        given = q, k, lse.contiguous(), scale, last_offset, first_offset, precision, dropout, softcap, alibi
        return attention_probabilities(*given, packed=packed, longest=(longest_q, longest_k))


@packed_probabilities.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    lse: torch.Tensor,
    starts_q: torch.Tensor,
    starts_k: torch.Tensor,
    used_q: torch.Tensor | None,
    used_k: torch.Tensor | None,
    longest_q: int,
    longest_k: int,
    scale: float,
    softcap: float | None,
    alibi: torch.Tensor | None,
    last_offset: int | None,
    first_offset: int | None,
    precision: str,
    dropout_p: float,
    rng_state: torch.Tensor | None,
) -> torch.Tensor:
    return q.new_empty((starts_q.shape[0] - 1, q.shape[1], longest_q, longest_k))


def _save(ctx, inputs, output) -> None:
    q, k, v, sink, starts_q, starts_k, used_q, used_k, scale, softcap, alibi, *options, rng_state = inputs
    ctx.scale, ctx.softcap, ctx.options = scale, softcap, options
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, sink, rng_state, *output, starts_q, starts_k, used_q, used_k, alibi)


def _differentiate(ctx, dout, dlse):
    q, k, v, sink, rng_state, out, lse, *others = ctx.saved_tensors
    if dout is None:
        dout = torch.zeros_like(out)
    *options, tiles, dropout_p = ctx.options
    needs_sink_grad = ctx.needs_input_grad[3]
    given = dout, dlse, q, k, v, sink, out, lse, *others, ctx.scale, ctx.softcap, *options, needs_sink_grad, tiles
    dq, dk, dv, dsink = packed_backward(*given, dropout_p, rng_state)
    return dq, dk, dv, dsink if needs_sink_grad else None, *(None for _ in range(13))


packed_attention.register_autograd(_differentiate, setup_context=_save)
