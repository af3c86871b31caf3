"""Validation of biases, masks and sinks; see `validation.py`."""

import torch

from flashverify_kernels.launch import accumulator_of
from flashverify_kernels.validation import dtype_name


def _check_dense(name: str, value: object, q: torch.Tensor, *, allows_bool: bool) -> torch.Tensor:
    """Raise unless the value is a dense tensor of an accepted dtype, on q's device."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, accepted are a torch.Tensor and None")
    if value.is_nested or value.layout != torch.strided:
        kind = "a nested tensor" if value.is_nested else f"a tensor of layout {value.layout}"
        raise TypeError(f"{name}: got {kind}, accepted are dense tensors (torch.strided)")
    accepted = dict.fromkeys((*([torch.bool] if allows_bool else []), q.dtype, accumulator_of(q.dtype)))
    if value.dtype not in accepted:
        names = ", ".join(dtype_name(dtype) for dtype in accepted)
        raise TypeError(f"{name}: got dtype {dtype_name(value.dtype)}, accepted beside {dtype_name(q.dtype)} are {names}")
    if value.device != q.device:
        raise ValueError(f"{name}: got a tensor on {value.device}, accepted is q's device, {q.device}")
    return value


def resolve_bias(name: str, value: object, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor | None:
    """A bias or mask (1|B, 1|Hq, 1|Nq, Nk) of q (B, Hq, Nq, D) and k (B, Hkv, Nk, D), or None.

    Raises:
        TypeError: if it is no dense tensor of bool, q's dtype, or the accumulator's.
        ValueError: if its shape is another, or its device is not q's.
    """
    if value is None:
        return None
    bias = _check_dense(name, value, q, allows_bool=True)
    full = (*q.shape[:3], k.shape[2])
    fits = bias.dim() == 4 and bias.shape[3] == full[3]
    if not fits or any(size not in (1, whole) for size, whole in zip(bias.shape, full, strict=True)):
        batch, heads, rows, keys = full
        accepted = f"shapes ({batch} or 1, {heads} or 1, {rows} or 1, {keys})"
        raise ValueError(f"{name}: got shape {tuple(bias.shape)}, accepted are {accepted}")
    return bias


def resolve_mask(name: str, value: object, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor | None:
    """A bias or mask that torch's rules broadcast to (B, Hq, Nq, Nk), as (1|B, 1|Hq, 1|Nq, Nk) without a copy, or None.

    Raises:
        TypeError: if it is no dense tensor of bool, q's dtype, or the accumulator's.
        ValueError: if it has not 2 to 4 dimensions that broadcast, or its device is not q's.
    """
    if value is None:
        return None
    mask = _check_dense(name, value, q, allows_bool=True)
    full = (*q.shape[:3], k.shape[2])
    dims = mask.dim()
    fits = 2 <= dims <= 4
    if not fits or any(size not in (1, whole) for size, whole in zip(mask.shape, full[4 - dims :], strict=True)):
        accepted = f"shapes of 2 to 4 dimensions that broadcast to {full}"
        raise ValueError(f"{name}: got shape {tuple(mask.shape)}, accepted are {accepted}")
    mask = mask[(None,) * (4 - dims)]
    return mask.expand(*mask.shape[:3], full[3])


def resolve_sink(name: str, value: object, q: torch.Tensor) -> torch.Tensor | None:
    """Sinks (Hq,) of q (B, Hq, Nq, D), or None.

    Raises:
        TypeError: if they are no dense tensor of q's dtype or the accumulator's.
        ValueError: if their shape is another, or their device is not q's.
    """
    if value is None:
        return None
    sink = _check_dense(name, value, q, allows_bool=False)
    if tuple(sink.shape) != (q.shape[1],):
        raise ValueError(f"{name}: got shape {tuple(sink.shape)}, accepted is ({q.shape[1]},)")
    return sink
