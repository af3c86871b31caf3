"""The inputs that other projects' tests draw, in a case's shapes and dtype, and seeded by it.

Masks, infinite entries of biases, sinks and the cotangent of lse are those of the case with standard normal inputs. All tensors
are contiguous; cotangents of rows beyond the length of their sequence are zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from flashverify.cases.case import AttentionCase
from flashverify.cases.lengths import lengths
from flashverify.cases.regimes import draw
from flashverify.cases.sampling import Array, Source, round_to, torch_dtype
from flashverify.cases.semantics import exists
from flashverify.cases.tensors import Inputs

LARGEST_CAP = 50.0
"""The largest soft cap in flash-attention's tests, which multiply queries by it."""

SPARSITY, LARGEST_INTEGER = 0.8, 2
"""cudnn-frontend's integers: how many are zero for sure, and the largest magnitude (test/python/sdpa/helpers.py)."""

SHIFT, DEEP_SCORE, DEEP_ROWS, SMALLEST_MULTIPLE, TESTED_SCALE = 2.0, -200.0, 1 / 16, 8.0, 0.125
"""cudnn-frontend's rows of very negative scores: how far keys are shifted, the score that is aimed at, the share of the rows,
the smallest multiple of the direction that queries become (`inject_negative_score_rows`), and the scale of all tests."""


def normal(case: AttentionCase, device: torch.device | str) -> Inputs:
    """Standard normal q, k, v, dout and biases."""
    return draw(case.replace(regime="normal"), device)


def normal_capped(case: AttentionCase, device: torch.device | str) -> Inputs:
    """Standard normal, with q times the soft cap where there is one, so that the cap is reached."""
    inputs = normal(case, device)
    if case.softcap is not None:
        inputs.q *= min(case.softcap, LARGEST_CAP)
    return inputs


def half_normal(case: AttentionCase, device: torch.device | str) -> Inputs:
    """Normal q, k and v of standard deviation 1/2, and a standard normal dout."""
    inputs = normal(case, device)
    for x in (inputs.q, inputs.k, inputs.v):
        x.mul_(0.5)
    return inputs


def uniform(case: AttentionCase, device: torch.device | str) -> Inputs:
    """q, k, v, dout and biases uniform between 0 and 1."""
    source = Source(case.replace(regime="normal"))

    def values(name: str, shape: tuple[int, ...]) -> Array:
        return source.stream(f"uniform {name}").random(shape)

    return _of_values(case, values, device)


def sparse_integers(case: AttentionCase, device: torch.device | str) -> Inputs:
    """Integers from -2 to 2, most of them 0; then keys shifted along a common direction, and a few rows of q against it.

    A sixteenth of the rows, of the first query head of each group, become so large a multiple of that direction that their
    scores are near -200 or below.
    """
    source = Source(case.replace(regime="normal"))

    def values(name: str, shape: tuple[int, ...]) -> Array:
        stream = source.stream(f"integer {name}")
        drawn = stream.integers(-LARGEST_INTEGER, LARGEST_INTEGER + 1, shape).astype(np.float64)
        return np.where(stream.random(shape) < SPARSITY, 0.0, drawn)

    inputs = _of_values(case, values, device)
    direction = source.stream("direction").integers(0, 2, case.head_dim) * 2.0 - 1.0
    scale = case.softmax_scale if case.softmax_scale > 0 else TESTED_SCALE
    multiple = max(SMALLEST_MULTIPLE, -DEEP_SCORE / (SHIFT * case.head_dim * scale))
    along = torch.from_numpy(direction).to(inputs.k)
    inputs.k += SHIFT * along
    rows = np.zeros((case.batch, case.heads_q, case.seqlen_q), dtype=bool)
    for entry, (queries, _) in enumerate(lengths(case)):
        rows[entry, :: case.group_size, :queries] = True
    places = source.stream("rows").permutation(np.flatnonzero(rows))
    deep = torch.from_numpy(places[: max(1, int(places.size * DEEP_ROWS))]).to(device)
    inputs.q.view(-1, case.head_dim)[deep] = -(2.0 ** math.ceil(math.log2(multiple))) * along
    return inputs


def _of_values(case: AttentionCase, values: Callable[[str, tuple[int, ...]], Array], device: torch.device | str) -> Inputs:
    """Inputs whose q, k, v, dout and finite biases are given, by name and shape."""
    inputs, dtype = normal(case, device), torch_dtype(case.dtype)

    def tensor(name: str, like: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(round_to(values(name, tuple(like.shape)), case.dtype)).to(dtype).to(device)

    inputs.q, inputs.k, inputs.v = tensor("q", inputs.q), tensor("k", inputs.k), tensor("v", inputs.v)
    inputs.dout = tensor("dout", inputs.dout)
    entries, rows = (torch.arange(size, device=device) for size in (case.batch, case.seqlen_q))
    real = exists(case, entries[:, None, None], rows)
    if real is not None:
        inputs.dout.masked_fill_(~real[:, None], 0.0)
    if inputs.bias is not None and inputs.bias.dtype != torch.bool:
        inputs.bias = torch.where(inputs.bias.isinf(), inputs.bias, tensor("bias", inputs.bias))
    return inputs
