"""exp2, log2 and division against float64: largest, mean and rms error in ulps of the true value."""

from __future__ import annotations

import itertools

import torch

from flashverify.numerics import published
from flashverify.numerics.axioms.arithmetic import Observation
from flashverify.numerics.axioms.finding import (
    REFERENCE_ULPS,
    Errors,
    Finding,
    as_float32,
    bits_of,
    figure,
    float32_patterns,
    is_complete,
)
from flashverify.numerics.axioms.primitives import Primitives
from flashverify.numerics.formats import FP32, FP64

SAMPLE = 2**18
"""Inputs of a range that is not tried as a whole."""

LOWEST_EXPONENT = -150.0
"""exp2 of anything lower is 0 in float32, however it is rounded."""

HIGHEST_EXPONENT = 64.0
"""More than any exponent of a kernel: they are differences from a maximum, 0 or less but for the rounding of the two."""

BINADES = range(-24, 7)
"""Exponents of arguments of exp2 whose result is normal and not 1: below 2^-24 the true value rounds to 1."""


def exp2(primitives: Primitives) -> Finding:
    """Powers of 2 on [-150, 0], every pattern on a GPU, and on [0, 64): errors of normal results, underflow, what 0 gives."""
    negative, positive = Errors(), Errors()
    smallest, tried = float("inf"), 0
    binades = {exponent: Errors() for exponent in BINADES}
    integers = torch.arange(LOWEST_EXPONENT, 1.0, dtype=torch.float32, device=primitives.device)
    first = bits_of(-0.0 if is_complete(primitives) else -(2.0 ** BINADES[0]))
    for x in itertools.chain([integers], float32_patterns(first, bits_of(LOWEST_EXPONENT), SAMPLE, primitives)):
        computed = primitives.exp2(x)
        tried += x.numel()
        smallest = min(smallest, float(torch.where(computed > 0, computed, torch.inf).min()))
        errors, normal = _exp2_errors(x, computed)
        negative.add(errors[normal])
        _by_binade(x, errors, normal, binades)
    for x in float32_patterns(bits_of(0.0), bits_of(HIGHEST_EXPONENT) - 1, SAMPLE, primitives):
        errors, normal = _exp2_errors(x, primitives.exp2(x))
        positive.add(errors[normal])
    moments = Errors()
    for exponent, statistics in binades.items():
        if exponent >= 0:
            moments.merge(statistics)
    zeros = torch.tensor([0.0, -0.0], dtype=torch.float32, device=primitives.device)
    one = bool((primitives.exp2(zeros) == 1.0).all())
    largest = max(negative.largest, positive.largest) + REFERENCE_ULPS
    limit = f"published: {published.EXP2_ULPS} ulp (PTX: 2 from the correctly rounded value)"
    complete = is_complete(primitives)
    below = [statistics for exponent, statistics in binades.items() if exponent < 0 and statistics.count]
    means, roots = [statistics.mean for statistics in below], [statistics.rms for statistics in below]
    observations = (
        _against("exp2 on [-150, 0], largest error", negative.largest, published.EXP2_ULPS, limit, negative.count, complete),
        _against("exp2 on [0, 64), largest error", positive.largest, published.EXP2_ULPS, limit, positive.count, complete),
        Observation(
            "exp2, mean and rms error",
            f"{figure(moments.mean)} and {figure(moments.rms)} ulp",
            "arguments from 1 on in magnitude, normal results; below, by binade from 2^-24 on: "
            f"mean {figure(min(means))} to {figure(max(means))}, rms {figure(min(roots))} to {figure(max(roots))}",
            moments.count,
            complete,
        ),
        Observation("exp2, smallest result but 0", f"{smallest:.9g}", _underflow(smallest), tried, complete),
        Observation("exp2(0) and exp2(-0)", "1" if one else "not 1", "1 exactly", 2, True, one),
    )
    return Finding(
        {
            "exp2_max_ulps": largest,
            "exp2_mean_ulps": moments.mean,
            "exp2_rms_ulps": moments.rms,
            "exp2_flushes_below": smallest,
        },
        observations,
    )


