"""dS as other kernels form it: from a rounded P, or scaled before it is rounded. Each form has a budget of its own."""

from dataclasses import replace

import pytest
import torch

from flashverify.adapters.contracts import flash_attention
from flashverify.cases import regimes
from flashverify.cases.case import AttentionCase
from flashverify.numerics.hard import backward_budget
from flashverify.numerics.sharp import backward_spread
from flashverify.oracles import tiled

CASE = AttentionCase(dtype="fp16", seqlen_q=64, seqlen_k=64, head_dim=64, mask="causal", regime="large")
STATED = flash_attention("fp16", torch.device("cpu"), block_q=None, block_k=64)


def dk_of_a_kernel(inputs, out, lse, *, rounded=False, scaled=False):
    """dK in float64 but for the roundings of P and dS to float16 (errors of other steps are far smaller)."""
    q, k, v, dout = (x.double()[0, 0] for x in (inputs.q, inputs.k, inputs.v, inputs.dout))
    scale = CASE.softmax_scale
    p = torch.exp((scale * q @ k.T - lse[0, 0][:, None]).masked_fill(torch.ones(64, 64).triu(1).bool(), -torch.inf))
    p = p.half().double() if rounded else p
    ds = p * (dout @ v.T - (dout * out[0, 0]).sum(-1, keepdim=True))
    ds = (scale * ds).half().double() if scaled else scale * ds.half().double()
    return (ds.T @ q)[None, None]


@pytest.mark.parametrize("form", [{}, {"rounded": True}, {"scaled": True}, {"rounded": True, "scaled": True}], ids=str)
def test_a_form_stays_within_its_own_budget(form):
    inputs = regimes.draw(CASE)
    out, lse = tiled.forward(CASE, inputs)
    truth = tiled.backward(CASE, inputs, out, lse)[1]
    error = (dk_of_a_kernel(inputs, out, lse, **form) - truth).abs()
    contract = replace(
        STATED, score_gradient_of_rounded=form.get("rounded", False), score_gradient_scaled=form.get("scaled", False)
    )
    hard = backward_budget(CASE, inputs, out, lse, contract, None)[1]
    deviation = backward_spread(CASE, inputs, out, lse, contract, None)[1].deviation
    assert bool((error <= hard).all())
    ratio = float((error / deviation).square().mean().sqrt())
    assert 0.9 < ratio < 1.1  # a sampled variance of 4096 scores that cluster in 64 rows: one in ten is three standard errors


def test_scaling_before_the_rounding_loses_more_where_ds_is_subnormal():
    inputs = regimes.draw(CASE)
    out, lse = tiled.forward(CASE, inputs)
    truth = tiled.backward(CASE, inputs, out, lse)[1]
    error = (dk_of_a_kernel(inputs, out, lse, scaled=True) - truth).abs()
    assert bool((error > backward_budget(CASE, inputs, out, lse, STATED, None)[1]).any())
