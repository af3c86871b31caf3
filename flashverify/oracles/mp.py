"""The scalar oracle: attention and its gradients as the formulas say, in mpmath's arbitrary precision.

    lse_i = ln sum_{j visible} exp(s_ij),   s_ij = scale·q_i·k_j,   out_i = sum_{j visible} exp(s_ij - lse_i) v_j

with s_ij = cap·tanh(scale·q_i·k_j / cap) under a softcap, a bias added to s_ij with alibi, and the backward pass of
`flashverify.oracles`. mpmath's exponents are unbounded, so no maximum is subtracted: this oracle differs from the others in
the very step that they have in common. With rotary, q_i and k_j are the turned ones (`cases/rotary.py`). Only visible
pairs are ever touched, so that a masked key cannot matter. A logit of
size |s| costs log10 |s| of the digits (the exponential's condition number), and so does |x / cap| before a cap (that of
sech).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import mpmath
import numpy as np
import numpy.typing as npt
import torch

from flashverify.cases import dense_bias
from flashverify.cases.case import AttentionCase
from flashverify.cases.rotary import key_position, query_position, turned_scalar
from flashverify.cases.semantics import alibi_scalar, cap_slope_scalar, capped_scalar, key_head, visible
from flashverify.cases.tensors import Inputs, Outputs
from flashverify.dropout.of_case import exact_rescale, kept_scalar
from flashverify.oracles.shapes import require_backward, require_forward, require_inputs

ExactArray: TypeAlias = npt.NDArray[Any]
"""numpy array of mpmath numbers (dtype object), with the shape of the tensor that it stands for."""

DIGITS = 50
"""Default number of decimal digits."""

MINIMUM_DIGITS = 17
"""Fewer would round float64 inputs."""


def exact_forward(case: AttentionCase, inputs: Inputs, dps: int = DIGITS) -> tuple[ExactArray, ExactArray]:
    """Exact out (batch, heads_q, seqlen_q, value_dim) and lse (batch, heads_q, seqlen_q): mpmath numbers.

    Raises:
        ValueError: if inputs have other shapes than the case, or dps is too small to hold them.
    """
    _require_digits(dps)
    require_inputs(case, inputs)
    with mpmath.workdps(dps):
        (q, k), v = _turned(case, _exact(inputs.q), _exact(inputs.k)), _exact(inputs.v)
        scale, factor = mpmath.mpf(case.softmax_scale), _rescale(case)
        out, lse = _zeros(inputs.dout.shape), _zeros(inputs.q.shape[:3])
        for b, h, i in np.ndindex(*lse.shape):
            g = key_head(case, h)
            keys = [j for j in range(case.seqlen_k) if visible(case, b, i, j) and dense_bias.shown_scalar(inputs, b, h, i, j)]
            sink = [] if inputs.sink is None else [mpmath.mpf(inputs.sink[0, h, 0].item())]
            if not keys and not sink:
                lse[b, h, i] = mpmath.ninf
                continue
            s = {j: capped_scalar(case, scale * mpmath.fdot(q[b, h, i], k[b, g, j]), mpmath.tanh) for j in keys}
            if case.alibi is not None:
                s = {j: s[j] + alibi_scalar(case, b, h, i, j) for j in keys}
            if inputs.bias is not None:
                s = {j: s[j] + dense_bias.added_scalar(inputs, b, h, i, j) for j in keys}
            lse[b, h, i] = mpmath.log(mpmath.fsum(mpmath.exp(x) for x in (*s.values(), *sink)))
            p = [mpmath.exp(s[j] - lse[b, h, i]) * (factor if kept_scalar(case, b, h, i, j) else 0) for j in keys]
            for d in range(case.value_dim):
                out[b, h, i, d] = mpmath.fdot(p, [v[b, g, j, d] for j in keys])
    return out, lse


def exact_backward(
    case: AttentionCase, inputs: Inputs, out: ExactArray, lse: ExactArray, dps: int = DIGITS
) -> tuple[ExactArray, ExactArray, ExactArray]:
    """Exact dq, dk and dv, shaped like q, k and v; out and lse are arrays of mpmath numbers, taken as exact.

    Raises:
        ValueError: if inputs have other shapes than the case, if there is no backward pass, or dps is too small to hold them.
    """
    _require_digits(dps)
    require_inputs(case, inputs)
    require_backward(case)
    with mpmath.workdps(dps):
        q, k, v, dout = _exact(inputs.q), _exact(inputs.k), _exact(inputs.v), _exact(inputs.dout)
        dlse = _zeros(lse.shape) if inputs.dlse is None else _exact(inputs.dlse)
        scale, factor = mpmath.mpf(case.softmax_scale), _rescale(case)
        dq, dk, dv = _zeros(q.shape), _zeros(k.shape), _zeros(v.shape)
        for b, h, i in np.ndindex(*lse.shape):
            if lse[b, h, i] == mpmath.ninf:
                continue
            g = key_head(case, h)
            delta = mpmath.fdot(dout[b, h, i], out[b, h, i])
            for j in range(case.seqlen_k):
                if not (visible(case, b, i, j) and dense_bias.shown_scalar(inputs, b, h, i, j)):
                    continue
                x = scale * mpmath.fdot(q[b, h, i], k[b, g, j])
                s = capped_scalar(case, x, mpmath.tanh)
                if case.alibi is not None:
                    s += alibi_scalar(case, b, h, i, j)
                if inputs.bias is not None:
                    s += dense_bias.added_scalar(inputs, b, h, i, j)
                p = mpmath.exp(s - lse[b, h, i])
                kept = factor if kept_scalar(case, b, h, i, j) else mpmath.mpf(0)
                ds = p * (kept * mpmath.fdot(dout[b, h, i], v[b, g, j]) - delta + dlse[b, h, i])
                ds *= cap_slope_scalar(case, x, mpmath.sech)
                dq[b, h, i] += k[b, g, j] * (scale * ds)
                dk[b, g, j] += q[b, h, i] * (scale * ds)
                dv[b, g, j] += dout[b, h, i] * (p * kept)
    return dq, dk, dv


def forward(case: AttentionCase, inputs: Inputs, dps: int = DIGITS) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounded out (batch, heads_q, seqlen_q, value_dim) and lse (batch, heads_q, seqlen_q), float64 on the CPU.

    Raises:
        ValueError: if inputs have other shapes than the case, or dps is too small to hold them.
    """
    out, lse = exact_forward(case, inputs, dps)
    return _rounded(out), _rounded(lse)


