"""Planted defects of features: columns of v, windows, soft caps, biases, masks, sinks. Threads: owner/repository#number."""

from __future__ import annotations

from flashverify.mutants.mutant import Edit, Mutant

FEATURES = (
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
                "p = tl.where(keys[:, None] >= queries[None, :] + first_offset, p, 0.0)\n",
                "p = tl.where(keys[:, None] >= -1, p, 0.0)\n",
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
                "        if SOFTCAP:\n            scores, _slope = tanh_and_slope(scores * inner_scale, ACCUMULATOR)\n",
                "",
            ),
            Edit(
                "forward.py",
                '            scores = tl.where(seen, scores, float("-inf"))\n',
                '            scores = tl.where(seen, scores, float("-inf"))\n'
                "        if SOFTCAP:\n            scores, _slope = tanh_and_slope(scores * inner_scale, ACCUMULATOR)\n",
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
                "            scores, _slope = tanh_and_slope(scores * inner_scale, ACCUMULATOR)\n",
                "            capped, _slope = tanh_and_slope(scores * inner_scale, ACCUMULATOR)\n"
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
                "            if SOFTCAP:\n                ds = ds * slope\n",
                "",
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
                "        if SOFTCAP:\n            ds = ds * slope\n",
                "",
            ),
        ),
    ),
    Mutant(
        "alibi-sign",
        "Linear biases raise the logits of distant keys.",
        "meta-pytorch/attention-gym#86",
        (Edit("primitives.py", "return scores - tl.abs(", "return scores + tl.abs("),),
    ),
    Mutant(
        "alibi-off-by-one",
        "Distances are one too large: a number that all keys of a row share, so that lse alone shows it.",
        "vllm-project/vllm#945",
        (
            Edit(
                "primitives.py",
                "tl.abs(query_places - keys).to(ACCUMULATOR)",
                "(tl.abs(query_places - keys) + 1).to(ACCUMULATOR)",
            ),
        ),
    ),
    Mutant(
        "alibi-top-left",
        "Distances of the forward pass are counted from the first query at the first key.",
        "Dao-AILab/flash-attention#907",
        (
            Edit(
                "forward.py",
                "        query_places = query_rows + (seqlen_k - seqlen_q)\n",
                "        query_places = query_rows\n",
            ),
        ),
    ),
    Mutant(
        "alibi-of-the-key-head",
        "dK and dV take the slope of the key head's number for all query heads of its group.",
        "control",
        (
            Edit(
                "dkdv.py",
                "alibi_slope(slopes_ptr, sequence, head, stride_ab",
                "alibi_slope(slopes_ptr, sequence, head_kv, stride_ab",
            ),
        ),
    ),
    Mutant(
        "bias-scaled",
        "A bias is multiplied by the softmax scale, like the product that it is added to.",
        "tenstorrent/tt-metal#42891",
        (Edit("primitives.py", "scores + bias * inverse)", "scores + bias)"),),
    ),
    Mutant(
        "bias-gradient-of-one-entry",
        "The gradient of a bias that the batch shares is that of the first entry alone.",
        "control",
        (
            Edit(
                "dbias.py",
                "    for step in range(0, batches * heads * blocks_seen):",
                "    for step in range(0, heads * blocks_seen):",
            ),
        ),
    ),
    Mutant(
        "mask-inverted",
        "True hides a pair.",
        "control",
        (Edit("primitives.py", "return tl.where(bias != 0, scores,", "return tl.where(bias == 0, scores,"),),
    ),
    Mutant(
        "sink-ignored",
        "The row sum begins without the sink's share.",
        "modular/modular#6198",
        (
            Edit(
                "forward.py",
                '        running_sum = tl.where(running_max == float("-inf"), running_sum, 1.0)\n',
                "",
            ),
        ),
    ),
    Mutant(
        "sink-gradient-of-one-entry",
        "The gradient of sinks leaves out every batch entry but the first.",
        "ISEEKYAN/Megatron-LM#205",
        (Edit("dsink.py", "    for batch in range(0, batch_size):", "    for batch in range(0, 1):"),),
    ),
)
"""What sees each of them is stated in `tests/meta/test_detection.py`."""
