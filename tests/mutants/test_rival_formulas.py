"""The formulas of other projects' references are attention, in the precision that they are asked for."""

import pytest
import torch

from flashverify.cases.case import AttentionCase
from flashverify.cases.regimes import draw
from flashverify.mutants.rival_formulas import mixed, plain, rounded
from flashverify.oracles import tiled

ROUNDOFF = 16 * 2.0**-52
SMALL = {"dtype": "fp64", "batch": 3, "heads_q": 4, "heads_kv": 2, "seqlen_q": 9, "seqlen_k": 13, "head_dim": 5}
FEATURES = [
    {},
    {"mask": "causal", "seqlen_q": 15},
    {"mask": "causal-topleft"},
    {"window_left": 3, "window_right": 2},
    {"softcap": 0.7},
    {"alibi": "batch", "mask": "causal"},
    *({"bias": bias} for bias in ("full", "heads", "batch", "hidden", "mask")),
    {"bias": "hidden", "sink": True, "lse_grad": True},
    {"sink": True, "mask": "causal", "seqlen_q": 15, "lse_grad": True},
    {"dropout": 0.3, "bias": "full"},
    {"dropout": 1.0},
    {"lengths": "ragged", "mask": "causal", "lse_grad": True},
    {"head_dim_v": 7, "scale": -0.3},
]
CASE = AttentionCase(dtype="bf16", heads_q=2, seqlen_q=128, seqlen_k=128, head_dim=64)


@pytest.mark.parametrize("feature", FEATURES, ids=str)
def test_formulas_in_float64_are_the_oracles(feature):
    case = AttentionCase(**(SMALL | feature))
    inputs = draw(case)
    truth = dict(tiled.attention(case, inputs).items())
    for found in (
        plain(case, inputs, torch.float64),
        plain(case, inputs, torch.float64, softmax=torch.float64, scaled_keys=True),
        mixed(case, inputs),
        mixed(case, inputs, truth["out"], rounded_heads=True),
    ):
        named = dict(found.items())
        assert named.keys() == truth.keys()
        for name, x in truth.items():
            torch.testing.assert_close(named[name], x, atol=ROUNDOFF * max(1.0, x[x.isfinite()].abs().max().item()), rtol=0)


def test_the_plain_formula_is_in_the_dtype_that_it_is_asked_for():
    inputs = draw(CASE)
    low, high = plain(CASE, inputs, torch.bfloat16), plain(CASE, inputs, torch.float32)
    softer = plain(CASE, inputs, torch.bfloat16, softmax=torch.float32)
    assert {x.dtype for name, x in low.items() if name != "lse"} == {torch.bfloat16}
    assert high.dq.dtype == torch.float32
    errors = [(x.out.float() - high.out).abs().mean() for x in (low, softer, rounded(high, torch.bfloat16))]
    assert errors == sorted(errors, reverse=True)


def test_no_formula_knows_a_cache():
    case = AttentionCase(dtype="bf16", seqlen_q=1, seqlen_k=9, head_dim=16, cache="paged")
    with pytest.raises(ValueError, match="cache"):
        plain(case, draw(case), torch.float32)
