"""The suite sees what it is for: each planted defect fails a case on which the healthy kernel passes."""

import pytest

from flashverify.campaign.worker import examine_with
from flashverify.cases.case import AttentionCase
from flashverify.checks import bounded_relations as bounded
from flashverify.checks import exact_relations as exact
from flashverify.checks import perturbation
from flashverify.checks import scaled_relations as scaled
from flashverify.checks.examination import Examination
from flashverify.checks.registry import all_checks
from flashverify.checks.related import judge
from flashverify.checks.relations import CLAIMS
from flashverify.kernels import load
from flashverify.mutants.catalogue import MUTANTS
from flashverify.records.measurement import Verdict

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

SEEN_BY = {
    "scale-off-by-1-percent": (CAUSAL, "lse", {"accuracy", "function"}),
    "running-max-lost": (FALLING, "out", {"accuracy"}),
    "rescale-missed": (GROWING, "out", {"accuracy", "function"}),
    "tail-keys-unmasked": (TAIL, "lse", {"accuracy", "function"}),
    "causal-off-by-one": (CAUSAL, "lse", {"accuracy", "function"}),
    "values-cut-to-the-head-size": (VALUES, "out", {"accuracy", "function"}),
    "window-off-by-one": (WINDOW, "out", {"accuracy", "function"}),
    "window-not-hidden-in-dkdv": (WINDOW, "dk", {"accuracy", "function"}),
    "window-tile-short-in-dkdv": (WINDOW, "dv", {"accuracy", "function"}),
    "softcap-after-mask": (SOFTCAP, "out", {"accuracy", "function"}),
    "softcap-times-logit": (SOFTCAP, "lse", {"accuracy", "function"}),
    "softcap-slope-missing-in-dkdv": (SOFTCAP, "dk", {"accuracy", "function"}),
    "softcap-slope-missing-in-dq": (SOFTCAP, "dq", {"accuracy", "function"}),
    "alibi-sign": (ALIBI, "dq", {"accuracy", "function"}),
    "alibi-off-by-one": (ALIBI, "lse", {"accuracy", "function"}),
    "alibi-top-left": (ALIBI, "lse", {"accuracy", "function"}),
    "alibi-of-the-key-head": (ALIBI, "dk", {"accuracy", "function"}),
    "bias-scaled": (BIAS, "lse", {"accuracy", "function"}),
    "bias-gradient-of-one-entry": (BIAS, "dbias", {"accuracy", "function"}),
    "mask-inverted": (MASK, "out", {"accuracy"}),  # in float64 a mask is a bias
    "sink-ignored": (BIAS, "lse", {"accuracy", "function"}),
    "sink-gradient-of-one-entry": (BIAS, "dsink", {"accuracy", "function"}),
    "parts-merged-unweighted": (CACHE, "lse", {"accuracy", "function"}),
    "part-one-block-short": (CACHE, "lse", {"accuracy", "function"}),
    "lse-of-the-first-part": (CACHE, "lse", {"accuracy", "function"}),
    "page-table-of-the-first-entry": (PAGES, "lse", {"accuracy", "function"}),
    "page-offset-one-late": (PAGES, "out", {"accuracy", "function"}),
    "cache-entry-ignored": (CACHE, "out", {"accuracy", "function"}),
    "cache-read-beyond-the-length": (CACHE, "out", {"accuracy", "function"}),
    "new-keys-not-seen": (CACHE, "lse", {"accuracy", "function"}),
    "decoded-group-transposed": (CACHE, "lse", {"accuracy", "function"}),
    "decoded-top-left": (CACHE, "lse", {"accuracy", "function"}),
    "left-pad-ignored": (PADDED, "out", {"accuracy", "function"}),
    "left-pad-off-by-one": (PADDED, "lse", {"accuracy", "function"}),
    "left-pad-of-the-first-entry": (PADDED, "out", {"accuracy", "function"}),
    "left-pad-moves-the-mask": (PADDED, "lse", {"accuracy", "function"}),
    "queries-not-turned": (TURNED, "out", {"accuracy", "function"}),
    "queries-turned-from-zero": (TURNED, "out", {"accuracy", "function"}),
    "queries-all-advance": (STILL, "out", {"accuracy", "function"}),
    "queries-turned-by-the-first-entry": (APART, "out", {"accuracy", "function"}),
    "queries-turned-by-short-angles": (STILL, "out", {"accuracy", "function"}),
    "delta-missing": (CAUSAL, "dq", {"accuracy", "function"}),
    "tf32-for-fp32": (TAIL, "dv", {"accuracy"}),
    "lse-in-base-2": (CAUSAL, "lse", {"accuracy", "function"}),
}
"""Mutant -> case, the tensor with the largest excess, and the checks that fail."""

