"""Upper bounds of sums of |v_j - out|: what an error of the weights does to a weighted mean, by matrix products."""

from __future__ import annotations

import torch

from flashverify.numerics.formats import EVALUATION_UNIT


def centred_sum(excess: torch.Tensor, values: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Upper bound of sum_j excess_ij·|v_jd - out_id|: the smaller of the triangle inequality's and Cauchy-Schwarz's.

    Values are centred at the keys' mean first, so that a common offset of v costs nothing.

    Args:
        excess: (c, r, n), float64, >= 0.
        values: v, (c, n, d).
        out: (c, r, d).

    Returns:
        (c, r, d).
    """
    centre = values.mean(1, keepdim=True)
    values, target = values - centre, out - centre
    total = excess.sum(-1, keepdim=True)
    first, second = excess @ values, excess @ values.square()
    triangle = excess @ values.abs() + target.abs() * total
    magnitudes = second + target.square() * total
    squares = (magnitudes - 2.0 * target * first).clamp(min=0.0)
    squares = squares + _cancellation(values, magnitudes)
    return torch.minimum(triangle, total.sqrt() * squares.sqrt())  # their product may underflow


def centred_squares(variance: torch.Tensor, values: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Upper bound of the sum over j of variance_ij·(v_jd - out_id)², (c, r, d); arguments as for `centred_sum`."""
    centre = values.mean(1, keepdim=True)
    values, target = values - centre, out - centre
    magnitudes = variance @ values.square() + target.square() * variance.sum(-1, keepdim=True)
    squares = (magnitudes - 2.0 * target * (variance @ values)).clamp(min=0.0)
    return squares + _cancellation(values, magnitudes)


def centred_mean(weights: torch.Tensor, values: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """The sum over j of weights_ij·(v_jd - out_id), signed, (c, r, d); arguments as for `centred_sum`."""
    centre = values.mean(1, keepdim=True)
    return weights @ (values - centre) - (out - centre) * weights.sum(-1, keepdim=True)


def _cancellation(values: torch.Tensor, magnitudes: torch.Tensor) -> torch.Tensor:
    """Largest evaluation error of a sum of squares that cancels: (n + 8)·2^-52 of twice its magnitudes."""
    return 2.0 * (values.shape[1] + 8.0) * EVALUATION_UNIT * magnitudes
