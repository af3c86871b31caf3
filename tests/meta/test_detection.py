"""The suite sees what it is for: each planted defect fails a case on which the healthy kernel passes."""

from pathlib import Path

import pytest

import flashverify
from flashverify.campaign.worker import examine_with
from flashverify.cases.case import AttentionCase
from flashverify.checks.registry import all_checks
from flashverify.kernels import load
from flashverify.mutants.catalogue import MUTANTS
from flashverify.mutants.trials import EQUIVALENT, ROUNDED, SCHEDULED, SMALL, TRIALS
from flashverify.mutants.verifier import VERIFIER_MUTANTS, examine_verifiers, plant
from flashverify.records.measurement import Verdict

SEEN_BY = {
    "scale-off-by-1-percent": ("lse", {"accuracy", "function"}),
    "running-max-lost": ("out", {"accuracy"}),
    "rescale-missed": ("out", {"accuracy", "function"}),
    "tail-keys-unmasked": ("lse", {"accuracy", "function"}),
    "causal-off-by-one": ("lse", {"accuracy", "function"}),
    "values-cut-to-the-head-size": ("out", {"accuracy", "function"}),
    "window-off-by-one": ("out", {"accuracy", "function"}),
    "window-not-hidden-in-dkdv": ("dk", {"accuracy", "function"}),
    "window-tile-short-in-dkdv": ("dv", {"accuracy", "function"}),
    "softcap-after-mask": ("out", {"accuracy", "function"}),
    "softcap-times-logit": ("lse", {"accuracy", "function"}),
    "softcap-slope-missing-in-dkdv": ("dk", {"accuracy", "function"}),
    "softcap-slope-missing-in-dq": ("dq", {"accuracy", "function"}),
    "alibi-sign": ("dq", {"accuracy", "function"}),
    "alibi-off-by-one": ("lse", {"accuracy", "function"}),
    "alibi-top-left": ("lse", {"accuracy", "function"}),
    "alibi-of-the-key-head": ("dk", {"accuracy", "function"}),
    "bias-scaled": ("lse", {"accuracy", "function"}),
    "bias-gradient-of-one-entry": ("dbias", {"accuracy", "function"}),
    "mask-inverted": ("out", {"accuracy"}),  # in float64 a mask is a bias
    "sink-ignored": ("lse", {"accuracy", "function"}),
    "sink-gradient-of-one-entry": ("dsink", {"accuracy", "function"}),
    "parts-merged-unweighted": ("lse", {"accuracy", "function"}),
    "part-one-block-short": ("lse", {"accuracy", "function"}),
    "lse-of-the-first-part": ("lse", {"accuracy", "function"}),
    "page-table-of-the-first-entry": ("lse", {"accuracy", "function"}),
    "page-offset-one-late": ("out", {"accuracy", "function"}),
    "cache-entry-ignored": ("out", {"accuracy", "function"}),
    "cache-read-beyond-the-length": ("out", {"accuracy", "function"}),
    "new-keys-not-seen": ("lse", {"accuracy", "function"}),
    "decoded-group-transposed": ("lse", {"accuracy", "function"}),
    "decoded-top-left": ("lse", {"accuracy", "function"}),
    "left-pad-ignored": ("out", {"accuracy", "function"}),
    "left-pad-off-by-one": ("lse", {"accuracy", "function"}),
    "left-pad-of-the-first-entry": ("out", {"accuracy", "function"}),
    "left-pad-moves-the-mask": ("lse", {"accuracy", "function"}),
    "queries-not-turned": ("out", {"accuracy", "function"}),
    "queries-turned-from-zero": ("out", {"accuracy", "function"}),
    "queries-all-advance": ("out", {"accuracy", "function"}),
    "queries-turned-by-the-first-entry": ("out", {"accuracy", "function"}),
    "queries-turned-by-short-angles": ("out", {"accuracy", "function"}),
    "delta-missing": ("dq", {"accuracy", "function"}),
    "tf32-for-fp32": ("dv", {"accuracy"}),
    "lse-in-base-2": ("lse", {"accuracy", "function"}),
}
"""Mutant -> the tensor with the largest excess, and the checks that fail."""

REFUSED = {
    "appended-one-place-late": "k_cache: the call leaves other keys",
    "page-table-transposed": "k_cache: the call leaves other keys",
    "rotary-pairs-swapped": "k_cache: an appended key is not the turned one",
    "rotary-backwards": "k_cache: an appended key is not the turned one",
    "rotary-partial-dimension-ignored": "k_cache: an appended key is not the turned one",
    "appended-keys-not-turned": "k_cache: an appended key is not the turned one",
    "appended-keys-turned-one-place-late": "k_cache: an appended key is not the turned one",
}
"""Mutant -> what is said before any number is compared; every check that applies fails then."""

PACKED_SEEN_BY = {
    "packed-key-of-the-neighbour": "out (forward)",
    "packed-queries-of-the-neighbour": "dk (modular)",
    "packed-top-left": "out (forward)",
    "packed-aligned-by-the-stretch": "dq (modular)",
    "packed-used-rows-ignored": "out: got nan in a row of no sequence",
    "packed-gradient-of-unused-keys-left": "dk: got ",
    "packed-last-block-lost": "lse (forward)",
    "packed-slopes-of-the-first": "dk (modular)",
}
"""Defect of packed sequences -> how the reason begins; accuracy and function fail."""

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
    "dropout-moved-in-other-tiles-of-dq": {"schedule"},
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

