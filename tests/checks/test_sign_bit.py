"""The sign-bit check: signs and magnitudes of returned probabilities, and what a comparison with 0 would have lost."""

import pytest
import torch

from flashverify.checks.examination import Examination
from flashverify.checks.registry import all_checks
from flashverify.dropout.signbit import decode, encode
from flashverify.records.measurement import Verdict
from tests.checks import dropping
from tests.checks.dropping import Dropping, predicted
from tests.checks.fakes import FakeKernel
from tests.checks.test_mask import CASE

DTYPES = ("fp16", "bf16", "fp32", "fp64")


def check(kernel, case=CASE):
    return all_checks()["sign_bit"](Examination(kernel, case))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"alibi": "batch"},
        {"bias": "hidden"},
        {"sink": True},
        {"softcap": 15.0},
        {"regime": "huge"},
        {"regime": "repeated-maximum"},
        {"lengths": "ragged", "batch": 5},
        {"dropout": 0.0},
        {"dropout": 1.0},
    ],
    ids=str,
)
def test_a_faithful_kernel_passes_and_what_values_lose_is_counted(dtype, change):
    case = CASE.replace(dtype=dtype, **change)
    kernel = Dropping()
    result = check(kernel, case)
    assert result.verdict is Verdict.PASS, result.reason
    (bits,) = result.bits
    assert (bits.compared, bits.differing) == (case.batch * case.heads_q * case.seqlen_q * case.seqlen_k, 0)
    signed = kernel.signed_probabilities(case, Examination(kernel, case).inputs)
    zeros = int(((signed == 0.0) & ~predicted(case)).sum())
    assert bits.lost_by_value == zeros
    assert zeros > 0 or case.dropout == 0.0
    assert len(result.measurements) == (dtype != "fp64")


@pytest.mark.parametrize(
    "lose",
    [
        torch.abs,
        lambda signed: signed + 0.0,
        lambda signed: -signed,
        lambda signed: torch.where(signed == 0.0, 0.0, signed),
        lambda signed: torch.where(torch.arange(signed.shape[-1]) == 69, signed.abs(), signed),
    ],
    ids=["abs", "plus 0", "minus", "zeros without sign", "last key"],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_lost_sign_is_caught(lose, dtype):
    result = check(Dropping(signed=lose), CASE.replace(dtype=dtype))
    assert result.verdict is Verdict.FAIL
    assert result.bits[0].differing > 0
    assert "probabilities: " in result.reason


@pytest.mark.parametrize("defect", [dropping.constant_seed, dropping.transposed, dropping.one_bit, dropping.no_heads])
def test_a_wrong_mask_is_caught(defect):
    assert check(Dropping(forward=defect)).verdict is Verdict.FAIL


def scaled(factor):
    def change(signed):
        probability, keep = decode(signed)
        return encode(probability * factor, keep)

    return change


@pytest.mark.parametrize("change", [scaled(1.25), scaled(1.01), scaled(0.0)], ids=["rescaled", "a hundredth", "zero"])
@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_a_wrong_magnitude_is_caught_by_the_budget(change, dtype):
    result = check(Dropping(signed=change), CASE.replace(dtype=dtype))
    assert result.verdict is Verdict.FAIL
    assert result.bits[0].differing == 0
    assert result.measurements[0].violations > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda signed: signed[..., :-1], "probabilities: got shape"),
        (lambda signed: signed.float(), "probabilities: got torch.float32, accepted is torch.bfloat16"),
        (lambda signed: signed.tolist(), "probabilities: got list, accepted are tensors"),
    ],
)
def test_another_form_is_a_defect(change, words):
    result = check(Dropping(signed=change))
    assert result.verdict is Verdict.FAIL
    assert words in result.reason


def test_it_does_not_apply_without_dropout_or_probabilities():
    assert check(Dropping(), CASE.replace(dropout=None)) is None
    assert check(Dropping(), CASE.replace(seqlen_q=0)) is None
    assert check(FakeKernel()) is None
    assert check(Dropping(signed=lambda signed: None)) is None
