"""A kernel with a defect leaves the hard budget, in a regime where the defect matters: the budget is not vacuous."""

from __future__ import annotations

import pytest

from flashverify.cases.case import AttentionCase
from tests.numerics.contracts import contract_of, ratios
from tests.numerics.inputs import make
from tests.numerics.simulator import Options, simulate, with_defect

PLAIN = AttentionCase(dtype="bf16", seqlen_q=12, seqlen_k=75, head_dim=32)
DROPPING = PLAIN.replace(dropout=0.2, heads_q=2, seqlen_q=20)
CAUSAL = PLAIN.replace(mask="causal", seqlen_q=40)

DEFECTS = {
    "scale off by 1 %": (PLAIN, "large", {"scale_factor": 1.01}, "lse"),
    "scale off by 1 %, dq": (PLAIN.replace(dtype="fp32"), "normal", {"scale_factor": 1.01}, "dq end-to-end"),
    "running maximum lost": (PLAIN, "normal", {"lose_maximum": True}, "out"),
    "accumulator not rescaled": (PLAIN, "normal", {"no_rescale": True}, "out"),
    "tail keys not masked": (PLAIN, "value-offset", {"tail_unmasked": True}, "out"),
    "causal mask off by one": (CAUSAL, "normal", {"causal_shift": 1}, "out"),
    "causal mask short by one": (CAUSAL, "normal", {"causal_shift": -1}, "dv end-to-end"),
    "delta missing": (PLAIN, "normal", {"without_delta": True}, "dq modular"),
    "delta missing, dk": (PLAIN, "normal", {"without_delta": True}, "dk modular"),
    "P with 4 bits": (PLAIN, "identity", {"round_p_bits": 4}, "out"),
    "P with 4 bits, dv": (PLAIN, "normal", {"round_p_bits": 4}, "dv modular"),
    "P truncated to bf16 in fp16": (PLAIN.replace(dtype="fp16"), "identity", {"probability": "bf16"}, "out"),
    "lse in base 2": (PLAIN, "normal", {"lse_base2": True}, "lse"),
    "lse in base 2, dv modular": (PLAIN, "normal", {"lse_base2": True}, "dv end-to-end"),
    "tf32 for fp32": (PLAIN.replace(dtype="fp32"), "normal", {"dot": "tf32"}, "out"),
    "tf32 for fp32, dq": (PLAIN.replace(dtype="fp32"), "normal", {"dot": "tf32"}, "dq modular"),
    "tf32 for fp32, dk": (PLAIN.replace(dtype="fp32"), "normal", {"dot": "tf32"}, "dk modular"),
    "tf32 for fp32, dv": (PLAIN.replace(dtype="fp32"), "normal", {"dot": "tf32"}, "dv modular"),
    "tf32 for fp32, lse": (PLAIN.replace(dtype="fp32"), "normal", {"dot": "tf32"}, "lse"),
    "float32 P in float64": (PLAIN.replace(dtype="fp64"), "normal", {"probability": "fp32"}, "out"),
    "key dropped": (PLAIN, "needle", {"dropped_key": 74}, "out"),
    "key dropped, lse": (PLAIN, "normal", {"dropped_key": 3}, "lse"),
    "slope of the soft cap forgotten, dq": (PLAIN.replace(softcap=2.0), "normal", {"cap_slope": "none"}, "dq modular"),
    "slope of the soft cap forgotten, dk": (PLAIN.replace(softcap=2.0), "normal", {"cap_slope": "none"}, "dk modular"),
    "dropout's factor forgotten in out": (DROPPING, "normal", {"unscaled": "out"}, "out"),
    "dropout's factor forgotten in dv": (DROPPING, "normal", {"unscaled": "dv"}, "dv modular"),
    "dropout's factor forgotten in dP": (DROPPING, "normal", {"unscaled": "dp"}, "dq modular"),
    "dropout's factor in bf16, float32": (DROPPING.replace(dtype="fp32", dropout=0.1), "normal", {"factor": "bf16"}, "out"),
    "dropout's factor in bf16, float32, dk": (
        DROPPING.replace(dtype="fp32", dropout=0.1),
        "normal",
        {"factor": "bf16"},
        "dk modular",
    ),
    "dropout's factor in float32, float64": (
        DROPPING.replace(dtype="fp64", dropout=0.1),
        "normal",
        {"factor": "fp32"},
        "dv modular",
    ),
    "dropped weights left out of the row sum": (DROPPING, "normal", {"sum_of_kept": True}, "out"),
    "dropped weights left out of lse": (DROPPING, "normal", {"sum_of_kept": True}, "lse"),
    "dropped pairs without delta, dq": (DROPPING, "normal", {"dropped_is_zero": True}, "dq modular"),
    "dropped pairs without delta, dk": (DROPPING, "normal", {"dropped_is_zero": True}, "dk modular"),
    "another head's mask in out": (DROPPING, "normal", {"other_mask": "out"}, "out"),
    "another head's mask in dv": (DROPPING, "normal", {"other_mask": "dv"}, "dv modular"),
    "another head's mask in dP": (DROPPING, "normal", {"other_mask": "dp"}, "dk end-to-end"),
    "k scaled and rounded before": (PLAIN, "large", {"prescale": True}, "lse"),
}


def honest(case: AttentionCase) -> Options:
    return Options(dot="any-order" if case.dtype in {"fp32", "fp64"} else "tensor-core", block_k=16)


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_leaves_the_budget(name: str) -> None:
    case, kind, defect, tensor = DEFECTS[name]
    options = honest(case)
    arrays = make(case, kind)
    contract = contract_of(case.dtype, options)
    assert ratios(case, arrays, simulate(case, arrays, options), contract)[tensor] <= 1.0
    assert ratios(case, arrays, simulate(case, arrays, with_defect(options, **defect)), contract)[tensor] > 1.0
