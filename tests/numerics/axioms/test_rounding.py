"""Exact roundings against other arithmetic: torch's casts, gmpy2's fused operations, and hand-made ties."""

import gmpy2
import pytest
import torch

from flashverify.numerics.axioms.rounding import exponent_of, fused_multiply_add, power_of_two, round_to, truncate_to_fp32
from flashverify.numerics.formats import BF16, FP16, FP32, TF32, TORCH_DTYPES


def patterns(step):
    bits = torch.arange(-(2**31), 2**31, step, dtype=torch.int64).to(torch.int32)
    x = bits.view(torch.float32)
    return x[~x.isnan()]


@pytest.mark.parametrize("target", [FP16, BF16], ids=lambda target: target.name)
def test_to_nearest_even_is_what_a_cast_does(target):
    x = patterns(step=4093)
    assert torch.equal(round_to(x.double(), target, "nearest even"), x.to(TORCH_DTYPES[target.name]).double())


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("nearest even", [1.0, 1.0 + 2.0**-9, -1.0, 1.0 + 2.0**-10]),
        ("nearest away", [1.0 + 2.0**-10, 1.0 + 2.0**-9, -1.0 - 2.0**-10, 1.0 + 2.0**-10]),
        ("truncated", [1.0, 1.0 + 2.0**-10, -1.0, 1.0]),
    ],
)
def test_ties_and_what_lies_above_them(mode, expected):
    tie = 2.0**-11
    x = torch.tensor([1.0 + tie, 1.0 + 3 * tie, -1.0 - tie, 1.0 + tie + 2.0**-23], dtype=torch.float64)
    assert round_to(x, TF32, mode).tolist() == expected


def test_what_is_too_large_too_small_or_no_number():
    x = torch.tensor([65520.0, 65519.0, -65520.0, 2.0**-25, 1.5 * 2.0**-25, torch.inf, torch.nan], dtype=torch.float64)
    nearest = round_to(x, FP16, "nearest even").tolist()
    assert nearest[:6] == [torch.inf, 65504.0, -torch.inf, 0.0, 2.0**-24, torch.inf]
    assert round_to(x, FP16, "truncated").tolist()[:6] == [65504.0, 65504.0, -65504.0, 0.0, 0.0, torch.inf]
    assert nearest[6] != nearest[6]


def test_powers_of_two_and_exponents_are_exact():
    exponents = torch.arange(-1022, 1024)
    assert power_of_two(exponents).tolist() == [2.0**e for e in exponents.tolist()]
    x = torch.tensor([1.0, -1.5, 2.0**-149, 0.0, 2.0 - 2.0**-52], dtype=torch.float64)
    assert exponent_of(x, -126).tolist() == [0, 0, -126, -126, 0]


def test_truncation_to_float32():
    x = torch.tensor([1.0 + 2.0**-24 + 2.0**-40, -1.0 - 2.0**-23 + 2.0**-50, 2.0**-150, 3.0], dtype=torch.float64)
    assert truncate_to_fp32(x).tolist() == [1.0, -1.0, 0.0, 3.0]


def test_a_fused_operation_rounds_once():
    """Rounding the sum to float64 first gets ties wrong: 2^-12·2^-12 pulls 1 + 2^-24 off its tie only beyond float64."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4000, generator=generator) for _ in range(2))
    noise = torch.randn(4000, generator=generator)
    c = torch.where(noise > 0, -a * b * (1.0 + noise), noise * 2.0**20)
    traps = torch.tensor([[1.0 + 2.0**-23, 1.0 + 2.0**-23, 2.0**30], [2.0**-40, 2.0**-40, 1.0 + 2.0**-23], [1.0, 1.0, -1.0]])
    near = [[2.0**-12 + 2.0**-35, 2.0**-12, 1.0], [2.0**-12 - 2.0**-36, 2.0**-12, 1.0], [-(2.0**-75), 2.0**-75, 1e-45]]
    rows = torch.cat([torch.stack([a, b, c], 1), traps, torch.tensor(near)])
    with gmpy2.context(gmpy2.ieee(32)):
        exact = [float(gmpy2.fma(*(gmpy2.mpfr(value) for value in row))) for row in rows.tolist()]
    assert fused_multiply_add(*rows.T).tolist() == exact
    assert FP32.precision == 24