REFUSED = {
    "appended-one-place-late": (PAGES, "k_cache: the call leaves other keys"),
    "page-table-transposed": (SHARED, "k_cache: the call leaves other keys"),
    "rotary-pairs-swapped": (TURNED, "k_cache: an appended key is not the turned one"),
    "rotary-backwards": (TURNED, "k_cache: an appended key is not the turned one"),
    "rotary-partial-dimension-ignored": (TURNED, "k_cache: an appended key is not the turned one"),
    "appended-keys-not-turned": (TURNED, "k_cache: an appended key is not the turned one"),
    "appended-keys-turned-one-place-late": (TURNED, "k_cache: an appended key is not the turned one"),
}
"""Mutant -> case, and what is said before any number is compared; every check that applies fails then."""

RAGGED = "fp32_b5_h1x1_n20x24_d16_full_normal_contiguous_lengths-ragged_s0"
USED = "fp32_b5_h1x1_n20x33_d16_full_normal_contiguous_lengths-used_s0"
ALIGNED = "bf16_b6_h2x1_n20x33_d16_causal_normal_contiguous_alibi-batch_lengths-used_s0"

PACKED_SEEN_BY = {
    "packed-key-of-the-neighbour": (RAGGED, "out (forward)"),
    "packed-queries-of-the-neighbour": (RAGGED, "dk (modular)"),
    "packed-top-left": (ALIGNED, "out (forward)"),
    "packed-aligned-by-the-stretch": (ALIGNED, "dq (modular)"),
    "packed-used-rows-ignored": (USED, "out: got nan in a row of no sequence"),
    "packed-gradient-of-unused-keys-left": (USED, "dk: got "),
    "packed-last-block-lost": (RAGGED, "lse (forward)"),
    "packed-slopes-of-the-first": (ALIGNED, "dk (modular)"),
}
"""Defect of packed sequences -> case, and how the reason begins; accuracy and function fail."""

DROPPED = "bf16_b2_h2x1_n33x47_d16_causal_large_contiguous_drop0.3_s3"
"""Large logits, so that probabilities underflow; counters that overflow their low word within the first keys."""

WRONG_BITS = {"accuracy", "function", "mask"}
DROPOUT_SEEN_BY = {
    "dropout-seed-constant": WRONG_BITS | {"sign_bit", "effective_rate"},
    "dropout-offset-ignored": WRONG_BITS | {"sign_bit", "effective_rate"},
    "dropout-counter-wraps": WRONG_BITS | {"sign_bit", "effective_rate"},
    "dropout-rate-in-8-bits": WRONG_BITS | {"sign_bit", "effective_rate"},
    "dropout-shared-by-heads": WRONG_BITS | {"sign_bit", "effective_rate"},
    "dropout-shared-by-entries": WRONG_BITS | {"effective_rate"},
    "dropout-transposed-in-dkdv": WRONG_BITS,
    "dropout-halves-swapped-in-dq": WRONG_BITS,
    "dropout-counted-in-tiles": WRONG_BITS | {"sign_bit", "effective_rate"},
    "dropout-before-the-normaliser": {"accuracy", "function", "effective_rate", "sign_bit"},
    "dropout-out-not-rescaled": {"accuracy", "function", "effective_rate"},
    "dropout-dv-not-rescaled": {"accuracy", "function"},
    "dropout-rescaled-by-the-rate": {"accuracy", "function", "effective_rate"},
    "dropout-delta-dropped-too": WRONG_BITS,
    "dropout-signs-of-zeros-lost": {"sign_bit"},
    "dropout-stuck-off": WRONG_BITS | {"sign_bit", "effective_rate"},
    "dropout-in-the-last-block-alone": WRONG_BITS | {"effective_rate"},
}
"""Defect of dropout -> the checks that fail."""

RATE_OF = {"dropout-rate-in-8-bits": "drop0.9"}
"""Another rate than `DROPPED` has, where more words tell: 8 bits are 0.0023 off there."""

OF_OTHER_GENERATORS = {"statistics"}
BY_TURN = {"perturbation", "relations"}
"""Checks that apply to few cases in the interpreter."""

OF_DROPOUT = {"mask", "sign_bit", "effective_rate"}
"""Checks that say nothing of a kernel whose mask is the host's, and of a case without dropout."""

TIERS = ("accuracy", "sharp", "distribution")

ROUNDED = "bf16_b1_h1x1_n128x144_d64_full_normal_contiguous_s0"
SMALL = "bf16_b1_h1x1_n128x144_d64_full_small-gradient_contiguous_s0"

