"""Planted defects of decoding from a cache: parts and their merge, pages, lengths, appended keys, grouped heads."""

from __future__ import annotations

from flashverify.mutants.mutant import Edit, Mutant

DECODING = (
    Mutant(
        "parts-merged-unweighted",
        "Parts of the keys are added up as if all had the same maximum.",
        "Dao-AILab/flash-attention#1647",
        (
            Edit(
                "merge.py",
                "weights = tl.exp2((maxima - shift) * exponent_scale)",
                'weights = tl.where(maxima > float("-inf"), 1.0, 0.0)',
            ),
        ),
    ),
    Mutant(
        "part-one-block-short",
        "Each part of the keys leaves its last block out.",
        "flashinfer-ai/flashinfer#4484",
        (
            Edit(
                "decode.py",
                "share_end = first_block + tl.minimum((split + 1) * share, blocks)",
                "share_end = first_block + tl.maximum(tl.minimum((split + 1) * share, blocks) - 1, 0)",
            ),
        ),
    ),
    Mutant(
        "lse-of-the-first-part",
        "After the merge, lse is formed with the maximum of the first parts alone.",
        "flashinfer-ai/flashinfer#5262",
        (
            Edit(
                "merge.py",
                'lse = tl.where(saw_no_key, float("-inf"), whole_max * scale + tl.log2(divisor) * LN2)',
                'lse = tl.where(saw_no_key, float("-inf"), tl.load(maxima_ptr + row) * scale + tl.log2(divisor) * LN2)',
            ),
        ),
    ),
    Mutant(
        "page-table-of-the-first-entry",
        "Every batch entry looks its pages up in the first one's row of the table.",
        "control",
        (
            Edit(
                "decode.py",
                "table_row = table_ptr + wide_batch * stride_table",
                "table_row = table_ptr + 0 * wide_batch * stride_table",
            ),
        ),
    ),
    Mutant(
        "page-offset-one-late",
        "Keys are read one place further on in their page.",
        "control",
        (
            Edit(
                "decode.py",
                "first, second = key_rows(keys, inside, entry, table_row, PAGE_SIZE)\n"
                "        rows = first * stride_entry + second * stride_row",
                "first, second = key_rows(keys, inside, entry, table_row, PAGE_SIZE)\n"
                "        rows = first * stride_entry + (second + 1) % tl.maximum(PAGE_SIZE, 1) * stride_row",
            ),
        ),
    ),
    Mutant(
        "cache-entry-ignored",
        "Batch entries read the entries of the cache in order, whatever cache_batch_idx says.",
        "control",
        (
            Edit(
                "decode.py",
                "entry = cache_entry(entries_ptr, batch, INDEXED)",
                "entry = cache_entry(entries_ptr, batch, False)",
            ),
        ),
    ),
    Mutant(
        "cache-read-beyond-the-length",
        "Values beyond a sequence's length are read: zero weights times what is there, which may be NaN.",
        "Dao-AILab/flash-attention#1745",
        (Edit("decode.py", "inside = (keys >= begin) & (keys < end)", "inside = (keys >= begin) & (keys < capacity)"),),
    ),
    Mutant(
        "new-keys-not-seen",
        "Keys that a call appends are not attended to by it.",
        "control",
        (
            Edit(
                "decode.py",
                "length = cached_length(seqlens_ptr, batch, seqlen, capacity, RAGGED) + seqlen_new",
                "length = cached_length(seqlens_ptr, batch, seqlen, capacity, RAGGED)",
            ),
        ),
    ),
    Mutant(
        "appended-one-place-late",
        "New keys are written one place behind the end of the sequence.",
        "control",
        (
            Edit(
                "append.py",
                "keys = cached_length(seqlens_ptr, batch, seqlen, capacity, RAGGED) + token",
                "keys = cached_length(seqlens_ptr, batch, seqlen, capacity, RAGGED) + token + 1",
            ),
        ),
    ),
    Mutant(
        "decoded-group-transposed",
        "Rows of a tile are (query, head of the group) but q is read as if they were (head, query).",
        "pytorch/pytorch#186434",
        (
            Edit(
                "decode.py",
                "queries.to(tl.int64) * stride_qn + heads.to(tl.int64) * stride_qh)",
                "queries.to(tl.int64) * stride_qn + (heads - rows % group_size + rows // seqlen_q % group_size) * stride_qh)",
            ),
        ),
    ),
    Mutant(
        "decoded-top-left",
        "Queries stand at the first keys of the cache, not at the last.",
        "control",
        (Edit("decode.py", "places = queries + first_place", "places = queries"),),
    ),
)