def _exp2_errors(x: torch.Tensor, computed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Errors in ulps, and whether the true value is normal."""
    true = torch.exp2(x.double())
    return (computed.double() - true) / FP32.ulp(true), true >= FP32.smallest_normal


def _by_binade(x: torch.Tensor, errors: torch.Tensor, normal: torch.Tensor, binades: dict[int, Errors]) -> None:
    exponents = torch.frexp(x)[1] - 1
    first, last = int(exponents.min()), int(exponents.max())
    for exponent, statistics in binades.items():
        if first <= exponent <= last:
            statistics.add(errors[normal & (exponents == exponent) & (x != 0)])


def _underflow(smallest: float) -> str:
    if smallest >= FP32.smallest_normal:
        return "results below the smallest normal number, 2^-126, become 0"
    return "gradual underflow" if smallest == FP32.smallest_subnormal else "subnormal results, in part"


def _against(name: str, seen: float, limit: float, text: str, inputs: int, exhaustive: bool) -> Observation:
    return Observation(name, f"{figure(seen)} ulp", text, inputs, exhaustive, seen <= limit)


def log2(primitives: Primitives) -> Finding:
    """log2 of the positive normal numbers, every one on a GPU: in ulps where it is 1 or more, absolute below."""
    above, below, excess, tried = Errors(), Errors(), 0.0, 0
    relative = 2.0 * FP32.unit_roundoff * published.LOG2_ULPS
    for x in float32_patterns(bits_of(FP32.smallest_normal), bits_of(FP32.largest), SAMPLE, primitives):
        true = torch.log2(x.double())
        errors = primitives.log2(x).double() - true
        large = true.abs() >= 1.0
        above.add((errors / FP32.ulp(true))[large])
        below.add(errors[~large])
        allowed = relative * true.abs() + published.LOG2_ABSOLUTE
        excess = max(excess, float((errors.abs() / allowed).nan_to_num(torch.inf).max()))
        tried += x.numel()
    known = f"{published.LOG2_ULPS:g}·2^-23 of the result + {figure(published.LOG2_ABSOLUTE)}"
    limit = f"published: {known}; {figure(excess)} of it is used"
    value = f"{figure(above.largest)} ulp from 1 on, {figure(below.largest)} below"
    moments = f"{figure(above.mean)} and {figure(above.rms)} ulp"
    exact = float(primitives.log2(torch.ones(1, dtype=torch.float32, device=primitives.device)))
    return Finding(
        {"log2_max_ulps": above.largest + REFERENCE_ULPS, "log2_max_absolute": below.largest + FP64.unit_roundoff},
        (
            Observation("log2, largest error", value, limit, tried, is_complete(primitives), excess <= 1.0),
            Observation("log2, mean and rms error", moments, "results from 1 on", above.count, is_complete(primitives)),
            Observation("log2(1)", f"{exact:g}", "", 1, True),
        ),
    )


def division(primitives: Primitives) -> Finding:
    """Quotients of random pairs, of every significand (on a GPU) by chosen divisors, and of sums of exponentials."""
    generator = torch.Generator(primitives.device)
    random = Errors()
    count = 2**24 if is_complete(primitives) else SAMPLE
    for seed in range(4 if is_complete(primitives) else 1):
        generator.manual_seed(seed)
        x, y = (_spread(count, generator) for _ in range(2))
        random.add(_division_errors(primitives, x, y))
    structured = Errors()
    divisors = (3.0, 5.0, 7.0, 10.0, 1.0 + 2.0**-23, 2.0 - 2.0**-23, 1.0 / 3.0, 127.0)
    for divisor in divisors:
        for x in float32_patterns(bits_of(1.0), bits_of(2.0) - 1, SAMPLE // len(divisors), primitives):
            structured.add(_division_errors(primitives, x, torch.full_like(x, divisor)))
    weights = torch.exp2(-8.0 * torch.rand(SAMPLE // 16, 64, generator=generator, device=primitives.device))
    sums, terms = weights.sum(1, keepdim=True).expand(-1, 64).flatten(), weights.cumsum(1).flatten()
    structured.add(_division_errors(primitives, terms, sums.contiguous()))
    limit = f"published: {published.DIVISION_ULPS:g} ulp (PTX, div.full.f32)"
    moments = f"{figure(random.mean)} and {figure(random.rms)} ulp"
    chosen = "division, chosen divisors and sums, largest error"
    bound = published.DIVISION_ULPS
    return Finding(
        {
            "division_max_ulps": max(random.largest, structured.largest) + REFERENCE_ULPS,
            "division_rms_ulps": random.rms,
        },
        (
            _against("division, random pairs, largest error", random.largest, bound, limit, random.count, False),
            _against(chosen, structured.largest, bound, limit, structured.count, False),
            Observation("division, mean and rms error", moments, "random pairs; rms 0.289 if rounded to nearest", random.count),
        ),
    )


def _spread(count: int, generator: torch.Generator) -> torch.Tensor:
    """Random significands and signs, exponents from -60 to 60."""
    fraction, sign, exponent = (
        torch.randint(low, high, (count,), generator=generator, device=generator.device)
        for low, high in ((0, 1 << 23), (0, 2), (127 - 60, 127 + 61))
    )
    return as_float32(sign << 31 | exponent << 23 | fraction)


def _division_errors(primitives: Primitives, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    true = x.double() / y.double()
    return (primitives.divide(x, y).double() - true) / FP32.ulp(true)
