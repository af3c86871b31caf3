"""Which case each planted defect is tried on: one, mostly, that is small and has what the defect is about."""

from __future__ import annotations

CAUSAL = "bf16_b1_h2x1_n33x47_d32_causal_normal_contiguous_s0"
TAIL = "fp32_b1_h1x1_n33x70_d16_full_normal_contiguous_s0"
GROWING = "fp16_b1_h1x1_n17x65_d16_full_growing-maximum_contiguous_s0"
FALLING = "fp16_b1_h1x1_n17x65_d16_full_falling-maximum_contiguous_s0"
WINDOW = "fp32_b1_h2x1_n70x70_d16_causal_normal_contiguous_left20_s0"
SOFTCAP = "fp16_b1_h2x1_n47x40_d16_causal_normal_contiguous_cap2.0_s0"
ALIBI = "bf16_b1_h4x2_n33x47_d16_causal_normal_contiguous_alibi-heads_s0"
VALUES = "fp32_b1_h1x1_n33x70_d16x40_full_normal_contiguous_s0"
BIAS = "bf16_b2_h2x1_n33x47_d16_causal_normal_contiguous_bias-heads_sink_s0"
MASK = "fp16_b2_h2x1_n20x33_d16_full_normal_contiguous_bias-mask_s0"
CACHE = "bf16_b2_h4x2_n3x100_d16_causal_large_contiguous_cache-contiguous_s0"
PAGES = "bf16_b2_h4x2_n3x100_d16_causal_large_contiguous_cache-paged_s0"
PADDED = "bf16_b3_h4x2_n3x70_d16_causal_normal_contiguous_cache-contiguous_leftpad_s0"
TURNED = "bf16_b3_h4x2_n3x70_d40_causal_normal_contiguous_cache-contiguous_rotary-half_s1"
STILL = "fp32_b2_h4x2_n3x70_d16_full_normal_contiguous_cache-paged_rotary-interleaved_s0"
APART = "fp16_b2_h2x1_n3x70_d16_causal_normal_contiguous_lengths-keys_cache-paged_rotary-half_s4"
SHARED = "bf16_b3_h4x2_n3x70_d16_causal_normal_contiguous_cache-shared_s0"
RAGGED = "fp32_b5_h1x1_n20x24_d16_full_normal_contiguous_lengths-ragged_s0"
USED = "fp32_b5_h1x1_n20x33_d16_full_normal_contiguous_lengths-used_s0"
ALIGNED = "bf16_b6_h2x1_n20x33_d16_causal_normal_contiguous_alibi-batch_lengths-used_s0"
DROPPED = "bf16_b2_h2x1_n33x48_d16_causal_large_contiguous_drop0.3_s3"
SCHEDULED = "fp16_b1_h1x1_n130x140_d16_full_normal_contiguous_drop0.3_s14"
ROUNDED = "bf16_b1_h1x1_n128x144_d64_full_normal_contiguous_s0"
SMALL = "bf16_b1_h1x1_n128x144_d64_full_small-gradient_contiguous_s0"
MOST_DROPPED = DROPPED.replace("drop0.3", "drop0.9")
"""Where more words tell: a threshold of 8 bits is 0.0023 off there."""

