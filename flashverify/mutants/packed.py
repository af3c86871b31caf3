"""Planted defects of packed sequences: whose rows are read, how they are aligned, and what unused rows hold."""

from __future__ import annotations

from flashverify.mutants.mutant import Edit, Mutant

PACKED = (
    Mutant(
        "packed-key-of-the-neighbour",
        "The forward pass shows each sequence one key too many, the first of the next one.",
        "huggingface/transformers#46634",
        (
            Edit(
                "forward.py",
                "        seqlen_k = tl.where(rows_left > 0, seqlen_k, 0)",
                "        seqlen_k = tl.where(rows_left > 0, seqlen_k + 1, 0)",
            ),
        ),
    ),
    Mutant(
        "packed-queries-of-the-neighbour",
        "dK and dV get a share of the first query of the next sequence.",
        "huggingface/transformers#44911",
        (
            Edit(
                "dkdv.py",
                "        seqlen_q = tl.where(keys_left > 0, seqlen_q, 0)",
                "        seqlen_q = tl.where(keys_left > 0, seqlen_q + 1, 0)",
            ),
        ),
    ),
    Mutant(
        "packed-top-left",
        "Causal masks of packed sequences are aligned to the first query and key in the forward pass.",
        "microsoft/onnxruntime#28958",
        (Edit("forward.py", "        causal_offset += seqlen_k - seqlen_q\n", ""),),
    ),
    Mutant(
        "packed-aligned-by-the-stretch",
        "Causal masks are aligned to the last row of a stretch instead of the last query that it uses, in dQ.",
        "Dao-AILab/flash-attention#1778",
        (
            Edit(
                "dq.py",
                "        causal_offset += seqlen_k - seqlen_q\n",
                "        causal_offset += seqlen_k - rows_stored\n",
            ),
        ),
    ),
    Mutant(
        "packed-used-rows-ignored",
        "Stretches are used in whole, whatever is stated.",
        "huggingface/transformers#33268",
        (Edit("packed.py", "used = tl.minimum(used, tl.maximum(stated, 0))", "used = tl.where(stated < 0, 0, used)"),),
    ),
    Mutant(
        "packed-gradient-of-unused-keys-left",
        "dK of the unused rows beside a sequence's last keys is what the product of padding gives.",
        "Dao-AILab/flash-attention#2421",
        (Edit("dkdv.py", "        dk = tl.where((keys < seqlen_k)[:, None], dk, 0.0)\n", ""),),
    ),
    Mutant(
        "packed-last-block-lost",
        "A sequence's last block of queries is taken for one that holds none, unless it is full.",
        "Dao-AILab/flash-attention#2337",
        (
            Edit(
                "forward.py",
                "        seqlen_k = tl.where(rows_left > 0, seqlen_k, 0)",
                "        seqlen_k = tl.where(rows_left >= BLOCK_M, seqlen_k, 0)",
            ),
        ),
    ),
    Mutant(
        "packed-slopes-of-the-first",
        "Linear biases of every sequence have the slopes of the first one in dK and dV.",
        "Dao-AILab/flash-attention#1585",
        (
            Edit(
                "packed.py",
                "return tl.minimum(sequence, sequences - 1), first_key,",
                "return sequence * 0, first_key,",
            ),
        ),
    ),
)
"""What sees each of them is stated in `tests/meta/test_detection.py`."""
