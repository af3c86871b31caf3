"""Validation of arguments: before anything is launched, an error names the argument, what came and what is accepted."""

import math
import numbers
import reprlib

import torch

from flashverify_kernels.launch import INTERPRETED
from flashverify_kernels.tiles import Tiles

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MAX_HEAD_DIM = 256
PRECISIONS = ("ieee", "bf16x6", "tf32x3", "tf32")
"""Of float32 products, from the most faithful to the fastest; flashverify_kernels.api says what each is."""

_SINGLE = torch.finfo(torch.float32)
SCALE_RANGE = {
    torch.float64: (torch.finfo(torch.float64).tiny, torch.finfo(torch.float64).max / 2.0),
    **dict.fromkeys((torch.float16, torch.bfloat16, torch.float32), (_SINGLE.tiny, _SINGLE.max / 2.0)),
}
"""Magnitudes of a nonzero scale: it and its product with log2(e) must be normal numbers of the accumulator's format."""


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype as messages write it."""
    return str(dtype).removeprefix("torch.")


def dtype_names(dtypes: tuple[torch.dtype, ...]) -> str:
    """Dtypes as messages write them."""
    return ", ".join(dtype_name(dtype) for dtype in dtypes)


def shown(value: object) -> str:
    """A value and its type, as messages show what came."""
    return f"{reprlib.repr(value)} of type {type(value).__name__}"


def check_packed(name: str, x: torch.Tensor, count: int, rows: str = "batch, sequence") -> None:
    """Raise unless x is a tensor (*rows, count, H, D).

    Raises:
        TypeError: if it is no tensor.
        ValueError: if its shape is another.
    """
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name}: got {type(x).__name__}, accepted is a torch.Tensor")
    if x.is_nested or x.dim() != 4 + rows.count(",") or x.shape[-3] != count:
        found = "a nested tensor" if x.is_nested else f"shape {tuple(x.shape)}"
        raise ValueError(f"{name}: got {found}, accepted are shapes ({rows}, {count}, heads, head size)")


def check_tensors(named: tuple[tuple[str, torch.Tensor], ...], dims: int = 4) -> None:
    """Type, rank, dtype and device of q, k and v, by name and in the order given; the first one sets the standard.

    Raises:
        TypeError: if one is no dense tensor, has a dtype that is not accepted, or dtypes differ.
        ValueError: if ranks or devices are wrong or differ.
    """
    first_name, first = named[0]
    for name, x in named:
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name}: got {type(x).__name__}, accepted is a torch.Tensor")
        if x.is_nested:
            raise TypeError(f"{name}: got a nested tensor, accepted are dense tensors (torch.strided)")
        if x.layout != torch.strided:
            raise TypeError(f"{name}: got a tensor of layout {x.layout}, accepted are dense tensors (torch.strided)")
        if x.dtype not in DTYPES:
            raise TypeError(f"{name}: got dtype {dtype_name(x.dtype)}, accepted are {dtype_names(DTYPES)}")
        if x.dim() != dims:
            raise ValueError(f"{name}: got {x.dim()} dimensions, shape {tuple(x.shape)}, accepted are {dims} dimensions")
        if x.dtype != first.dtype:
            raise TypeError(f"{name}: got dtype {dtype_name(x.dtype)}, accepted is {first_name}'s, {dtype_name(first.dtype)}")
        if x.device != first.device:
            raise ValueError(f"{name}: got a tensor on {x.device}, accepted is {first_name}'s device, {first.device}")
    if not (first.is_cuda or (INTERPRETED and first.device.type == "cpu")):
        accepted = "a CUDA device, or cpu if TRITON_INTERPRET=1 was set when this package was imported"
        raise ValueError(f"{first_name}: got a tensor on {first.device}, accepted is {accepted}")


def check_shapes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, names: tuple[str, str, str]) -> None:
    """Shapes of q (B, Hq, Nq, D), k (B, Hkv, Nk, D) and v (B, Hkv, Nk, Dv).

    Raises:
        ValueError: if they don't fit together; messages use `names` for q, k and v.
    """
    q_name, k_name, v_name = names
    head_dim = q.shape[3]
    for name, size in ((q_name, head_dim), (v_name, v.shape[3])):
        if not 1 <= size <= MAX_HEAD_DIM:
            raise ValueError(f"{name}: got head size {size}, accepted are head sizes from 1 to {MAX_HEAD_DIM}")
    if k.shape[3] != head_dim:
        raise ValueError(f"{k_name}: got head size {k.shape[3]}, accepted is {q_name}'s, {head_dim}")
    for name, x in ((k_name, k), (v_name, v)):
        if x.shape[0] != q.shape[0]:
            raise ValueError(f"{name}: got batch size {x.shape[0]}, accepted is {q_name}'s, {q.shape[0]}")
    if v.shape[1] != k.shape[1]:
        raise ValueError(f"{v_name}: got {v.shape[1]} heads, accepted is {k_name}'s number, {k.shape[1]}")
    if v.shape[2] != k.shape[2]:
        raise ValueError(f"{v_name}: got sequence length {v.shape[2]}, accepted is {k_name}'s, {k.shape[2]}")
    heads_q, heads_kv = q.shape[1], k.shape[1]
    if heads_kv == 0 or heads_q % heads_kv:
        accepted = "a divisor of the number of query heads"
        raise ValueError(f"{k_name}: got {heads_kv} heads, accepted is {accepted}, {heads_q}")


def check_bool(name: str, value: object) -> None:
    """Raise TypeError unless the value is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: got {shown(value)}, accepted are True and False")


