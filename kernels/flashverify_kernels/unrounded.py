"""A debug mode: the same kernels with their final rounding left out, so that what they compute is seen as it is.

out and the gradients are stored in the accumulator's dtype, float32. The backward kernels still take out as users get it,
rounded: they are the functions that users run, seen before their last cast.
"""

import torch

from flashverify_kernels.backward import attention_backward
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
    precision: str = "ieee",
    softcap: float | None = None,
    alibi: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
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
        precision: Triton's input precision of float32 products.
        softcap: logits become softcap·tanh(logit / softcap); None: they stay.
        alibi: slopes (B, Hq) of linear biases, float32; None: there are none.

    Returns:
        out, lse, dq, dk, dv, all float32.

    Raises:
        ValueError: if q is neither float16 nor bfloat16: other dtypes have no final rounding to leave out.
    """
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"q: got {q.dtype}, accepted are torch.float16 and torch.bfloat16")
    tiles = tiles_for(q.device, q.dtype, q.shape[3], v.shape[3], is_masked(causal_offset, first_offset), precision)
    with torch.cuda.device(q.device if q.is_cuda else -1), torch.no_grad():
        visible = (causal_offset, first_offset)
        forward = (q, k, v, scale, *visible, precision, tiles.forward)
        feature = {"softcap": softcap, "alibi": alibi}
        options = {"output_dtype": torch.float32, **feature}
        seen, _ = attention_forward(*forward, **options)
        out, lse = attention_forward(*forward, **feature)
        gradients = attention_backward(
            dout, dlse, q, k, v, out, lse, scale, *visible, precision, tiles.dkdv, tiles.dq, **options
        )
    return seen, lse, *gradients
