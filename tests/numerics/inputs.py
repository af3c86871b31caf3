"""Inputs of every kind that the hard budget must survive, as float64 arrays of values of the case's dtype."""

from __future__ import annotations

import numpy as np

from flashverify.cases.case import AttentionCase
from tests.numerics.simulator import cast

KINDS = (
    "normal", "large", "huge", "one-hot", "repeated-maximum", "equal-logits", "cancelling-values", "value-offset", "sink",
    "needle", "identity", "tiny", "wide-values", "key-offset", "rising-logits", "zeros", "cancelling-delta",
)  # fmt: skip


def make(case: AttentionCase, kind: str) -> dict[str, np.ndarray | None]:
    """q, k, v, dout, dlse of a kind."""
    random = np.random.default_rng([case.seed, KINDS.index(kind)])
    kv = (case.batch, case.heads_kv, case.seqlen_k, case.head_dim)
    qo = (case.batch, case.heads_q, case.seqlen_q, case.head_dim)
    q, k, v, dout = (random.standard_normal(shape) for shape in (qo, kv, kv, qo))
    n = case.seqlen_k
    match kind:
        case "large":
            q *= 8
        case "huge":
            q *= 32
        case "one-hot":
            k = np.sign(k)
            q = 3 * k[:, np.arange(case.heads_q) // case.group_size][:, :, random.integers(0, n, case.seqlen_q)]
        case "repeated-maximum":
            k = np.repeat(k[:, :, : (n + 3) // 4], 4, axis=2)[:, :, :n]
            v = -np.abs(v) - 1
        case "equal-logits":
            k = np.repeat(k[:, :, :1], n, axis=2)
        case "cancelling-values":
            v = v + 100 * np.where(np.arange(n) % 2, 1, -1)[:, None]
            k = np.repeat(k[:, :, : (n + 1) // 2], 2, axis=2)[:, :, :n]
        case "value-offset":
            v = 5 + 0.1 * v
        case "sink":
            q[..., 0], k[:, :, 0], v[:, :, 0] = 8, 0, 0
            k[:, :, 0, 0] = 12
        case "needle":
            v[:] = 0
            v[:, :, -1] = 1
        case "identity":
            v[:] = 0
            v[:, :, np.arange(min(n, case.head_dim)), np.arange(min(n, case.head_dim))] = 1
        case "tiny":
            q, k, v, dout = q * 2.0**-8, k * 2.0**-8, v * 2.0**-12, dout * 2.0**-6
        case "wide-values":
            v = v * 2.0 ** random.integers(-8, 9, (*kv[:3], 1))
        case "key-offset":
            k = k + 3 * np.sign(k[:, :, :1])
        case "rising-logits":
            q, k = np.abs(q), np.abs(k) * np.linspace(0.1, 3, max(n, 1))[:n, None]
        case "zeros":
            q[:] = 0
        case "cancelling-delta":
            v = np.repeat(v[:, :, :1], n, axis=2) + 2.0**-6 * v
    arrays: dict[str, np.ndarray | None] = {
        name: cast(values.astype(np.float32 if case.dtype != "fp64" else np.float64), case.dtype).astype(np.float64)
        for name, values in (("q", q), ("k", k), ("v", v), ("dout", dout))
    }
    dlse = random.standard_normal(qo[:3]).astype(np.float32).astype(np.float64)
    arrays["dlse"] = dlse if case.lse_grad else None
    return arrays
