"""Regimes that draw at random: scales, cancellation, ranges, signs. Each says which defect it is for.

Equal keys have equal logits, and equal weights, without linear biases alone (repeated-maximum, equal-logits,
cancelling-values).
"""

from __future__ import annotations

import math

import numpy as np
import torch

from flashverify.cases.sampling import Array, Source, Values, exponentials, ordered_sum, round_to, torch_dtype

CANCELLING_OFFSET = 32.0
"""Magnitude of paired values, against 1 for what remains of them."""


def normal(source: Source) -> Values:
    """Standard normal everywhere: the regime for which the model of rounding errors is sharpest."""
    return source.normals()


def normal_small(source: Source) -> Values:
    """Standard deviation 1/4 everywhere: nearly uniform rows, where every key counts alike (a lost tile)."""
    values = source.normals()
    return Values(q=values.q / 4, k=values.k / 4, v=values.v / 4, dout=values.dout)


def large(source: Source) -> Values:
    """Queries of standard deviation 8: peaked rows (q or k rounded after scaling, exp2 far from 0)."""
    values = source.normals()
    values.q *= 8
    return values


def huge(source: Source) -> Values:
    """Queries of standard deviation 32: nearly one-hot rows, logits in the hundreds (overflow, block maximum)."""
    values = source.normals()
    values.q *= 32
    return values


def large_activations(source: Source) -> Values:
    """Standard deviation 4 in q, k and v, as in trained models (k pre-scaled in its own dtype in the backward pass)."""
    values = source.normals()
    return Values(q=values.q * 4, k=values.k * 4, v=values.v * 4, dout=values.dout)


def offset_values(source: Source) -> Values:
    """Values 5 + 0.1·normal: truncating sums drift, and delta cancels against dP (delta or P rounded with a bias)."""
    values = source.normals()
    values.v = 5 + 0.1 * values.v
    return values


