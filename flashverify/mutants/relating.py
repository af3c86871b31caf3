"""Planted defects that relations see, and errors of drawn cases do not. Threads: owner/repository#number."""

from __future__ import annotations

from flashverify.mutants.mutant import Edit, Mutant

WALK = "    for start in range(begin, end, BLOCK_N):\n"
REVERSED = (
    "    for step in range(begin, end, BLOCK_N):\n"
    "        start = tl.where({}, step, 2 * begin + (end - 1 - begin) // BLOCK_N * BLOCK_N - step)\n"
)
"""A walk over key blocks: from the left, and from the left only where a condition holds."""

RELATING = (
    Mutant(
        "maximum-of-hidden-keys",
        "The running maximum is taken of the scores of hidden keys too: the same function, until one of them is large.",
        "control",
        (
            Edit(
                "forward.py",
                "        if (start < full_begin) | (start >= full_end):\n",
                "        every_score = scores\n        if (start < full_begin) | (start >= full_end):\n",
            ),
            Edit("forward.py", "tl.max(scores, 1))", "tl.max(every_score, 1))"),
        ),
    ),
    Mutant(
        "hidden-scores-lowered",
        "Scores of hidden keys are lowered by 10^30 instead of being replaced by -inf.",
        "pytorch/pytorch#109517",
        (
            Edit(
                "forward.py",
                'scores = tl.where(seen, scores, float("-inf"))',
                "scores = tl.where(seen, scores, scores - 1.0e30)",
            ),
        ),
    ),
    Mutant(
        "keys-scaled-by-their-tile",
        "The forward pass divides a block of keys by a power of two near its largest number, in storage, hidden keys included.",
        "control",
        (
            Edit(
                "forward.py",
                "        scores = tl.dot(q, tl.trans(k),",
                "        peak = tl.exp2(tl.floor(tl.log2(tl.max(tl.max(tl.abs(k).to(tl.float32), 1), 0) + 1.0)))\n"
                "        k = (k.to(tl.float32) / peak).to(k.dtype)\n"
                "        scores = peak.to(ACCUMULATOR) * tl.dot(q, tl.trans(k),",
            ),
        ),
    ),
    Mutant(
        "walk-by-entry",
        "The forward pass walks over the keys of every second batch entry from the right.",
        "RL-Align/RL-Kernel#147",
        (Edit("forward.py", WALK, REVERSED.format("batch % 2 == 0")),),
    ),
    Mutant(
        "walk-by-group",
        "The forward pass walks over the keys of grouped heads from the right.",
        "control",
        (Edit("forward.py", WALK, REVERSED.format("group_size == 1")),),
    ),
    Mutant(
        "walk-by-length",
        "The forward pass walks over the keys from the right where their number is odd.",
        "Dao-AILab/flash-attention#1897",
        (Edit("forward.py", WALK, REVERSED.format("seqlen_k % 2 == 0")),),
    ),
)
"""What sees each of them is stated in `tests/meta/test_detection.py`."""