def backward(
    case: AttentionCase, inputs: Inputs, out: torch.Tensor, lse: torch.Tensor, dps: int = DIGITS
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dq, dk and dv for the given out and lse (any float dtype, taken as exact), float64 on the CPU.

    Raises:
        ValueError: if a tensor has another shape than the case says, or dps is too small to hold them.
    """
    require_forward(case, out, lse)
    dq, dk, dv = exact_backward(case, inputs, _exact(out), _exact(lse), dps)
    return _rounded(dq), _rounded(dk), _rounded(dv)


def attention(case: AttentionCase, inputs: Inputs, dps: int = DIGITS) -> Outputs:
    """Forward and backward end to end: the backward pass gets out and lse in full precision. float64 on the CPU.

    Raises:
        ValueError: if inputs have other shapes than the case, or dps is too small to hold them.
    """
    out, lse = exact_forward(case, inputs, dps)
    dq, dk, dv = exact_backward(case, inputs, out, lse, dps)
    return Outputs(_rounded(out), _rounded(lse), _rounded(dq), _rounded(dk), _rounded(dv))


def _rescale(case: AttentionCase) -> mpmath.mpf:
    """Dropout's factor for kept pairs, to the digits in use; 1 without dropout."""
    exact = exact_rescale(case)
    return mpmath.mpf(exact.numerator) / exact.denominator


def _turned(case: AttentionCase, q: ExactArray, k: ExactArray) -> tuple[ExactArray, ExactArray]:
    """Q and k, their rows turned in place if the case says so."""
    if case.rotary is not None:
        for b, h, i in np.ndindex(*q.shape[:3]):
            q[b, h, i] = turned_scalar(case, list(q[b, h, i]), query_position(case, b, i))
        for b, g, j in np.ndindex(*k.shape[:3]):
            k[b, g, j] = turned_scalar(case, list(k[b, g, j]), key_position(case, b, j))
    return q, k


def _require_digits(dps: int) -> None:
    if dps < MINIMUM_DIGITS:
        raise ValueError(f"dps: got {dps}, accepted are integers >= {MINIMUM_DIGITS}")


def _exact(tensor: torch.Tensor) -> ExactArray:
    """The tensor's values as mpmath numbers: no rounding, as a float64 is dyadic and `MINIMUM_DIGITS` hold it."""
    values = np.empty(tensor.numel(), dtype=object)
    with mpmath.workdps(max(mpmath.mp.dps, MINIMUM_DIGITS)):
        values[:] = [mpmath.mpf(x) for x in tensor.detach().double().cpu().flatten().tolist()]
    return values.reshape(tensor.shape)


def _zeros(shape: tuple[int, ...]) -> ExactArray:
    return np.full(shape, mpmath.mpf(0), dtype=object)


def _rounded(values: ExactArray) -> torch.Tensor:
    """float64 nearest to each number (subnormal results are rounded twice)."""
    return torch.tensor([float(x) for x in values.flat], dtype=torch.float64).reshape(values.shape)
