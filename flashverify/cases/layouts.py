"""Memory layouts: the same values behind different strides, storage offsets and neighbours in memory.

Wherever the layout leaves room, it is filled with NaN: guard bands before and after the data, padding between
rows, gaps between elements. A read outside of a tensor then poisons the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from flashverify.cases.case import AttentionCase
from flashverify.cases.tensors import Inputs

GUARD = 128
"""Elements of NaN before and after the data: a multiple of 16 bytes in every dtype, so that alignment is kept."""

PADDING = 8
"""Elements of NaN after each row of the padded layout: rows stay aligned to 16 bytes if head_dim x itemsize is."""

BHND = (0, 1, 2, 3)
BNHD = (0, 2, 1, 3)
BHDN = (0, 1, 3, 2)

Placement = Callable[[torch.Tensor], torch.Tensor]


def embed(
    tensor: torch.Tensor, order: tuple[int, ...] = BHND, *, step: int = 1, padding: int = 0, offset: int = 0
) -> torch.Tensor:
    """Copy a tensor into a larger buffer of NaN and return the view that holds its values.

    Args:
        tensor: (B, H, N, D) or of other dimensions, floating point.
        order: its dimensions from the slowest in memory to the fastest.
        step: stride of the fastest dimension.
        padding: elements left free after each run of the fastest dimension.
        offset: elements by which the data starts later than the guard band before it ends.

    Returns:
        A view of the same shape, dtype and bits.
    """
    strides = [0] * tensor.ndim
    stride = step
    for dimension in reversed(order):
        strides[dimension] = stride
        stride *= max(tensor.shape[dimension], 1)
        if dimension == order[-1]:
            stride += padding
    buffer = torch.full((GUARD + offset + stride + GUARD,), math.nan, dtype=tensor.dtype, device=tensor.device)
    view = buffer.as_strided(tensor.shape, strides, GUARD + offset)
    return view.copy_(tensor)


def contiguous(tensor: torch.Tensor) -> torch.Tensor:
    """Memory order B,H,N,D without gaps."""
    return embed(tensor)


def bnhd(tensor: torch.Tensor) -> torch.Tensor:
    """Memory order B,N,H,D: the layout of flash-attn and of most models."""
    return embed(tensor, BNHD)


def padded(tensor: torch.Tensor) -> torch.Tensor:
    """Rows longer than head_dim, with NaN after each."""
    return embed(tensor, padding=PADDING)


def offset(tensor: torch.Tensor) -> torch.Tensor:
    """Data that starts one element late: not aligned to 16 bytes."""
    return embed(tensor, offset=1)


def strided_d(tensor: torch.Tensor) -> torch.Tensor:
    """Stride 2 along D, with NaN between any two elements."""
    return embed(tensor, step=2)


def transposed_d(tensor: torch.Tensor) -> torch.Tensor:
    """Memory order B,H,D,N: stride 1 along N."""
    return embed(tensor, BHDN)


def expanded(tensor: torch.Tensor) -> torch.Tensor:
    """Stride 0 along every dimension in which all slices hold the same bits, as after `expand`."""
    bits = tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
    core = tensor
    for dimension in range(tensor.ndim):
        if tensor.numel() and bool((bits == bits.narrow(dimension, 0, 1)).all()):
            core = core.narrow(dimension, 0, 1)
    return embed(core).expand(tensor.shape)


PLACEMENTS: dict[str, Placement] = {
    placement.__name__.replace("_", "-"): placement
    for placement in (contiguous, bnhd, padded, offset, strided_d, transposed_d, expanded)
}
"""Layouts that place each tensor by itself, by name."""

MIXED = ("bnhd", "padded", "offset", "strided-d", "transposed-d")
"""What the tensors of a mixed layout take turns in."""

LAYOUTS = (*PLACEMENTS, "packed-qkv", "mixed")
"""Names of all layouts."""


def apply(case: AttentionCase, inputs: Inputs) -> Inputs:
    """The same values in the layout of the case, on the device where they are.

    `packed-qkv` slices q, k and v out of one buffer (B,N,Hq+2Hkv,D), without q where seqlen_q and seqlen_k differ, and
    without v where it has other columns; the other tensors are B,N,H,D. `mixed` gives each of q, k, v and dout a layout of
    its own, rotating with the seed. dlse is laid out like a tensor of head size 1.

    Raises:
        ValueError: if there is no such layout.
    """
    if case.layout == "packed-qkv":
        return _packed(inputs)
    if case.layout == "mixed":
        turn = [PLACEMENTS[MIXED[(case.seed + index) % len(MIXED)]] for index in range(len(MIXED))]
    elif case.layout in PLACEMENTS:
        turn = [PLACEMENTS[case.layout]] * len(MIXED)
    else:
        raise ValueError(f"layout: got {case.layout!r}, accepted are {', '.join(LAYOUTS)}")
    return Inputs(
        q=turn[0](inputs.q),
        k=turn[1](inputs.k),
        v=turn[2](inputs.v),
        dout=turn[3](inputs.dout),
        dlse=_place_rows(turn[4], inputs.dlse),
        bias=_place_bias(turn[4], inputs.bias),
        sink=inputs.sink,
    )


def memory(tensor: torch.Tensor) -> torch.Tensor:
    """All bytes of the storage that a tensor lies in: its values, and what stands around and between them."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def _place_rows(placement: Placement, dlse: torch.Tensor | None) -> torch.Tensor | None:
    """Place a tensor (B, H, N) as if it had head size 1."""
    return None if dlse is None else placement(dlse[..., None])[..., 0]


def _place_bias(placement: Placement, bias: torch.Tensor | None) -> torch.Tensor | None:
    """Place a bias, whose rows are never equal; a mask, which has no NaN to surround it with, stays as it is."""
    if bias is None or bias.dtype == torch.bool:
        return bias
    return contiguous(bias) if placement is expanded else placement(bias)


def _packed(inputs: Inputs) -> Inputs:
    """q, k and v, as far as they have the lengths and the columns of k, as slices of one buffer in the order B,N,H,D."""
    tensors = {"q": inputs.q, "k": inputs.k, "v": inputs.v}
    together = {name: x for name, x in tensors.items() if x.shape[2:] == inputs.k.shape[2:]}
    buffer = embed(torch.cat(list(together.values()), dim=1), BNHD)
    parts = torch.split(buffer, [x.shape[1] for x in together.values()], dim=1)
    placed = {name: bnhd(x) for name, x in tensors.items() if name not in together} | dict(zip(together, parts, strict=True))
    return Inputs(
        **placed,
        dout=bnhd(inputs.dout),
        dlse=_place_rows(bnhd, inputs.dlse),
        bias=_place_bias(bnhd, inputs.bias),
        sink=inputs.sink,
    )