def check_real(name: str, value: object) -> None:
    """Raise unless the value is a real number: of Python, of NumPy, or a symbol of a traced graph; a bool is none.

    Raises:
        TypeError: if it is no real number.
        ValueError: if it is too large for a float64.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real | torch.SymInt | torch.SymFloat):
        raise TypeError(f"{name}: got {shown(value)}, accepted are real numbers")
    try:
        float(value)
    except OverflowError:
        raise ValueError(f"{name}: got a number too large for a float64, accepted are real numbers") from None


def resolve_scale(name: str, scale: float | None, q: torch.Tensor) -> float:
    """The softmax scale: as given, or 1/sqrt(head size).

    Raises:
        TypeError: if it is no real number.
        ValueError: if it is not finite, or too large or too small for the accumulator of q's dtype.
    """
    if scale is None:
        return float(q.shape[3]) ** -0.5
    check_real(name, scale)
    scale = float(scale)
    if not -math.inf < scale < math.inf:  # math.isfinite can't be traced with a symbol
        raise ValueError(f"{name}: got {scale}, accepted are finite numbers and None")
    smallest, largest = SCALE_RANGE[q.dtype]
    if scale != 0.0 and not smallest <= abs(scale) <= largest:
        accepted = f"0 and magnitudes from {smallest:.3g} to {largest:.3g}"
        raise ValueError(f"{name}: got {scale}, accepted for {dtype_name(q.dtype)} are {accepted}")
    return scale


def check_dropout(name: str, value: object) -> None:
    """Raise unless the value is a drop rate.

    Raises:
        TypeError: if it is no real number.
        ValueError: if it is no probability.
    """
    check_real(name, value)
    if not 0.0 <= value <= 1.0:  # type: ignore[operator]
        raise ValueError(f"{name}: got {value}, accepted are probabilities from 0 to 1")


SOFTCAP_RANGE = (2.0**-20, 2.0**40)
"""Soft caps: far beyond those in use, and such that a cap and its products with log2(e) and 1/scale are normal numbers."""


def resolve_softcap(name: str, value: object, scale: float, dtype: torch.dtype) -> float | None:
    """The soft cap of logits, or None for 0, which is no cap.

    Args:
        name: the argument's name.
        value: the argument.
        scale: the softmax scale, which is divided by the cap.
        dtype: of q.

    Raises:
        TypeError: if it is no real number.
        ValueError: if it is neither 0 nor in the range, or too small or too large beside the scale.
    """
    check_real(name, value)
    cap = float(value)  # type: ignore[arg-type]
    if cap == 0.0:
        return None
    smallest, largest = SOFTCAP_RANGE
    if not smallest <= cap <= largest:
        raise ValueError(f"{name}: got {value}, accepted are 0 and numbers from {smallest:.3g} to {largest:.3g}")
    smallest, largest = SCALE_RANGE[dtype]
    if scale != 0.0 and not smallest <= abs(scale) / cap <= largest:
        accepted = f"scale / {name} from {smallest:.3g} to {largest:.3g}"
        raise ValueError(f"{name}: got {value} beside the scale {scale}, accepted for {dtype_name(dtype)} is {accepted}")
    return cap


def resolve_alibi(name: str, value: object, q: torch.Tensor, sequences: int | None = None) -> torch.Tensor | None:
    """Slopes of linear biases as (B, Hq), or None; B is that of q (B, Hq, N, D), or the number of packed sequences.

    Raises:
        TypeError: if they are no dense float32 tensor.
        ValueError: if their shape is neither (Hq,) nor (B, Hq), or their device is not q's.
    """
    if value is None:
        return None
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, accepted are a torch.Tensor and None")
    if value.is_nested or value.layout != torch.strided or value.dtype != torch.float32:
        kind = "a nested tensor" if value.is_nested else f"dtype {dtype_name(value.dtype)}, layout {value.layout}"
        raise TypeError(f"{name}: got {kind}, accepted are dense tensors of float32")
    batch, heads = q.shape[0] if sequences is None else sequences, q.shape[1]
    if tuple(value.shape) not in ((heads,), (batch, heads)):
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, accepted are ({heads},) and ({batch}, {heads})")
    if value.device != q.device:
        raise ValueError(f"{name}: got a tensor on {value.device}, accepted is q's device, {q.device}")
    if value.requires_grad:
        raise NotImplementedError(
            f"{name}: got a tensor that requires a gradient; slopes have none, accepted is a detached one"
        )
    return value.expand(batch, heads)


def check_window(name: str, value: object) -> tuple[int | None, int | None]:
    """The two sides of a window, left and right; None where there is no limit.

    Raises:
        TypeError: if it is no pair of integers.
        ValueError: if a side is below -1.
    """
    is_pair = isinstance(value, tuple | list) and len(value) == 2
    if not is_pair or any(isinstance(side, bool) or not isinstance(side, numbers.Integral | torch.SymInt) for side in value):
        raise TypeError(f"{name}: got {shown(value)}, accepted are pairs of integers")
    sides = tuple(side if isinstance(side, torch.SymInt) else int(side) for side in value)  # of Python, or of NumPy
    if any(side < -1 for side in sides):
        raise ValueError(f"{name}: got {reprlib.repr(sides)}, accepted are sides of -1 (unlimited), 0 or more")
    left, right = (None if side == -1 else side for side in sides)
    return left, right


def window_offsets(seqlen_q: int, seqlen_k: int, left: int | None, right: int | None) -> tuple[int | None, int | None]:
    """Between which offsets from its row a query sees keys, aligned bottom-right: (last, first); None: no limit.

    Sides that reach beyond every key are no limit, whatever their size.
    """
    position = seqlen_k - seqlen_q
    last = None if right is None or right >= seqlen_q + seqlen_k else position + right
    first = None if left is None or left >= seqlen_q + seqlen_k else position - left
    return last, first


def check_precision(name: str, value: object) -> None:
    """Raise unless the value names a precision of float32 products."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: got {shown(value)}, accepted are {', '.join(PRECISIONS)}")
    if value not in PRECISIONS:
        raise ValueError(f"{name}: got {value!r}, accepted are {', '.join(PRECISIONS)}")


def check_tiles(name: str, value: object) -> list[int] | None:
    """The flattened tiles, or None; TypeError if the value is neither a `Tiles` nor None."""
    if value is None:
        return None
    if not isinstance(value, Tiles):
        raise TypeError(f"{name}: got {type(value).__name__}, accepted are flashverify_kernels.Tiles and None")
    return value.flatten()