ROUNDING_SEEN_BY = {
    "p-truncated": (ROUNDED, {"distribution"}),
    "out-accumulated-in-bf16": (ROUNDED, {"sharp", "distribution"}),
    "row-sum-in-bf16": (ROUNDED, {"accuracy", "sharp", "distribution"}),
    "q-prescaled-in-bf16": (ROUNDED, {"accuracy", "sharp", "distribution"}),
    "log2e-typed": (ROUNDED, {"accuracy", "sharp", "distribution"}),
    "exp2-cubic": (ROUNDED, {"accuracy", "sharp"}),
    "ds-truncated": (ROUNDED, {"distribution"}),
    "lse-off": (ROUNDED, {"distribution"}),
    "delta-missing-in-a-row": (ROUNDED, {"accuracy", "sharp", "distribution"}),
    "ds-in-fp16": (SMALL, {"accuracy", "sharp", "distribution"}),
    "dq-accumulated-in-bf16": (ROUNDED, {"accuracy", "sharp", "distribution"}),
}
"""Defect of rounding -> case, and the checks that fail in the interpreter; tiles of a GPU are larger, and hide less or more."""


ENTRIES = "fp32_b2_h2x1_n20x300_d16_full_normal_contiguous_s1"
LONG = "fp32_b1_h1x1_n300x300_d16_causal_normal_contiguous_s32"
"""Several blocks of keys on every device. The second entry is the one alone; the first rows of the second case are 283."""

CAUSAL_HALF = CAUSAL.replace("bf16", "fp16")

RELATING_SEEN_BY = {
    "maximum-of-hidden-keys": (CAUSAL, {perturbation.FROM_SOME, exact.PREFIX}),
    "hidden-scores-lowered": (CAUSAL, {perturbation.FROM_SOME}),
    "keys-scaled-by-their-tile": (CAUSAL_HALF, {perturbation.FROM_SOME}),
    "walk-by-entry": (ENTRIES, {exact.ENTRIES_PERMUTED, exact.ALONE}),
    "walk-by-group": (ENTRIES, {exact.GROUPED}),
    "walk-by-length": (LONG, {exact.PREFIX}),
}
"""Defect that no error of a drawn case shows -> case, and the relations that it breaks; every other check passes."""

RELATED = (*perturbation.CLAIMS, *CLAIMS)
RELATED_TOO = {
    "softcap-after-mask": (SOFTCAP, {perturbation.FROM_SOME, perturbation.BLIND}),
    "causal-off-by-one": (CAUSAL, {perturbation.FROM_SOME}),
    "packed-key-of-the-neighbour": (RAGGED, {perturbation.OTHERS}),
    "ds-in-fp16": (CAUSAL, {scaled.VALUES_SCALED, scaled.COTANGENTS_SCALED}),
    "delta-missing": (CAUSAL, {bounded.DK_SUMMED}),
    "tail-keys-unmasked": (TAIL, {bounded.ONES, bounded.DV_SUMMED}),
    "rescale-missed": (GROWING, {bounded.DV_AND_OUT, bounded.KEYS_PERMUTED}),
    "softcap-slope-missing-in-dq": (SOFTCAP, {bounded.DQ_AND_DK}),
}
"""Defect that errors show as well -> case, and the relations that it breaks."""


def examine(kernel_name, case_id, device):
    return examine_with(load(kernel_name, device), AttentionCase.from_id(case_id), tuple(all_checks()))


def test_every_mutant_is_expected_to_be_seen():
    assert sorted((*SEEN_BY, *REFUSED, *PACKED_SEEN_BY, *DROPOUT_SEEN_BY, *ROUNDING_SEEN_BY, *RELATING_SEEN_BY)) == sorted(
        MUTANTS
    )


@pytest.mark.parametrize(
    "case_id",
    [
        CAUSAL,
        TAIL,
        GROWING,
        FALLING,
        WINDOW,
        SOFTCAP,
        ALIBI,
        VALUES,
        BIAS,
        MASK,
        CACHE,
        PAGES,
        PADDED,
        TURNED,
        STILL,
        APART,
        SHARED,
        RAGGED,
        USED,
        ALIGNED,
        DROPPED,
    ],
)
def test_the_healthy_kernel_passes(case_id, device):
    record = examine("triton", case_id, device)
    assert record.verdict is Verdict.PASS, record.reason
    expected = set(all_checks()) - OF_OTHER_GENERATORS - (set() if case_id == DROPPED else OF_DROPOUT)
    assert {result.check for result in record.results} | BY_TURN == expected


