"""The catalogue of planted defects. Threads: owner/repository#number on GitHub."""

from __future__ import annotations

import torch

from flashverify.adapters.triton import TritonKernel
from flashverify.mutants.caches import CACHES
from flashverify.mutants.decoding import DECODING
from flashverify.mutants.dropout import DROPOUT
from flashverify.mutants.features import FEATURES
from flashverify.mutants.mutant import Edit, Mutant, load_mutant
from flashverify.mutants.packed import PACKED
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

MUTANTS = {mutant.name: mutant for mutant in (*_ALL, *FEATURES, *PACKED, *DECODING, *CACHES, *DROPOUT, *ROUNDING)}
"""Every mutant by name."""


def load(name: str, device: torch.device) -> TritonKernel:
    """The mutant of that name as a kernel.

    Raises:
        ValueError: if there is none.
    """
    if name not in MUTANTS:
        raise ValueError(f"mutant: got {name!r}, accepted are {', '.join(MUTANTS)}")
    return load_mutant(MUTANTS[name], device)
