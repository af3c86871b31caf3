"""Regimes drawn at random have the properties that their docstrings promise."""

from __future__ import annotations

import pytest
import torch

from flashverify.cases.case import DTYPES, MASKS
from flashverify.cases.regimes import draw
from tests.cases.support import case_of, logits

TORCH = {name: getattr(torch, full) for name, full in DTYPES.items()}


def test_standard_deviations() -> None:
    for regime, expected in (
        ("normal", 1),
        ("normal-small", 0.25),
        ("large", 8),
        ("huge", 32),
        ("large-activations", 4),
    ):
        assert draw(case_of(regime, dtype="fp32")).q.std().item() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_tiny_is_subnormal(dtype: str) -> None:
    inputs = draw(case_of("tiny", dtype=dtype)).double()
    smallest = torch.finfo(TORCH[dtype]).smallest_normal
    for x in (inputs.k, inputs.v, inputs.dout):
        subnormal = (x != 0) & (x.abs() < smallest)
        assert subnormal.double().mean() > 0.9


def test_equal_logits_are_equal() -> None:
    case = case_of("equal-logits")
    s = logits(case, draw(case))
    assert (s == s[..., :1]).all()
    assert s.std() > 0.5


def test_repeated_maximum_repeats() -> None:
    case = case_of("repeated-maximum")
    inputs = draw(case)
    s = logits(case, inputs)
    assert ((s == s.amax(dim=-1, keepdim=True)).sum(dim=-1) >= 2).all()
    # Both within a tile and across tiles.
    assert torch.equal(inputs.k[:, :, 0:74:2], inputs.k[:, :, 1:75:2])
    assert torch.equal(inputs.k[:, :, :37], inputs.k[:, :, 38:])
    assert (inputs.v[:, 0] <= -1).all()
    assert (inputs.v[:, 1] >= 1).all()


def test_cancelling_values_cancel() -> None:
    case = case_of("cancelling-values", seqlen_k=74)
    inputs = draw(case).double()
    weights = torch.softmax(logits(case, inputs), dim=-1)
    v = inputs.v.repeat_interleave(2, dim=1)
    assert torch.equal(inputs.k[:, :, 0::2], inputs.k[:, :, 1::2])
    assert (weights @ v.abs()).min() > 20 * (weights @ v).abs().max().clamp(max=1)
    assert (weights @ v).abs().max() < 4


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cancelling_output_cancels_in_the_last_row(dtype: str, mask: str) -> None:
    case = case_of("cancelling-output", dtype=dtype, mask=mask)
    inputs = draw(case).double()
    v = inputs.v.repeat_interleave(2, dim=1)
    weights = torch.softmax(logits(case, inputs), dim=-1)[:, :, -1:]
    # Not 0: the queries of a head lie around the one that values were projected for.
    assert ((weights @ v).abs() / (weights @ v.abs())).max() < 0.05
    plain = draw(case.replace(regime="normal")).double()
    assert (plain.v.mean(dim=2).abs() / plain.v.abs().mean(dim=2)).max() > 0.2


def test_offset_values() -> None:
    v = draw(case_of("offset-values", dtype="fp32")).v
    assert v.mean().item() == pytest.approx(5, abs=0.01)
    assert v.std().item() == pytest.approx(0.1, rel=0.05)


def test_wide_exponents() -> None:
    v = draw(case_of("wide-exponents", dtype="fp32")).v.abs()
    assert v.min() >= 2.0**-8
    assert v.max() <= 2.0**8
    counts = torch.frexp(v).exponent.unique(return_counts=True)[1]
    assert len(counts) == 16
    assert counts.min() > 0.8 * v.numel() / 16


def test_integers() -> None:
    inputs = draw(case_of("integers"))
    for x in (inputs.q, inputs.k, inputs.v, inputs.dout):
        assert x.unique().tolist() == list(range(-4, 5))


def test_signed_zeros_of_both_signs() -> None:
    inputs = draw(case_of("signed-zeros"))
    for x in (inputs.q, inputs.k, inputs.v, inputs.dout):
        zero = x == 0
        assert 0.4 < (zero & torch.signbit(x)).sum() / zero.sum() < 0.6
        assert 0.5 < zero.float().mean() < 0.65
        assert zero.all(dim=-1).any()


def test_parallel_gradient_makes_delta_large() -> None:
    case = case_of("parallel-gradient")
    inputs = draw(case).double()
    v = inputs.v.repeat_interleave(2, dim=1)
    dp = inputs.dout @ v.mT
    delta = (torch.softmax(logits(case, inputs), dim=-1) * dp).sum(dim=-1, keepdim=True)
    assert delta.abs().mean() > 5 * (dp - delta).abs().mean()


def test_sparse_gradient_is_one_row_a_head() -> None:
    rows = set()
    for seed in range(8):
        live = (draw(case_of("sparse-gradient", seed=seed)).dout != 0).any(dim=-1)
        assert (live.sum(dim=-1) == 1).all()
        rows |= set(live.nonzero()[:, 2].tolist())
    assert rows == {69, 0, 15, 16, 31, 32, 63, 64}


def test_gradient_scales() -> None:
    assert (draw(case_of("constant-gradient")).dout == 1).all()
    for dtype, regime, exponent in (
        ("fp16", "small-gradient", -10),
        ("bf16", "small-gradient", -20),
        ("fp16", "large-gradient", 4),
        ("fp32", "large-gradient", 20),
    ):
        std = draw(case_of(regime, dtype=dtype)).dout.double().std().item()
        assert std == pytest.approx(2.0**exponent, rel=0.05)
