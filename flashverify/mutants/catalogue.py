"""The catalogue of planted defects. Threads: owner/repository#number on GitHub."""

from __future__ import annotations

import torch

from flashverify.adapters.triton import TritonKernel
from flashverify.mutants.mutant import Edit, Mutant, load_mutant
from flashverify.mutants.rounding import ROUNDING

_ALL = (
    Mutant(
        "scale-off-by-1-percent",
        "The softmax scale is 1 % too large in the forward pass.",
        "control",
        (Edit("forward.py", "        scale_bits(scale),\n", "        scale_bits(scale * 1.01),\n"),),
    ),
    Mutant(
        "running-max-lost",
        "The row maximum is taken of the current key block alone.",
        "tile-ai/tilelang#1148",
        (
            Edit(
                "forward.py",
                "new_max = tl.maximum(running_max, tl.max(scores, 1))",
                "new_max = tl.max(scores, 1)",
            ),
        ),
    ),
    Mutant(
        "rescale-missed",
        "The accumulator is not rescaled when the maximum moves.",
        "control",
        (Edit("forward.py", "        accumulator = accumulator * rescale[:, None]\n", ""),),
    ),
    Mutant(
        "tail-keys-unmasked",
        "Keys beyond the end of the sequence count with score 0.",
        "flashinfer-ai/flashinfer#5090",
        (Edit("forward.py", "seen = (keys < seqlen_k)[None, :]", "seen = (keys < seqlen_k + BLOCK_N)[None, :]"),),
    ),
    Mutant(
        "causal-off-by-one",
        "The causal mask of the forward pass shows each query one key too many.",
        "control",
        (
            Edit(
                "forward.py",
                "seen = seen & (keys[None, :] <= query_rows[:, None] + causal_offset)",
                "seen = seen & (keys[None, :] <= query_rows[:, None] + causal_offset + 1)",
            ),
        ),
    ),
    Mutant(
        "values-cut-to-the-head-size",
        "The forward pass reads as many columns of v as k has.",
        "control",
        (
            Edit(
                "forward.py",
                "            v_base, batch, head_kv, start, stride_vn, stride_vd, keys_left, value_dim,",
                "            v_base, batch, head_kv, start, stride_vn, stride_vd, keys_left, head_dim,",
            ),
        ),
    ),
    Mutant(
        "window-off-by-one",
        "The forward pass hides the first key of each window.",
        "NVIDIA/TransformerEngine#1197",
        (
            Edit(
                "forward.py",
                "seen = seen & (keys[None, :] >= query_rows[:, None] + first_offset)",
                "seen = seen & (keys[None, :] > query_rows[:, None] + first_offset)",
            ),
        ),
    ),
    Mutant(
        "window-not-hidden-in-dkdv",
        "dK and dV get shares of query rows whose windows do not reach so far back.",
        "xlite-dev/ffpa-attn#300",
        (
            Edit(
                "dkdv.py",
                "                p = tl.where(keys[:, None] >= queries[None, :] + first_offset, p, 0.0)\n",
                "                p = tl.where(keys[:, None] >= -1, p, 0.0)\n",
            ),
        ),
    ),
    Mutant(
        "window-tile-short-in-dkdv",
        "dK and dV miss the last block of query rows whose windows reach a key block.",
        "ROCm/aiter#3742",
        (
            Edit(
                "dkdv.py",
                "end = tl.minimum(seqlen_q, tl.maximum(0, first_key + BLOCK_N - first_offset))",
                "end = tl.minimum(seqlen_q, tl.maximum(0, first_key + BLOCK_N - first_offset - BLOCK_M))",
            ),
        ),
    ),
    Mutant(
        "softcap-after-mask",
        "The forward pass caps logits after it hid some: -inf becomes -cap, and what is hidden leaks.",
        "Dao-AILab/flash-attention#1025",
        (
            Edit(
                "forward.py",
                "        if SOFTCAP:\n            scores, _ = tanh_and_slope(scores * inner_scale, ACCUMULATOR)\n",
                "",
            ),
            Edit(
                "forward.py",
                '            scores = tl.where(seen, scores, float("-inf"))\n',
                '            scores = tl.where(seen, scores, float("-inf"))\n'
                "        if SOFTCAP:\n            scores, _ = tanh_and_slope(scores * inner_scale, ACCUMULATOR)\n",
            ),
        ),
    ),
    Mutant(
        "softcap-times-logit",
        "The forward pass multiplies tanh by the logit instead of the cap.",
        "Dao-AILab/flash-attention#2402",
        (
            Edit(
                "forward.py",
                "            scores, _ = tanh_and_slope(scores * inner_scale, ACCUMULATOR)\n",
                "            capped, _ = tanh_and_slope(scores * inner_scale, ACCUMULATOR)\n"
                "            scores = scores * inner_scale * capped\n",
            ),
        ),
    ),
    Mutant(
        "softcap-slope-missing-in-dkdv",
        "dK lacks the derivative of the soft cap.",
        "Dao-AILab/flash-attention#1033",
        (
            Edit(
                "dkdv.py",
                "        ds = p * (dp - delta[None, :])\n        if SOFTCAP:\n            ds = ds * slope\n",
                "        ds = p * (dp - delta[None, :])\n",
            ),
        ),
    ),
    Mutant(
        "softcap-slope-missing-in-dq",
        "dQ lacks the derivative of the soft cap.",
        "openxla/tokamax#1121",
        (
            Edit(
                "dq.py",
                "        ds = p * (dp - delta[:, None])\n        if SOFTCAP:\n            ds = ds * slope\n",
                "        ds = p * (dp - delta[:, None])\n",
            ),
        ),
    ),
    Mutant(
        "delta-missing",
        "The backward pass forgets delta, the row sum of dO·out.",
        "control",
        (
            Edit(
                "delta.py",
                "    tl.store(rows_delta_ptr + padded_offsets, delta)",
                "    tl.store(rows_delta_ptr + padded_offsets, 0.0 * delta)",
            ),
        ),
    ),
    Mutant(
        "tf32-for-fp32",
        "Products of float32 blocks round their operands to tf32.",
        "triton-lang/triton#1671",
        (
            Edit(
                "primitives.py",
                "    if EMULATE_BF16:\n        tile = bf16_to_fp32(tile)\n    return tile",
                "    if EMULATE_BF16:\n        tile = bf16_to_fp32(tile)\n    elif tile.dtype == tl.float32:\n"
                "        tile = ((tile.to(tl.uint32, bitcast=True) + 0x1000) & 0xFFFFE000).to(tl.float32, bitcast=True)\n"
                "    return tile",
            ),
        ),
    ),
    Mutant(
        "lse-in-base-2",
        "lse is stored in base 2.",
        "pytorch/pytorch#181645",
        (
            Edit(
                "forward.py",
                "running_max * scale + tl.log2(divisor) * LN2)",
                "(running_max * scale + tl.log2(divisor) * LN2) / LN2)",
            ),
        ),
    ),
)

MUTANTS = {mutant.name: mutant for mutant in (*_ALL, *ROUNDING)}
"""Every mutant by name."""


def load(name: str, device: torch.device) -> TritonKernel:
    """The mutant of that name as a kernel.

    Raises:
        ValueError: if there is none.
    """
    if name not in MUTANTS:
        raise ValueError(f"mutant: got {name!r}, accepted are {', '.join(MUTANTS)}")
    return load_mutant(MUTANTS[name], device)
