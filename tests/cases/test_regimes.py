"""Regimes: finite, exactly in the dtype, the same everywhere, and within range."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given, settings

from flashverify.cases.case import DTYPES, MASKS, AttentionCase
from flashverify.cases.layouts import LAYOUTS
from flashverify.cases.regimes import REGIMES, draw
from flashverify.cases.strategies import cases
from tests.cases.support import case_of, logits

TORCH = {name: getattr(torch, full) for name, full in DTYPES.items()}
NAMES = ("q", "k", "v", "dout", "dlse")

EDGE_SHAPES = (
    # batch, heads_q, heads_kv, seqlen_q, seqlen_k, head_dim
    (1, 1, 1, 0, 0, 1),
    (0, 2, 1, 3, 3, 4),
    (1, 2, 1, 0, 5, 3),
    (2, 2, 1, 5, 0, 3),
    (1, 1, 1, 1, 1, 1),
    (2, 4, 2, 33, 17, 8),
)

DIGESTS: dict[str, str] = {
    "normal": "fabc9006e35be874",
    "normal-small": "e62565336204760e",
    "large": "0793fcae1723a141",
    "huge": "f44b84c65d62ef17",
    "large-activations": "6ceb266f0807dba6",
    "offset-values": "6e9422add321293a",
    "repeated-maximum": "ed18140f1246e4eb",
    "equal-logits": "a1d028c3c4b333aa",
    "cancelling-values": "ec2639a9dcb36ff1",
    "cancelling-output": "09e0530bd4d51fe6",
    "tiny": "b4e12d62a97c9046",
    "wide-exponents": "4cfb1a151c4f1fc4",
    "integers": "70ab966bbc30adb8",
    "signed-zeros": "fa6218d3c6bca4e9",
    "parallel-gradient": "54bc461a95d77f91",
    "sparse-gradient": "098fd51b5ccaa52d",
    "constant-gradient": "1455f9e5f2a4bcdf",
    "small-gradient": "fe6775052f493232",
    "large-gradient": "8aeff66b6cc38109",
    "one-hot": "79c33b19ce2ec2aa",
    "copy": "5d5a4a0f9da2dd54",
    "sink": "fee6c280edb5b814",
    "needle": "210a95d43f6399e1",
    "identity-values": "93ae1fe138da61f5",
    "key-offset": "63c0d88d7513e10c",
    "all-negative-logits": "af8c8372e422ceef",
    "growing-maximum": "862e26b512f07b99",
    "falling-maximum": "85c14b9747dc1023",
    "zero-queries": "d1dc160ca89cbb4a",
}
"""SHA-256 of the bytes of q, k, v, dout and dlse: a change of generator or regime changes what old ids mean."""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("regime", REGIMES)
def test_finite_and_shaped_at_edge_shapes(regime: str, dtype: str) -> None:
    for batch, heads_q, heads_kv, seqlen_q, seqlen_k, head_dim in EDGE_SHAPES:
        for mask in MASKS:
            for scale in (None, 0.0, -1e300, 5e-324):
                case = AttentionCase(
                    dtype=dtype,
                    batch=batch,
                    heads_q=heads_q,
                    heads_kv=heads_kv,
                    seqlen_q=seqlen_q,
                    seqlen_k=seqlen_k,
                    head_dim=head_dim,
                    mask=mask,
                    regime=regime,
                    scale=scale,
                    lse_grad=True,
                )
                inputs = draw(case)
                assert inputs.q.shape == inputs.dout.shape == (batch, heads_q, seqlen_q, head_dim)
                assert inputs.k.shape == inputs.v.shape == (batch, heads_kv, seqlen_k, head_dim)
                assert inputs.dlse is not None
                assert inputs.dlse.shape == (batch, heads_q, seqlen_q)
                assert inputs.dlse.dtype == (torch.float64 if dtype == "fp64" else torch.float32)
                for name in NAMES:
                    assert getattr(inputs, name).isfinite().all(), (case.id, name)
                for name in NAMES[:4]:
                    assert getattr(inputs, name).dtype == TORCH[dtype]


@settings(deadline=None)
@given(cases(max_elements=2**11))
def test_draws_depend_on_nothing_but_the_case(case: AttentionCase) -> None:
    first = draw(case)
    others = [draw(case)]
    if case.lengths is None:
        others += [draw(case.replace(layout=layout)) for layout in LAYOUTS[:2]]
    for other in others:
        for name in NAMES:
            a, b = getattr(first, name), getattr(other, name)
            assert (a is None) == (b is None) == (not case.lse_grad and name == "dlse")
            assert a is None or torch.equal(a, b)


def digest(regime: str) -> str:
    found = hashlib.sha256()
    for dtype in DTYPES:
        for mask in ("full", "causal"):
            inputs = draw(case_of(regime, dtype=dtype, mask=mask, head_dim=20, seqlen_q=9, seqlen_k=35, seed=3))
            for name in NAMES:
                x = getattr(inputs, name)
                found.update(x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]).numpy().tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize("regime", REGIMES)
def test_digests(regime: str) -> None:
    assert digest(regime) == DIGESTS[regime]


def test_every_regime_says_what_it_is() -> None:
    assert len(REGIMES) >= 16
    assert all(regime.__doc__ for regime in REGIMES.values())


def test_unknown_regime() -> None:
    with pytest.raises(ValueError, match="regime: got 'abnormal', accepted are normal, "):
        draw(case_of("abnormal"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dlse_is_drawn_only_if_asked_for(dtype: str) -> None:
    assert draw(case_of("normal", dtype=dtype, lse_grad=False)).dlse is None


def test_float64_values_use_all_their_bits() -> None:
    q = draw(case_of("normal", dtype="fp64")).q
    assert (q != q.float().double()).float().mean() > 0.99


@pytest.mark.parametrize("regime", REGIMES)
def test_results_stay_within_float16(regime: str) -> None:
    largest = 0.0
    shapes = ((256, 256, 256, "causal", None), (1024, 15, 128, "full", None), (64, 256, 8, "full", 2.0))
    for seqlen_q, seqlen_k, head_dim, mask, scale in shapes:
        case = case_of(
            regime,
            dtype="fp16",
            seqlen_q=seqlen_q,
            seqlen_k=seqlen_k,
            head_dim=head_dim,
            mask=mask,
            scale=scale,
            batch=1,
            heads_q=2,
            heads_kv=1,
        )
        inputs = draw(case).double()
        for x in (inputs.q, inputs.k, inputs.v):
            x.requires_grad_()
        p = torch.softmax(logits(case, inputs), dim=-1)
        v = inputs.v.repeat_interleave(case.group_size, dim=1)
        out = p @ v
        out.backward(inputs.dout)
        dp = inputs.dout @ v.mT
        ds = p * (dp - (p * dp).sum(dim=-1, keepdim=True))
        for x in (out, ds, inputs.q.grad, inputs.k.grad, inputs.v.grad):
            assert x is not None
            assert x.isfinite().all()
            largest = max(largest, x.abs().max().item())
    assert largest < torch.finfo(torch.float16).max / 4