TRIALS: dict[str, tuple[str, ...]] = {
    "scale-off-by-1-percent": (CAUSAL,),
    "running-max-lost": (FALLING,),
    "rescale-missed": (GROWING,),
    "tail-keys-unmasked": (TAIL,),
    "causal-off-by-one": (CAUSAL,),
    "values-cut-to-the-head-size": (VALUES,),
    "window-off-by-one": (WINDOW,),
    "window-not-hidden-in-dkdv": (WINDOW,),
    "window-tile-short-in-dkdv": (WINDOW,),
    "softcap-after-mask": (SOFTCAP,),
    "softcap-times-logit": (SOFTCAP,),
    "softcap-slope-missing-in-dkdv": (SOFTCAP,),
    "softcap-slope-missing-in-dq": (SOFTCAP,),
    "alibi-sign": (ALIBI,),
    "alibi-off-by-one": (ALIBI,),
    "alibi-top-left": (ALIBI,),
    "alibi-of-the-key-head": (ALIBI,),
    "bias-scaled": (BIAS,),
    "bias-gradient-of-one-entry": (BIAS,),
    "mask-inverted": (MASK,),
    "sink-ignored": (BIAS,),
    "sink-gradient-of-one-entry": (BIAS,),
    "parts-merged-unweighted": (CACHE,),
    "part-one-block-short": (CACHE,),
    "lse-of-the-first-part": (CACHE,),
    "page-table-of-the-first-entry": (PAGES,),
    "page-offset-one-late": (PAGES,),
    "cache-entry-ignored": (CACHE,),
    "cache-read-beyond-the-length": (CACHE,),
    "new-keys-not-seen": (CACHE,),
    "decoded-group-transposed": (CACHE,),
    "decoded-top-left": (CACHE,),
    "left-pad-ignored": (PADDED,),
    "left-pad-off-by-one": (PADDED,),
    "left-pad-of-the-first-entry": (PADDED,),
    "left-pad-moves-the-mask": (PADDED,),
    "queries-not-turned": (TURNED,),
    "queries-turned-from-zero": (TURNED,),
    "queries-all-advance": (STILL,),
    "queries-turned-by-the-first-entry": (APART,),
    "queries-turned-by-short-angles": (STILL,),
    "delta-missing": (CAUSAL,),
    "tf32-for-fp32": (TAIL,),
    "lse-in-base-2": (CAUSAL,),
    "appended-one-place-late": (PAGES,),
    "page-table-transposed": (SHARED,),
    "rotary-pairs-swapped": (TURNED,),
    "rotary-backwards": (TURNED,),
    "rotary-partial-dimension-ignored": (TURNED,),
    "appended-keys-not-turned": (TURNED,),
    "appended-keys-turned-one-place-late": (TURNED,),
    "packed-key-of-the-neighbour": (RAGGED,),
    "packed-queries-of-the-neighbour": (RAGGED,),
    "packed-top-left": (ALIGNED,),
    "packed-aligned-by-the-stretch": (ALIGNED,),
    "packed-used-rows-ignored": (USED,),
    "packed-gradient-of-unused-keys-left": (USED,),
    "packed-last-block-lost": (RAGGED,),
    "packed-slopes-of-the-first": (ALIGNED,),
    "dropout-seed-constant": (DROPPED,),
    "dropout-offset-ignored": (DROPPED,),
    "dropout-counter-wraps": (DROPPED,),
    "dropout-rate-in-8-bits": (MOST_DROPPED,),
    "dropout-shared-by-heads": (DROPPED,),
    "dropout-shared-by-entries": (DROPPED,),
    "dropout-transposed-in-dkdv": (DROPPED,),
    "dropout-halves-swapped-in-dq": (DROPPED,),
    "dropout-counted-in-tiles": (DROPPED,),
    "dropout-moved-in-other-tiles-of-dq": (SCHEDULED,),
    "dropout-before-the-normaliser": (DROPPED,),
    "dropout-out-not-rescaled": (DROPPED,),
    "dropout-dv-not-rescaled": (DROPPED,),
    "dropout-rescaled-by-the-rate": (DROPPED,),
    "dropout-delta-dropped-too": (DROPPED,),
    "dropout-signs-of-zeros-lost": (DROPPED,),
    "dropout-stuck-off": (DROPPED,),
    "dropout-in-the-last-block-alone": (DROPPED,),
    "p-truncated": (ROUNDED,),
    "out-accumulated-in-bf16": (ROUNDED,),
    "row-sum-in-bf16": (ROUNDED,),
    "q-prescaled-in-bf16": (ROUNDED,),
    "log2e-typed": (ROUNDED,),
    "exp2-cubic": (ROUNDED,),
    "ds-truncated": (ROUNDED,),
    "lse-off": (ROUNDED,),
    "delta-missing-in-a-row": (ROUNDED,),
    "ds-in-fp16": (SMALL,),
    "dq-accumulated-in-bf16": (ROUNDED,),
}
"""Mutant -> ids of cases."""

EQUIVALENT: dict[str, str] = {}
"""Mutant that no input shows -> why."""
