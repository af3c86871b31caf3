"""Planted defects of what only a cache has: left pads, rotary embedding, pages that sequences share."""

from __future__ import annotations

from flashverify.mutants.mutant import Edit, Mutant

CACHES = (
    Mutant(
        "left-pad-ignored",
        "Keys at the front of the cache are seen, whatever cache_leftpad says.",
        "Dao-AILab/flash-attention#1788",
        (Edit("decode.py", "begin = tl.maximum(tl.load(leftpad_ptr + batch), 0)", "begin = 0"),),
    ),
    Mutant(
        "left-pad-off-by-one",
        "The first key behind the pad is hidden too.",
        "control",
        (
            Edit(
                "decode.py",
                "begin = tl.maximum(tl.load(leftpad_ptr + batch), 0)",
                "begin = tl.maximum(tl.load(leftpad_ptr + batch), 0) + 1",
            ),
        ),
    ),
    Mutant(
        "left-pad-of-the-first-entry",
        "Every batch entry has the first one's pad.",
        "control",
        (
            Edit(
                "decode.py",
                "begin = tl.maximum(tl.load(leftpad_ptr + batch), 0)",
                "begin = tl.maximum(tl.load(leftpad_ptr + 0 * batch), 0)",
            ),
        ),
    ),
    Mutant(
        "left-pad-moves-the-mask",
        "Queries stand as many places earlier as keys are padded.",
        "control",
        (
            Edit(
                "decode.py",
                "        begin = tl.maximum(tl.load(leftpad_ptr + batch), 0)\n",
                "        begin = tl.maximum(tl.load(leftpad_ptr + batch), 0)\n        places -= begin\n",
            ),
        ),
    ),
    Mutant(
        "rotary-pairs-swapped",
        "Neighbouring columns turn together where halves should, and halves where neighbours should.",
        "control",
        (Edit("rotary.py", "    if INTERLEAVED:\n", "    if not INTERLEAVED:\n"),),
    ),
    Mutant(
        "rotary-backwards",
        "Rows turn by the negative angle: scores depend on differences of positions, but those to keys in the cache are off.",
        "control",
        (
            Edit(
                "rotary.py",
                "signed = tl.where(is_first[None, :], -other, other)",
                "signed = tl.where(is_first[None, :], other, -other)",
            ),
        ),
    ),
    Mutant(
        "rotary-partial-dimension-ignored",
        "Pairs are half of the head size apart, not half of the columns that turn.",
        "control",
        (
            Edit("rotary.py", "    half = rotary_dim // 2\n", "    half = head_dim // 2\n"),
            Edit(
                "rotary.py",
                "pair = tl.where(is_first, columns, columns - half)",
                "pair = tl.where(is_first, columns, columns - half) % (rotary_dim // 2)",
            ),
        ),
    ),
    Mutant(
        "appended-keys-not-turned",
        "New keys are stored as they come; only queries are turned.",
        "control",
        (Edit("append.py", "        ROTARY=cos is not None,\n", "        ROTARY=False,\n"),),
    ),
    Mutant(
        "appended-keys-turned-one-place-late",
        "New keys are turned by the angles of the place after theirs.",
        "control",
        (
            Edit(
                "append.py",
                "            k_rows, inside, keys, cos_ptr, sin_ptr,",
                "            k_rows, inside, keys + 1, cos_ptr, sin_ptr,",
            ),
        ),
    ),
    Mutant(
        "queries-not-turned",
        "Queries are used as they come; only new keys are turned.",
        "control",
        (Edit("ops_cache.py", "            q = turned\n", ""),),
    ),
    Mutant(
        "queries-turned-from-zero",
        "Queries are turned by the angles of their number in the call, whatever the cache holds.",
        "lucidrains/rotary-embedding-torch#11",
        (
            Edit(
                "rotary.py",
                "positions = cached_length(seqlens_ptr, batch, seqlen, capacity, RAGGED) + tl.zeros_like(rows)",
                "positions = tl.zeros_like(rows)",
            ),
        ),
    ),
    Mutant(
        "queries-all-advance",
        "Queries are turned by places of their own where no mask orders them, too.",
        "control",
        (Edit("rotary.py", "    if ADVANCE:\n", "    if ADVANCE or not ADVANCE:\n"),),
    ),
    Mutant(
        "queries-turned-by-the-first-entry",
        "Queries of every batch entry begin at the length of the first one's sequence.",
        "control",
        (
            Edit(
                "rotary.py",
                "positions = cached_length(seqlens_ptr, batch, seqlen, capacity, RAGGED) + tl.zeros_like(rows)",
                "positions = cached_length(seqlens_ptr, 0, seqlen, capacity, RAGGED) + tl.zeros_like(rows)",
            ),
        ),
    ),
    Mutant(
        "queries-turned-by-short-angles",
        "Cosines and sines are rounded to bfloat16 before they turn queries.",
        "control",
        (
            Edit(
                "ops_cache.py",
                "rotate(q, turned, rotary_cos, rotary_sin, seqlens,",
                "rotate(q, turned, rotary_cos.bfloat16().to(q.dtype), rotary_sin.bfloat16().to(q.dtype), seqlens,",
            ),
        ),
    ),
    Mutant(
        "page-table-transposed",
        "The table of pages is read along its other axis: other sequences' pages, or the sequence's own in another order.",
        "control",
        (
            Edit(
                "ops_cache.py",
                "    return None if x is None else x.contiguous()\n",
                "    return x if x is None or x.dim() == 1 else x.mT.contiguous().reshape(x.shape)\n",
            ),
        ),
    ),
)
