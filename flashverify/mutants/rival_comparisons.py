"""How other projects compare a kernel's outputs with references: one function a form, from its constants to a comparison.

Each comparison takes outputs, reference and what is in the same precision (None where the form has no use for it), and says
whether the outputs are accepted. An output that is missing is not. Differences are taken in the dtype that torch gives them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from flashverify.cases.tensors import Outputs

Comparison = Callable[[Outputs, Outputs, Outputs | None], bool]

FLOOR = 1e-5
"""The least threshold of torch's and aotriton's rules: torch's default absolute tolerance of float32."""

NEGLIGIBLE_ERROR, NEGLIGIBLE_SIZE = 1e-6, 1e-8
"""The error that flash-linear-attention's rule lets pass whatever the ratio, and what is added to the ratio's denominator."""

FORWARD_AND_GRADIENTS = ("out", "dq", "dk", "dv")


def by_largest_error(factors: dict[str, float]) -> Comparison:
    """The largest error is at most a factor times that of the same precision. A NaN is above everything."""

    def accepts(outputs: Outputs, reference: Outputs, same: Outputs | None) -> bool:
        assert same is not None
        return all(
            x is not None and _largest(x, truth) <= factors[name] * _largest(getattr(same, name), truth)
            for name, x, truth in _pairs(outputs, reference, tuple(factors))
        )

    return accepts


def by_largest_error_or_floor(
    factors: dict[str, float],
    *,
    changed_by_bias: dict[str, float],
    changed_in_float32: dict[str, float],
    pardons_nan: bool,
) -> Comparison:
    """The same, or at most 1e-5.

    Args:
        factors: for each tensor.
        changed_by_bias: factors that are others where there is a gradient of a bias.
        changed_in_float32: factors that are others in float32.
        pardons_nan: whether a NaN is accepted where the same precision has one too.
    """

    def accepts(outputs: Outputs, reference: Outputs, same: Outputs | None) -> bool:
        assert same is not None
        now = factors | (changed_by_bias if reference.dbias is not None else {})
        now |= changed_in_float32 if outputs.out.dtype == torch.float32 else {}
        for name, x, truth in _pairs(outputs, reference, tuple(now)):
            if x is None:
                return False
            error, measure = _largest(x, truth), _largest(getattr(same, name), truth)
            if math.isnan(error) and math.isnan(measure) and pardons_nan:
                continue
            if not error <= max(FLOOR, now[name] * measure):
                return False
        return True

    return accepts


def by_mean_error(factor: float, *, in_float32: float) -> Comparison:
    """The mean error is at most a factor times that of the same precision, and neither is NaN."""

    def accepts(outputs: Outputs, reference: Outputs, same: Outputs | None) -> bool:
        assert same is not None
        now = in_float32 if outputs.out.dtype == torch.float32 else factor
        return all(
            x is not None and (truth - x).abs().mean().item() <= now * (truth - getattr(same, name)).abs().mean().item()
            for name, x, truth in _pairs(outputs, reference, FORWARD_AND_GRADIENTS)
        )

    return accepts


def close(absolute: float, relative: float) -> Comparison:
    """Every element is close, in the dtype of both (`torch.isclose`); NaN is close to nothing."""

    def accepts(outputs: Outputs, reference: Outputs, same: Outputs | None) -> bool:
        del same
        return all(
            x is not None and torch.allclose(x, truth, atol=absolute, rtol=relative)
            for _, x, truth in _pairs(outputs, reference, FORWARD_AND_GRADIENTS)
        )

    return accepts


def close_in_float32(
    absolute: float, relative: float, *, changed: dict[str, float], changed_in_bfloat16: dict[str, float]
) -> Comparison:
    """Every element of every output is close, in float32; NaN is close to NaN.

    Args:
        absolute: absolute part of what is allowed.
        relative: what is allowed relative to the reference.
        changed: absolute parts that are others, by tensor.
        changed_in_bfloat16: those that are others in bfloat16.
    """

    def accepts(outputs: Outputs, reference: Outputs, same: Outputs | None) -> bool:
        del same
        now = changed | (changed_in_bfloat16 if outputs.out.dtype == torch.bfloat16 else {})
        return all(
            x is not None
            and torch.allclose(x.float(), truth.float(), atol=now.get(name, absolute), rtol=relative, equal_nan=True)
            for name, x, truth in _pairs(outputs, reference, (*FORWARD_AND_GRADIENTS, "lse", "dbias", "dsink"))
        )

    return accepts


def by_root_mean_square(ratio: float) -> Comparison:
    """The root mean square of the errors is below a ratio of the reference's, or no error is above 1e-6; nothing is NaN."""

    def accepts(outputs: Outputs, reference: Outputs, same: Outputs | None) -> bool:
        del same
        return all(
            x is not None and (_largest(x, truth) <= NEGLIGIBLE_ERROR or _ratio(x, truth) < ratio)
            for _, x, truth in _pairs(outputs, reference, (*FORWARD_AND_GRADIENTS, "dsink"))
        )

    return accepts


def _pairs(
    outputs: Outputs, reference: Outputs, names: tuple[str, ...]
) -> Iterator[tuple[str, torch.Tensor | None, torch.Tensor]]:
    """Name, output (None: it is missing) and reference of the tensors that are compared, and that there are."""
    for name in names:
        truth = getattr(reference, name)
        if truth is not None:
            yield name, getattr(outputs, name), truth


def _largest(x: torch.Tensor, truth: torch.Tensor) -> float:
    return (x - truth).abs().max().item()


def _ratio(x: torch.Tensor, truth: torch.Tensor) -> float:
    """The ratio of root mean squares, all in the tensors' dtype; NaN if anything is."""
    error, size = ((y.flatten().square().mean().sqrt()).item() for y in (truth - x, truth))
    return float(error / (size + NEGLIGIBLE_SIZE))
