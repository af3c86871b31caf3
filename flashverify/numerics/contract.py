"""The numerical contract: what a kernel states about its own arithmetic, and all that its budget depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from flashverify.numerics.dots import AnyOrder, Dot
from flashverify.numerics.formats import FP64, Format

LN2 = math.log(2.0)
LOG2E = math.log2(math.e)


Exponent = Literal["scaled", "fused", "shifted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """What a kernel states about its arithmetic. Every parameter of the hard budget comes from here.

    Attributes:
        storage: format of q, k, v, dO, out and the gradients.
        accumulator: format of scores, softmax state, sums and accumulators.
        dot: how dot products are summed in the accumulator.
        operand: format that operands of products are rounded to inside the dot (tf32), or None if products are exact.
        probability: format that P is rounded to before P·V and Pᵀ·dO, or None if it stays in the accumulator's.
        score_gradient: format that dS is rounded to before dQ and dK, or None if it stays in the accumulator's.
        score_gradient_of_rounded: whether dS is formed from P after its rounding to `probability`.
        score_gradient_scaled: whether dS is multiplied by the scale before it is rounded, instead of dq and dk.
        output: format that out and the gradients are rounded to, or None if to `storage`.
        exp2_ulps: largest error of the exponential, in ulps of the accumulator's format, from the true value.
        exp2_mean_ulps: mean signed error of the exponential in ulps of the true value, or None if unknown. The hard budget does
            not need it.
        exp2_rms_ulps: root mean square of that error, or None if unknown.
        log2_ulps: largest error of the logarithm, in ulps of the accumulator's format, from the true value.
        log2_absolute: absolute part of the logarithm's error.
        division_ulps: largest error of a division, in ulps.
        operand_truncated: whether the rounding to `operand` may truncate (tf32 read as the upper bits of float32).
        scale_roundings: roundings in the logit multiplier scale·log2(e): 1 if it is formed in float64 and rounded once, 2 if
            the scale is rounded before (or if the kernel is a float64 one).
        exponent: how an exponent is formed from a score s. "scaled": s·c - m, fused or not, with lse in base 2 in the
            backward pass; "fused": the same, known to be one fused operation; "shifted": (s - m)·c, and
            (s·scale - lse)·log2(e) in the backward pass with the product rounded by itself.
        cap_slope: how the derivative of a soft cap cap·tanh(x / cap) is formed. "tanh": 1 - tanh² of the rounded tanh, which
            cancels near the cap; "sech": without cancellation.
        cuts_probability: whether the backward pass cuts the P that it recomputes from lse at 1.
        flushes_subnormals: whether results below the accumulator's smallest normal may become 0.
        block_q: query rows of a tile in the backward pass's walk over queries (dK, dV); the hard budget does not need it.
        block_k: keys of a tile in the forward pass's walk over keys. None says that the row is handled whole: no rescaling.
        block_k_exact: whether the walk has blocks of exactly block_k keys; False says that block_k is the smallest that it
            may have (a closed kernel), and the budget covers every larger block too.
        direction: from which end the forward pass walks over the keys: "left" from the first key on, "right" from the last one.
            Blocks lie on the same grid, which starts at the first key. The hard budget holds for both.
        splits: number of runs of consecutive blocks that are walked independently and merged by their lse; None: it differs
            from row to row. The hard budget holds for any number (docs/numerics.md, lemma 15).
        inferred: how block_k, direction and splits were found, if the kernel does not state them (`checks/inference.py`).
        prescaled: whether q or k is multiplied by the scale and rounded to `storage` before the dot.
        rescale: where the factor that makes up for pairs that dropout drops is multiplied in. "after": the accumulators of out
            and dV are multiplied by it once; "folded": P is, before its rounding to `probability`. dP is, in both.
        group_partials: whether dK and dV of each query head are rounded to `storage` before the sum over the group.
    """

    storage: Format
    accumulator: Format
    dot: Dot
    operand: Format | None = None
    probability: Format | None = None
    score_gradient: Format | None = None
    score_gradient_of_rounded: bool = False
    score_gradient_scaled: bool = False
    output: Format | None = None
    exp2_ulps: float
    exp2_mean_ulps: float | None = None
    exp2_rms_ulps: float | None = None
    log2_ulps: float
    log2_absolute: float
    division_ulps: float
    operand_truncated: bool = False
    scale_roundings: int = 2
    exponent: Exponent = "scaled"
    cap_slope: Literal["tanh", "sech"] = "tanh"
    cuts_probability: bool = False
    flushes_subnormals: bool = False
    block_q: int | None = None
    block_k: int | None = None
    block_k_exact: bool = True
    direction: Literal["left", "right"] = "left"
    splits: int | None = 1
    inferred: str = ""
    prescaled: bool = False
    rescale: Literal["after", "folded"] = "after"
    group_partials: bool = False

    @property
    def runs(self) -> int:
        """The number of splits.

        Raises:
            ValueError: if it differs from row to row.
        """
        if self.splits is None:
            raise ValueError("splits: got None, accepted is a number of runs that is every row's")
        return self.splits

    @property
    def stored(self) -> Format:
        """The format that out and the gradients are rounded to."""
        return self.output or self.storage

    def describe(self) -> dict[str, str]:
        """The contract as words, for reports: one entry a parameter."""
        described = {}
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            described[name] = value.name if isinstance(value, Format) else str(value)
        return described


ORACLE_FLOAT64 = Contract(
    storage=FP64,
    accumulator=FP64,
    dot=AnyOrder(),
    exp2_ulps=2.0,
    log2_ulps=2.0,
    log2_absolute=0.0,
    division_ulps=0.5,
    cap_slope="sech",
)
"""The float64 oracles: whole rows, products in any order, exp and log within 2 ulp, division rounded to nearest."""
