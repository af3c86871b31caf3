"""A probability and its dropout bit in one number: a dropped pair carries the sign.

No probability is negative, so its sign bit is free. It is written and read as a bit, in the integers that have the same
memory: a probability that underflowed to 0 keeps its bit as -0.0, and a NaN keeps its own, both of which a comparison such as
`signed >= 0` would lose.
"""

from __future__ import annotations

import torch

INTEGERS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}
"""The formats of probabilities, with the integers that have as many bits: the sign bit of both is the same one."""


def encode(probability: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """One tensor for probabilities and dropout bits.

    Args:
        probability: tensor of a format in `INTEGERS` without signs. Beyond numbers from 0 to 1: one that a rounding took above
            1, infinity and NaN are carried too, for a kernel may compute them.
        keep: bool tensor that broadcasts to its shape: False where a pair is dropped.

    Returns:
        The probabilities, with their signs set where a pair is dropped.

    Raises:
        TypeError: if a tensor has another dtype.
        ValueError: if a probability has a sign, be it that of -0.0.
    """
    bits = _bits("probability", probability)
    if keep.dtype != torch.bool:
        raise TypeError(f"keep: got {keep.dtype}, accepted is torch.bool")
    if bool((bits < 0).any()):
        raise ValueError("probability: got numbers with a sign, accepted are numbers without: the sign bit is dropout's")
    return torch.where(keep, bits, bits | _sign(bits)).view(probability.dtype)


def decode(signed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The probabilities and the dropout bits of a tensor that carries both.

    Args:
        signed: tensor of a format in `INTEGERS`.

    Returns:
        The probabilities without signs, and a bool tensor: False where a pair is dropped.

    Raises:
        TypeError: if the tensor has another dtype.
    """
    bits = _bits("signed", signed)
    return (bits & ~_sign(bits)).view(signed.dtype), bits >= 0  # as an integer, every pattern with the sign bit is negative


def lost_by_value(signed: torch.Tensor) -> int:
    """How many dropout bits `signed >= 0` would read wrongly: dropped pairs of probability 0, kept pairs that are NaN.

    Raises:
        TypeError: if the tensor has a dtype that is none of `INTEGERS`.
    """
    return int(((signed >= 0) != decode(signed)[1]).sum())


def is_probability(values: torch.Tensor) -> torch.Tensor:
    """Which values are probabilities, bool: the patterns of +0, of every subnormal, and on up to that of 1.

    These are 15,361 of float16's 65,536 patterns and 16,257 of bfloat16's. No others are: -0.0 and negative numbers carry a
    sign, numbers above 1, infinity and NaN have larger patterns.

    Raises:
        TypeError: if the tensor has a dtype that is none of `INTEGERS`.
    """
    bits = _bits("values", values)
    one = torch.ones((), dtype=values.dtype, device=values.device).view(bits.dtype)
    return (bits >= 0) & (bits <= one)


def _bits(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype not in INTEGERS:
        raise TypeError(f"{name}: got {tensor.dtype}, accepted are {', '.join(map(str, INTEGERS))}")
    return tensor.view(INTEGERS[tensor.dtype])


def _sign(bits: torch.Tensor) -> int:
    """The integer whose only bit is the sign."""
    return torch.iinfo(bits.dtype).min