OF_OTHER_GENERATORS = {"statistics"}
OF_DROPOUT = {"mask", "sign_bit", "effective_rate", "schedule"}
"""Checks that say nothing of a kernel whose mask is the host's, and of a case without dropout."""

TIERS = ("accuracy", "sharp", "distribution")

ROUNDING_SEEN_BY = {
    "p-truncated": {"distribution"},
    "out-accumulated-in-bf16": {"sharp", "distribution"},
    "row-sum-in-bf16": {"accuracy", "sharp", "distribution"},
    "q-prescaled-in-bf16": {"accuracy", "sharp", "distribution"},
    "log2e-typed": {"accuracy", "sharp", "distribution"},
    "exp2-cubic": {"accuracy", "sharp"},
    "ds-truncated": {"distribution"},
    "lse-off": {"distribution"},
    "delta-missing-in-a-row": {"accuracy", "sharp", "distribution"},
    "ds-in-fp16": {"accuracy", "sharp", "distribution"},
    "dq-accumulated-in-bf16": {"accuracy", "sharp", "distribution"},
}
"""Defect of rounding -> the checks that fail in the interpreter; tiles of a GPU are larger, and hide less or more."""


def examine(kernel_name, case_id, device, checks=()):
    return examine_with(load(kernel_name, device), AttentionCase.from_id(case_id), checks or tuple(all_checks()))


def tried(name, device, checks=()):
    """The record of a planted defect on its case."""
    (case_id,) = TRIALS[name]
    return examine(f"mutant:{name}", case_id, device, checks)


def test_every_mutant_is_tried_and_expected_to_be_seen():
    assert sorted((*SEEN_BY, *REFUSED, *PACKED_SEEN_BY, *DROPOUT_SEEN_BY, *ROUNDING_SEEN_BY)) == sorted(MUTANTS)
    assert TRIALS.keys() == MUTANTS.keys()
    assert EQUIVALENT.keys() <= MUTANTS.keys()


@pytest.mark.parametrize("case_id", sorted({case for cases in TRIALS.values() for case in cases} - {ROUNDED, SMALL}))
def test_the_healthy_kernel_passes(case_id, device):
    record = examine("triton", case_id, device)
    assert record.verdict is Verdict.PASS, record.reason
    of_dropout = OF_DROPOUT if "_drop" not in case_id else set() if case_id == SCHEDULED else {"schedule"}
    assert {result.check for result in record.results} == set(all_checks()) - OF_OTHER_GENERATORS - of_dropout


@pytest.mark.parametrize("name", SEEN_BY)
def test_a_planted_defect_is_seen(name, device):
    tensor, checks = SEEN_BY[name]
    record = tried(name, device)
    assert record.verdict is Verdict.FAIL
    assert {result.check for result in record.results if result.verdict is Verdict.FAIL} - {"sharp"} == checks
    failed = [m for result in record.results for m in result.measurements if m.violations]
    assert tensor in {m.tensor for m in failed}
    assert record.reason.startswith(f"{tensor} (")


@pytest.mark.parametrize("name", DROPOUT_SEEN_BY)
def test_a_defect_of_dropout_is_seen(name, device):
    record = tried(name, device)
    assert record.verdict is Verdict.FAIL
    failed = {result.check for result in record.results if result.verdict is Verdict.FAIL}
    assert failed - {"sharp", "distribution"} == DROPOUT_SEEN_BY[name]


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_kernel_may_not_do_at_all_is_seen(name, device):
    record = tried(name, device)
    assert record.verdict is Verdict.FAIL
    assert record.reason.startswith(REFUSED[name])
    judged = [result for result in record.results if result.verdict is not Verdict.UNSUPPORTED]
    assert {result.check for result in judged} >= {"accuracy", "function"}
    assert {result.verdict for result in judged} == {Verdict.FAIL}


@pytest.mark.parametrize("name", PACKED_SEEN_BY)
def test_a_defect_of_packed_sequences_is_seen(name, device):
    """Some of them by what they leave in rows of no sequence, which no budget is asked for."""
    record = tried(name, device)
    assert record.verdict is Verdict.FAIL
    assert {result.check for result in record.results if result.verdict is Verdict.FAIL} >= {"accuracy", "function"}
    assert record.reason.startswith(PACKED_SEEN_BY[name])


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
    record = tried(name, device, TIERS)
    failed = {result.check for result in record.results if result.verdict is Verdict.FAIL}
    assert failed == ROUNDING_SEEN_BY[name] if device.type == "cpu" else failed


def test_the_sharp_tiers_see_what_the_hard_budget_cannot():
    alone = {name for name, checks in ROUNDING_SEEN_BY.items() if "accuracy" not in checks}
    assert alone == {"p-truncated", "out-accumulated-in-bf16", "ds-truncated", "lse-off"}


def test_every_defect_of_the_verifier_can_be_planted(tmp_path):
    home = Path(flashverify.__file__).parent
    for mutant in VERIFIER_MUTANTS:
        copy = plant(mutant, home, tmp_path / mutant.name)
        for edit in mutant.edits:
            assert edit.new in (copy / home.name / edit.file).read_text()


def test_a_verifier_with_a_defect_contradicts_the_sound_one(device):
    """One of them here; `flashverify mutants` runs all."""
    quick = [mutant for mutant in VERIFIER_MUTANTS if mutant.name in ("lse-not-compared", "passes-outweigh-failures")]
    for found in examine_verifiers(quick, device.type, 2):
        assert found.differing, found.name