def repeated_maximum(source: Source) -> Values:
    """Every key occurs twice or more, side by side and half the sequence apart, with values of one sign in a key head.

    Several weights are then exactly 1 before normalisation, and their rounding errors share a sign (arXiv 2510.04212).
    The sign is negative in key heads 0, 2, ... and positive in the others.
    """
    values = source.normals()
    values.q *= 4
    keys = source.case.seqlen_k
    repeated = (np.arange(keys) // 2) % max(math.ceil(keys / 4), 1)
    if keys > 1:
        values.k = values.k[:, :, repeated]
    sign = np.where(np.arange(source.case.heads_kv) % 2 == 0, -1.0, 1.0)[:, None, None]
    values.v = sign * (np.abs(values.v) + 1)
    return values


def equal_logits(source: Source) -> Values:
    """All keys of a head are equal: uniform rows whatever q is, dQ = 0 but for rounding (tail keys, delta)."""
    values = source.normals()
    values.k = np.repeat(values.k[:, :, :1], source.case.seqlen_k, axis=2)
    return values


def cancelling_values(source: Source) -> Values:
    """Keys 2j and 2j + 1 are equal and their values are ±32 + normal: large terms cancel in P·V."""
    values = source.normals()
    case = source.case
    paired = case.seqlen_k // 2 * 2
    values.k[:, :, 1:paired:2] = values.k[:, :, 0:paired:2]
    values.v[:, :, 0:paired:2] += CANCELLING_OFFSET
    values.v[:, :, 1:paired:2] -= CANCELLING_OFFSET
    return values


def cancelling_output(source: Source) -> Values:
    """Queries of a key head nearly equal, values projected so that the last row's P·V is nearly 0 while P·|V| is not.

    Weights are in one pattern for all rows, so that their rounding errors add up in the same direction in every row.
    They are the weights without a softcap and without biases: with either, P·V cancels less.
    """
    case = source.case
    values = source.normals()
    centre = round_to(source.normal("centre", (case.batch, case.heads_kv, 1, case.head_dim)), case.dtype)
    values.q = source.by_query_head(centre) + values.q / 128
    values.v = round_to(10 * values.v, case.dtype)
    first, end = _seen_by_last(source)
    if first == end:
        return values
    scale = math.copysign(min(abs(case.softmax_scale), 64.0), case.softmax_scale)
    k = round_to(values.k[:, :, first:end], case.dtype)
    logits = scale * ordered_sum(centre * k, axis=3)
    weights = exponentials(logits - logits.max(axis=2, keepdims=True))
    weights = (weights / ordered_sum(weights, axis=2)[:, :, None])[..., None]
    v = values.v[:, :, first:end]
    v = round_to(v - ordered_sum(weights * v, axis=2)[:, :, None], case.dtype)
    heaviest = np.argmax(weights, axis=2, keepdims=True)
    for _ in range(2):
        rest = ordered_sum(weights * v, axis=2)[:, :, None] / np.take_along_axis(weights, heaviest, axis=2)
        corrected = round_to(np.take_along_axis(v, heaviest, axis=2) - rest, case.dtype)
        np.put_along_axis(v, np.broadcast_to(heaviest, corrected.shape), corrected, axis=2)
    values.v[:, :, first:end] = v
    return values


def _seen_by_last(source: Source) -> tuple[int, int]:
    """First key that a last row sees, and the one after its last: of the sequence whose last row sees most; (0, 0) if none."""
    first, end = source.keys_seen()
    last = np.broadcast_to(source.last_rows(), first.shape)
    seen = list(zip(first[last].tolist(), end[last].tolist(), strict=True))
    return max(seen, key=lambda limits: limits[1] - limits[0], default=(0, 0))


def tiny(source: Source) -> Values:
    """All of k, v and dout around the dtype's smallest normal number, most of them subnormal (flushing).

    float64 takes float32's range. q is large, so that float16's subnormal keys still move the logits.
    """
    info = torch.finfo(torch_dtype("fp32" if source.case.dtype == "fp64" else source.case.dtype))
    values = source.normals()
    small = info.smallest_normal / 4
    return Values(q=values.q * 2.0**13, k=values.k * small, v=values.v * small, dout=values.dout * small)


def wide_exponents(source: Source) -> Values:
    """Values of random sign with magnitudes from 2^-8 to 2^8, evenly over the binades (truncation in sums)."""
    values = source.normals()
    stream = source.stream("exponents")
    exponents = stream.integers(-8, 8, size=source.v_shape)
    fractions = 1 + stream.random(source.v_shape)
    values.v = np.ldexp(np.copysign(fractions, values.v), exponents)
    return values


def integers(source: Source) -> Values:
    """Integers from -4 to 4 everywhere: all dot products are exact in any order, so that only the softmax rounds."""

    def draw(name: str, shape: tuple[int, ...]) -> Array:
        return source.stream(name).integers(-4, 5, size=shape).astype(np.float64)

    return Values(
        q=draw("q", source.q_shape),
        k=draw("k", source.k_shape),
        v=draw("v", source.v_shape),
        dout=draw("dout", source.out_shape),
    )


def signed_zeros(source: Source) -> Values:
    """Half of all elements are zeros, of either sign, and some rows are nothing else (sums of signed zeros)."""
    values = source.normals()

    def sprinkle(name: str, x: Array) -> Array:
        stream = source.stream(f"{name}-zeros")
        zero = (stream.random(x.shape) < 0.5) | (stream.random((*x.shape[:-1], 1)) < 0.125)
        return np.where(zero, np.copysign(0.0, x), x)

    return Values(
        q=sprinkle("q", values.q),
        k=sprinkle("k", values.k),
        v=sprinkle("v", values.v),
        dout=sprinkle("dout", values.dout),
    )


def parallel_gradient(source: Source) -> Values:
    """A dO nearly parallel to v's mean: delta = sum(dO·O) is as large as dP (delta missing or rounded)."""
    case = source.case
    values = source.normals()
    mean = source.normal("mean", (case.batch, case.heads_kv, 1, case.value_dim))
    factor = source.normal("factor", (*source.q_shape[:3], 1))
    values.v = mean + values.v / 4
    values.dout = factor * source.by_query_head(mean) + values.dout / 16
    return values


def sparse_gradient(source: Source) -> Values:
    """Only one row of dO in each head is not zero: the last, the first or one at a tile's edge (a query row lost)."""
    case = source.case
    values = source.normals()
    rows = source.landmarks(case.seqlen_q, case.heads_q)[:, :, None]
    chosen = np.arange(case.seqlen_q) == rows
    values.dout = np.where(chosen[..., None], values.dout, 0.0)
    return values


def constant_gradient(source: Source) -> Values:
    """All dO are 1, the gradient of out.sum(): the case where autograd hands over a stride-0 tensor."""
    values = source.normals()
    values.dout = np.ones(source.out_shape)
    return values


def small_gradient(source: Source) -> Values:
    """Standard normal dO times 2^-20 (2^-10 in float16): gradients that underflow where a kernel casts to float16."""
    values = source.normals()
    values.dout = np.ldexp(values.dout, -10 if source.case.dtype == "fp16" else -20)
    return values


def large_gradient(source: Source) -> Values:
    """Standard normal dO times 2^20 (2^4 in float16): gradients that overflow where a kernel casts to float16."""
    values = source.normals()
    values.dout = np.ldexp(values.dout, 4 if source.case.dtype == "fp16" else 20)
    return values


REGIMES = (
    normal,
    normal_small,
    large,
    huge,
    large_activations,
    offset_values,
    repeated_maximum,
    equal_logits,
    cancelling_values,
    cancelling_output,
    tiny,
    wide_exponents,
    integers,
    signed_zeros,
    parallel_gradient,
    sparse_gradient,
    constant_gradient,
    small_gradient,
    large_gradient,
)
"""The regimes of this module, in the order of reports."""
