"""Planted defects of dropout: which words a pair reads, what they are held against, and where mask and factor are applied."""

from __future__ import annotations

from flashverify.mutants.mutant import Edit, Mutant

_TILE = "seed, first_call, sequence * heads_q + head, first_row, start, largest_dropped, BLOCK_M, BLOCK_N, False"
_DROPPED = (
    f"            dropped = dropped_pairs(\n                {_TILE}\n            )\n            p = tl.where(dropped, 0.0, p)\n"
)
_SUMMED = "        running_sum = running_sum * rescale + tl.sum(p, 1)\n"
_OF_KEYS = "seed, first_call, entry_and_head, start, first_key, largest_dropped, BLOCK_M, BLOCK_N, True"

DROPOUT = (
    Mutant(
        "dropout-seed-constant",
        "Every call has the same seed.",
        "Dao-AILab/flash-attention#2088",
        (Edit("dropout.py", "    seed = tl.load(state_ptr).to(", "    seed = (tl.load(state_ptr) * 0 + 0x1BF58).to("),),
    ),
    Mutant(
        "dropout-offset-ignored",
        "Every call of a seed reads the same words.",
        "pytorch/pytorch#178713",
        (Edit("dropout.py", "    return seed, offset // 4,", "    return seed, offset // 4 * 0,"),),
    ),
    Mutant(
        "dropout-counter-wraps",
        "Counters have 32 bits: beyond them words repeat.",
        "flagos-ai/FlagGems#23",
        (Edit("dropout.py", "    high = (calls >> 32).to(tl.uint32)\n", "    high = low * 0\n"),),
    ),
    Mutant(
        "dropout-rate-in-8-bits",
        "The threshold has 8 bits, as FlashAttention's has.",
        "control",
        (
            Edit("dropout.py", "(KEYS, QUERIES)) <= largest\n", "(KEYS, QUERIES)) >> 24 <= largest >> 24\n"),
            Edit("dropout.py", "(QUERIES, KEYS)) <= largest\n", "(QUERIES, KEYS)) >> 24 <= largest >> 24\n"),
        ),
    ),
    Mutant(
        "dropout-shared-by-heads",
        "All heads and batch entries have one mask.",
        "tenstorrent/tt-metal#55947",
        (
            Edit("dropout.py", "rows[None, :], head.to(tl.uint32))", "rows[None, :], (head * 0).to(tl.uint32))"),
            Edit("dropout.py", "rows[:, None], head.to(tl.uint32))", "rows[:, None], (head * 0).to(tl.uint32))"),
        ),
    ),
    Mutant(
        "dropout-shared-by-entries",
        "The forward pass gives all batch entries the masks of the first.",
        "tenstorrent/tt-metal#55947",
        (Edit("forward.py", "first_call, sequence * heads_q + head, first_row", "first_call, head, first_row"),),
    ),
    Mutant(
        "dropout-transposed-in-dkdv",
        "dK and dV drop the pair of query j and key i for that of i and j.",
        "Dao-AILab/flash-attention#2439",
        (
            Edit(
                "dkdv.py",
                _OF_KEYS,
                "seed, first_call, entry_and_head, first_key, start, largest_dropped, BLOCK_M, BLOCK_N, True",
            ),
        ),
    ),
    Mutant(
        "dropout-halves-swapped-in-dq",
        "dQ takes the word of the other half of the keys.",
        "Dao-AILab/flash-attention#1251",
        (Edit("dq.py", _TILE, _TILE.replace("start,", "start + 8,")),),
    ),
    Mutant(
        "dropout-counted-in-tiles",
        "Counters are those of the place in the tile.",
        "Dao-AILab/flash-attention#1106",
        (Edit("dropout.py", "    rows = (first_query // 2 + tl", "    rows = (first_query * 0 + tl"),),
    ),
    Mutant(
        "dropout-moved-in-other-tiles-of-dq",
        "dQ reads the words of later keys in tiles of other sizes than the usual ones.",
        "Dao-AILab/flash-attention#612",
        (Edit("dq.py", _TILE, _TILE.replace("start,", "start + 16 * (BLOCK_M * BLOCK_N % 3072 != 1024),")),),
    ),
    Mutant(
        "dropout-before-the-normaliser",
        "Dropped probabilities are missing in the row's sum.",
        "ROCm/triton#460",
        (
            Edit("forward.py", _SUMMED, ""),
            Edit("forward.py", _DROPPED, _DROPPED + _SUMMED.replace("        ", "            ", 1)),
        ),
    ),
    Mutant(
        "dropout-out-not-rescaled",
        "out lacks the factor of kept pairs.",
        "NVIDIA/apex#816",
        (Edit("forward.py", "        out = out * kept_scale\n", "        out = out * 1.0\n"),),
    ),
    Mutant(
        "dropout-dv-not-rescaled",
        "dV lacks the factor of kept pairs.",
        "NVIDIA/apex#816",
        (Edit("dkdv.py", "        dv = dv * kept_scale\n", "        dv = dv * 1.0\n"),),
    ),
    Mutant(
        "dropout-rescaled-by-the-rate",
        "Kept pairs are multiplied by 1 / p instead of 1 / (1 - p).",
        "NVIDIA/apex#816",
        (Edit("dropout.py", "        return WORDS / (WORDS - self.threshold) if", "        return WORDS / self.threshold if"),),
    ),
    Mutant(
        "dropout-delta-dropped-too",
        "dS is 0 where a pair is dropped, as if delta were of kept pairs alone.",
        "control",
        (
            Edit(
                "dropout.py",
                "        return tl.abs(p) * tl.fma(tl.where(has_sign(p), 0.0, dp), rescale, -delta)\n",
                "        return tl.where(has_sign(p), 0.0, p * tl.fma(dp, rescale, -delta))\n",
            ),
        ),
    ),
    Mutant(
        "dropout-signs-of-zeros-lost",
        "The sign is set by negation from 0, which leaves +0 where a dropped probability underflows.",
        "candle-org/candle#82",
        (Edit("dropout.py", "        return tl.where(dropped, p * -1.0, p)", "        return tl.where(dropped, 0.0 - p, p)"),),
    ),
    Mutant(
        "dropout-stuck-off",
        "The rate is accepted and nothing is dropped.",
        "NVIDIA/Megatron-LM#411",
        (
            Edit(
                "dropout.py",
                "    return None if state is None or threshold == 0 else",
                "    return None if threshold >= 0 else",
            ),
        ),
    ),
    Mutant(
        "dropout-in-the-last-block-alone",
        "The forward pass drops pairs of the last key block alone.",
        "control",
        (
            Edit(
                "forward.py",
                "            p = tl.where(dropped, 0.0, p)\n",
                "            p = tl.where(dropped & (start + BLOCK_N >= end), 0.0, p)\n",
            ),
        ),
    ),
)
