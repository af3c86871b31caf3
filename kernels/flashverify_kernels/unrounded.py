"""A debug mode: the same kernels with their final rounding left out, so that what they compute is seen as it is.

out and the gradients are stored in the accumulator's dtype, float32. The backward kernels still take out as users get it,
rounded: they are the functions that users run, seen before their last cast.
"""

import torch

from flashverify_kernels.backward import attention_backward
from flashverify_kernels.dropout import dropout_of
from flashverify_kernels.forward import attention_forward
from flashverify_kernels.tiles import is_masked, tiles_for


def unrounded_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dout: torch.Tensor,
    dlse: torch.Tensor | None,
    scale: float,
    causal_offset: int | None,
    first_offset: int | None = None,
    softcap: float | None = None,
    alibi: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    rng_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor | None, ...]:
    """Forward and backward with float32 outputs.

    Args:
        q: (B, Hq, Nq, D), float16 or bfloat16, any strides.
        k: (B, Hkv, Nk, D), any strides; Hq is a multiple of Hkv.
        v: (B, Hkv, Nk, Dv), any strides.
        dout: cotangent of out, (B, Hq, Nq, Dv), any strides.
        dlse: cotangent of lse, (B, Hq, Nq), or None.
        scale: softmax scale.
        causal_offset: query i sees no key after i + causal_offset; None: no such limit.
        first_offset: query i sees no key before i + first_offset; None: no such limit.
        softcap: logits become softcap·tanh(logit / softcap); None: they stay.
        alibi: slopes (B, Hq) of linear biases, float32; None: there are none.
        bias: (1|B, 1|Hq, 1|Nq, Nk), of q's dtype, float32 or bool, any strides; None: there is none.
        sink: (Hq,), of q's dtype or float32; None: there is none.
        dropout_p: share of pairs that are dropped.
        rng_state: int64 (2,), seed and offset of the generator; None: nothing is dropped.

    Returns:
        out, lse, dq, dk, dv, dbias, dsink, all float32; the last two are None where there is no floating bias, or no sink.

    Raises:
        ValueError: if q is neither float16 nor bfloat16: other dtypes have no final rounding to leave out.
    """
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"q: got {q.dtype}, accepted are torch.float16 and torch.bfloat16")
    dropout = dropout_of(dropout_p, rng_state)
    masked = is_masked(causal_offset, first_offset)
    tiles = tiles_for(q.device, q.dtype, q.shape[3], v.shape[3], masked, "ieee", dropout is not None)
    with torch.cuda.device(q.device if q.is_cuda else -1), torch.no_grad():
        visible = (causal_offset, first_offset)
        forward = (q, k, v, scale, *visible, "ieee", tiles.forward)
        feature = {"softcap": softcap, "alibi": alibi, "bias": bias, "sink": sink, "dropout": dropout}
        needs = {"needs_bias_grad": True, "needs_sink_grad": True}
        options = {"output_dtype": torch.float32, **feature}
        seen, _ = attention_forward(*forward, **options)
        out, lse = attention_forward(*forward, **feature)
        gradients = attention_backward(
            dout, dlse, q, k, v, out, lse, scale, *visible, "ieee", tiles.dkdv, tiles.dq, **options, **needs
        )
    return seen, lse, *gradients
