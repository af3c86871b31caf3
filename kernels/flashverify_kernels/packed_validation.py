"""Validation of what says where packed sequences lie; see `validation.py`.

What only the GPU knows is not checked, since that would wait for it: kernels cut starts and lengths off at the tensors' ends.
"""

import numbers

import torch

from flashverify_kernels.validation import dtype_name, shown


def _check_int32(name: str, value: object, device: torch.device, count: int | None) -> torch.Tensor:
    """Raise unless the value is a dense one-dimensional int32 tensor on the device, of `count` elements or of at least one."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: got {shown(value)}, accepted are int32 tensors")
    if value.is_nested or value.layout != torch.strided or value.dtype != torch.int32:
        kind = "a nested tensor" if value.is_nested else f"dtype {dtype_name(value.dtype)}, layout {value.layout}"
        raise TypeError(f"{name}: got {kind}, accepted are dense tensors of int32")
    if value.dim() != 1 or (value.shape[0] == 0 if count is None else value.shape[0] != count):
        accepted = "(sequences + 1,)" if count is None else f"({count},)"
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, accepted is {accepted}")
    if value.device != device:
        raise ValueError(f"{name}: got a tensor on {value.device}, accepted is q's device, {device}")
    return value


def check_starts(starts: tuple[tuple[str, object], tuple[str, object]], device: torch.device) -> int:
    """The number of sequences, from the starts of queries and of keys, by name.

    Raises:
        TypeError: if one is no int32 tensor.
        ValueError: if they are of different or no length, or not on the device.
    """
    (first_name, first), (second_name, second) = starts
    count = _check_int32(first_name, first, device, None).shape[0]
    _check_int32(second_name, second, device, count)
    return count - 1


def check_used(name: str, value: object, sequences: int, device: torch.device) -> None:
    """Raise unless the value is an int32 tensor of one number a sequence, on the device, or None.

    Raises:
        TypeError: if it is no int32 tensor.
        ValueError: if its length or device is wrong.
    """
    if value is not None:
        _check_int32(name, value, device, sequences)


def check_longest(name: str, value: object) -> None:
    """Raise unless the value is an integer of at least 0.

    Raises:
        TypeError: if it is no integer.
        ValueError: if it is negative.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral | torch.SymInt):
        raise TypeError(f"{name}: got {shown(value)}, accepted are integers of at least 0")
    if value < 0:
        raise ValueError(f"{name}: got {value}, accepted are integers of at least 0")


def check_rows(named: tuple[tuple[str, torch.Tensor], ...]) -> None:
    """Raise ValueError if packed q, k or v has more rows than int32 starts can say, or v another number than k."""
    largest = torch.iinfo(torch.int32).max
    for name, x in named:
        if x.shape[0] > largest:
            raise ValueError(f"{name}: got {x.shape[0]} rows, accepted are at most {largest}")
    _, (k_name, k), (v_name, v) = named
    if v.shape[0] != k.shape[0]:
        raise ValueError(f"{v_name}: got {v.shape[0]} rows, accepted is {k_name}'s number, {k.shape[0]}")
