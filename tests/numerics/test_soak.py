"""A correct kernel never leaves the hard budget: simulated kernels over dtypes, shapes, input kinds and both modes."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pytest

from flashverify.cases.case import AttentionCase
from tests.numerics.contracts import contract_of, ratios
from tests.numerics.inputs import KINDS, make
from tests.numerics.simulator import Options, simulate

SHAPES = ((17, 33, 32), (8, 70, 64), (33, 65, 16), (5, 1, 16), (24, 16, 40))
DOTS = {
    "fp16": ("tensor-core", "any-order"),
    "bf16": ("tensor-core", "any-order"),
    "fp32": ("any-order", "tf32", "tf32-truncated", "bf16x6", "tf32x3"),
    "fp64": ("any-order",),
}


def configurations(dtype: str, kind: str):
    """Four configurations of a dtype and input kind, drawn so that all shapes and features meet all kinds somewhere."""
    for number, dot in enumerate(itertools.islice(itertools.cycle(DOTS[dtype]), 4)):
        random = np.random.default_rng([KINDS.index(kind), list(DOTS).index(dtype), number])
        seqlen_q, seqlen_k, head_dim = SHAPES[random.integers(len(SHAPES))]
        heads_kv, group = ((1, 1), (1, 3), (2, 2))[random.integers(3)]
        case = AttentionCase(
            dtype=dtype,
            heads_q=heads_kv * group,
            heads_kv=heads_kv,
            seqlen_q=seqlen_q,
            seqlen_k=seqlen_k,
            head_dim=head_dim,
            mask=("full", "causal")[random.integers(2)],
            scale=(None, None, 0.5, -0.25)[random.integers(4)],
            lse_grad=bool(random.integers(2)),
            seed=int(random.integers(1 << 30)),
        )
        exponent = ("scaled", "fused", "shifted")[random.integers(3)]
        options = Options(
            dot=dot,
            block_k=(16, 32, None)[random.integers(3)],
            exponent=exponent,
            noise=int(random.integers(1 << 30)),
            cut=exponent == "shifted" or bool(random.integers(2)),
            prescale=exponent != "shifted" and bool(random.integers(5) == 0),
            chained=bool(random.integers(2)),
        )
        yield case, options


CAPS = (None, 0.25, 2.0, 30.0)
"""Soft caps from one that all logits of the larger kinds reach to one that few of them feel."""


def capped(case: AttentionCase, options: Options, softcap: float, turn: int) -> tuple[AttentionCase, Options]:
    """The same with a soft cap, whose derivative is formed in one way and the other."""
    slope = ("sech", "tanh")[turn % 2]
    return case.replace(softcap=softcap), dataclasses.replace(options, prescale=False, cap_slope=slope)


RATES = (0.1, 0.17, 0.5, 0.9, 0.0, 1.0, 2.0**-32, 0.999, 0.2)
"""Rates of dropout: as models have them, and those at which nothing, all, or nearly all is dropped."""


def dropping(case: AttentionCase, options: Options, turn: int) -> tuple[AttentionCase, Options]:
    """The same with dropout, whose factor is multiplied in in every way that there is."""
    change = {
        "rescale": ("after", "after", "after", "folded")[turn % 4],
        "rescaled_out": ("quotient", "product", "factor")[(turn + turn // len(RATES)) % 3],
        "fused_difference": turn % 2 == 0,
    }
    return case.replace(dropout=RATES[turn % len(RATES)]), dataclasses.replace(options, **change)


@pytest.mark.parametrize("softcap", CAPS)
@pytest.mark.parametrize("dtype", DOTS)
def test_a_correct_kernel_stays_within_its_budget(
    dtype: str, softcap: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    def changed(case: AttentionCase, options: Options, turn: int) -> tuple[AttentionCase, Options]:
        return (case, options) if softcap is None else capped(case, options, softcap, turn)

    assert outside(dtype, changed, capsys) == {}


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("dtype", DOTS)
def test_a_correct_kernel_that_drops_pairs_stays_within_its_budget(
    dtype: str, softcap: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    counter = itertools.count()

    def changed(case: AttentionCase, options: Options, turn: int) -> tuple[AttentionCase, Options]:
        case, options = (case, options) if softcap is None else capped(case, options, softcap, turn)
        return dropping(case, options, next(counter))

    assert outside(dtype, changed, capsys) == {}


def outside(
    dtype: str,
    changed: Callable[[AttentionCase, Options, int], tuple[AttentionCase, Options]],
    capsys: pytest.CaptureFixture[str],
) -> dict[str, tuple[float, str]]:
    """Which tensors leave their budgets, how far and where, over all kinds of inputs, four configurations each."""
    largest: dict[str, tuple[float, str]] = defaultdict(lambda: (0.0, ""))
    for kind in KINDS:
        for turn, configuration in enumerate(configurations(dtype, kind)):
            case, options = changed(*configuration, turn)
            arrays = make(case, kind)
            found = ratios(case, arrays, simulate(case, arrays, options), contract_of(dtype, options))
            for tensor, ratio in found.items():
                largest[tensor] = max(largest[tensor], (ratio, f"{kind} {case.id} {options}"))
    with capsys.disabled():
        print("\n" + "\n".join(f"{dtype} {tensor:14s} {ratio:.3f} {where[:60]}" for tensor, (ratio, where) in largest.items()))
    return {tensor: found for tensor, found in largest.items() if not found[0] <= 1.0}
