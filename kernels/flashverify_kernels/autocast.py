"""What `torch.autocast` does to the arguments of torch's own attention, done to those of the function that stands in for it.

`scaled_dot_product_attention` is in torch's list of operators that run in lower precision ("CUDA Ops that can autocast to
float16", torch.amp): each floating argument but those of float64 is cast to the dtype of the region, a mask among them.
"""

import torch


def cast_as_autocast(x: torch.Tensor | None) -> torch.Tensor | None:
    """A tensor in the dtype in which torch's attention would take it here; what torch would not cast is returned as it is."""
    if not isinstance(x, torch.Tensor) or x.device.type not in ("cuda", "cpu"):
        return x
    kind = x.device.type
    if not torch.is_autocast_enabled(kind) or not x.is_floating_point() or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(kind))