@pytest.mark.parametrize("name", SEEN_BY)
def test_a_planted_defect_is_seen(name, device):
    case_id, tensor, checks = SEEN_BY[name]
    record = examine(f"mutant:{name}", case_id, device)
    assert record.verdict is Verdict.FAIL
    assert {result.check for result in record.results if result.verdict is Verdict.FAIL} - {"sharp"} - BY_TURN == checks
    failed = [m for result in record.results for m in result.measurements if m.violations]
    assert tensor in {m.tensor for m in failed}
    assert record.reason.startswith(f"{tensor} (")


@pytest.mark.parametrize("name", DROPOUT_SEEN_BY)
def test_a_defect_of_dropout_is_seen(name, device):
    record = examine(f"mutant:{name}", DROPPED.replace("drop0.3", RATE_OF.get(name, "drop0.3")), device)
    assert record.verdict is Verdict.FAIL
    failed = {result.check for result in record.results if result.verdict is Verdict.FAIL}
    assert failed - {"sharp", "distribution"} - BY_TURN == DROPOUT_SEEN_BY[name]


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_kernel_may_not_do_at_all_is_seen(name, device):
    case_id, words = REFUSED[name]
    record = examine(f"mutant:{name}", case_id, device)
    assert record.verdict is Verdict.FAIL
    assert record.reason.startswith(words)
    judged = [result for result in record.results if result.verdict is not Verdict.UNSUPPORTED]
    assert {result.check for result in judged} >= {"accuracy", "function"}
    assert {result.verdict for result in judged} == {Verdict.FAIL}


@pytest.mark.parametrize("name", PACKED_SEEN_BY)
def test_a_defect_of_packed_sequences_is_seen(name, device):
    """Some of them by what they leave in rows of no sequence, which no budget is asked for."""
    case_id, reason = PACKED_SEEN_BY[name]
    record = examine(f"mutant:{name}", case_id, device)
    assert record.verdict is Verdict.FAIL
    assert {result.check for result in record.results if result.verdict is Verdict.FAIL} >= {"accuracy", "function"}
    assert record.reason.startswith(reason)


@pytest.mark.parametrize("case_id", [ROUNDED, SMALL])
def test_the_healthy_kernel_passes_every_tier(case_id, device):
    record = examine("triton", case_id, device)
    assert record.verdict is Verdict.PASS, record.reason
    assert {result.check for result in record.results if result.verdict is Verdict.PASS} >= {
        "accuracy",
        "sharp",
        "distribution",
    }


@pytest.mark.parametrize("name", ROUNDING_SEEN_BY)
def test_a_defect_of_rounding_is_seen(name, device):
    case_id, checks = ROUNDING_SEEN_BY[name]
    record = examine_with(load(f"mutant:{name}", device), AttentionCase.from_id(case_id), TIERS)
    failed = {result.check for result in record.results if result.verdict is Verdict.FAIL}
    assert failed == checks if device.type == "cpu" else failed


def test_the_sharp_tiers_see_what_the_hard_budget_cannot():
    alone = {name for name, (_, checks) in ROUNDING_SEEN_BY.items() if "accuracy" not in checks}
    assert alone == {"p-truncated", "out-accumulated-in-bf16", "ds-truncated", "lse-off"}


def broken_relations(kernel_name, case_id, device):
    """Names of the relations that do not hold of a kernel, of all that the case can have."""
    examination = Examination(load(kernel_name, device), AttentionCase.from_id(case_id))
    found = [one for claim in RELATED if claim.applies(examination.case) for one in claim.examine(examination)]
    return {one.name for one in found if judge("relations", (one,)).verdict is Verdict.FAIL}


@pytest.mark.parametrize("case_id", sorted({case_id for case_id, _ in (RELATING_SEEN_BY | RELATED_TOO).values()}))
def test_relations_hold_of_the_healthy_kernel(case_id, device):
    assert broken_relations("triton", case_id, device) == set()


@pytest.mark.parametrize("name", RELATING_SEEN_BY)
def test_a_defect_that_errors_do_not_show_is_seen_by_relations(name, device):
    case_id, names = RELATING_SEEN_BY[name]
    others = tuple(set(all_checks()) - BY_TURN)
    record = examine_with(load(f"mutant:{name}", device), AttentionCase.from_id(case_id), others)
    assert record.verdict is Verdict.PASS, record.reason
    assert broken_relations(f"mutant:{name}", case_id, device) == names


@pytest.mark.parametrize("name", RELATED_TOO)
def test_relations_see_defects_without_an_oracle(name, device):
    case_id, names = RELATED_TOO[name]
    assert broken_relations(f"mutant:{name}", case_id, device) >= names
