"""Regimes: finite, exactly in the dtype, the same everywhere, and with the properties that their docstrings promise."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from hypothesis import given, settings

from flashverify.cases.case import DTYPES, MASKS, AttentionCase
from flashverify.cases.layouts import LAYOUTS
from flashverify.cases.regimes import REGIMES, draw
from flashverify.cases.semantics import visible_mask
from flashverify.cases.strategies import cases
from flashverify.cases.tensors import Inputs

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


def case_of(regime: str, **changes: object) -> AttentionCase:
    case = AttentionCase(
        dtype="bf16",
        batch=2,
        heads_q=4,
        heads_kv=2,
        seqlen_q=70,
        seqlen_k=75,
        head_dim=64,
        regime=regime,
        lse_grad=True,
    )
    return case.replace(**changes)


def logits(case: AttentionCase, inputs: Inputs) -> torch.Tensor:
    """scale·QKᵀ in float64, -inf where masked: (batch, heads_q, seqlen_q, seqlen_k)."""
    k = inputs.k.double().repeat_interleave(case.group_size, dim=1)
    mask = visible_mask(case, torch.arange(case.seqlen_q), torch.arange(case.seqlen_k))
    return (case.softmax_scale * inputs.q.double() @ k.mT).masked_fill(~mask, -math.inf)


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
    others = [draw(case), *(draw(case.replace(layout=layout)) for layout in LAYOUTS[:2])]
    for other in others:
        for name in NAMES:
            a, b = getattr(first, name), getattr(other, name)
            assert (a is None) == (b is None) == (not case.lse_grad and name == "dlse")
            assert a is None or torch.equal(a, b)


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


def test_needle_is_one_key_a_head_and_visits_last_first_and_edges() -> None:
    keys = set()
    for seed in range(8):
        v = draw(case_of("needle", seed=seed)).v
        assert torch.equal((v != 0).sum(dim=(2, 3)), torch.ones(2, 2, dtype=torch.int64))
        assert v.max() == 1
        keys |= set(v.nonzero()[:, 2].tolist())
    assert keys == {74, 0, 15, 16, 31, 32, 63, 64}


def test_needle_is_visible() -> None:
    # Top-left causal with fewer queries than keys: keys from seqlen_q on are never seen.
    v = draw(case_of("needle", mask="causal-topleft", seqlen_q=20, batch=1, heads_kv=1)).v
    assert v.nonzero()[:, 2].tolist() == [19]


def test_identity_values_is_a_window() -> None:
    v = draw(case_of("identity-values", head_dim=8, heads_kv=1, batch=1)).v[0, 0]
    assert torch.equal(v[-8:], torch.eye(8, dtype=v.dtype))
    assert v.sum() == 8
    short = draw(case_of("identity-values", seqlen_k=5)).v[0, 0]
    assert torch.equal(short, torch.eye(5, 64, dtype=v.dtype))


@pytest.mark.parametrize("scale", [None, -1.0, 2.0, 0.01])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_copy_gap(dtype: str, mask: str, scale: float | None) -> None:
    case = case_of("copy", dtype=dtype, mask=mask, scale=scale)
    inputs = draw(case)
    top = logits(case, inputs).topk(2, dim=-1)
    seen = torch.isfinite(top.values[..., 1])
    assert seen.any()
    assert (top.values[..., 0] - top.values[..., 1])[seen].min() > 150 * math.log(2)
    # Every fourth row at least reads the last key that it sees.
    last = visible_mask(case, torch.arange(70), torch.arange(75)).sum(dim=1) - 1
    assert ((top.indices[..., 0] == last) | (last < 0)).double().mean() > 0.25


def test_copy_with_too_few_codes_reuses_values() -> None:
    case = case_of("copy", head_dim=3)
    inputs = draw(case)
    weights = torch.softmax(logits(case, inputs), dim=-1)
    out = weights @ inputs.v.double().repeat_interleave(2, dim=1)
    chosen = weights.argmax(dim=-1)[..., None].expand(-1, -1, -1, 3)
    assert torch.allclose(out, inputs.v.double().repeat_interleave(2, dim=1).gather(2, chosen), rtol=1e-12, atol=0)


def test_one_hot_weights() -> None:
    case = case_of("one-hot")
    weights = torch.softmax(logits(case, draw(case)), dim=-1)
    assert weights.amax(dim=-1).min() > 1 - 2.0**-20


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


def test_sink_takes_the_weight_and_gives_nothing() -> None:
    case = case_of("sink")
    inputs = draw(case)
    weights = torch.softmax(logits(case, inputs), dim=-1)
    assert weights[..., 0].min() > 0.9
    assert (weights[..., 0] < 1).all()
    assert (inputs.v[:, :, 0] == 0).all()


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


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("scale", [None, -1.0, 0.01])
def test_all_negative_logits(scale: float | None, mask: str) -> None:
    for dtype in DTYPES:
        case = case_of("all-negative-logits", dtype=dtype, scale=scale, mask=mask)
        s = logits(case, draw(case))
        assert s.max() < -1.0e5
        spread = s.amax(dim=-1) - torch.where(s.isfinite(), s, math.inf).amin(dim=-1)
        assert spread.max() > 0.1


def test_key_offset_shifts_rows() -> None:
    s = logits(case := case_of("key-offset"), draw(case))
    assert s.mean(dim=-1).abs().max() > 100
    assert s.std(dim=-1).max() < 3


@pytest.mark.parametrize("seqlen_k", [75, 1024])
@pytest.mark.parametrize("dtype", DTYPES)
def test_growing_maximum_grows_from_block_to_block(dtype: str, seqlen_k: int) -> None:
    case = case_of("growing-maximum", dtype=dtype, seqlen_k=seqlen_k)
    s = logits(case, draw(case))
    maxima = torch.stack([block.amax(dim=-1) for block in s.split(16, dim=-1)], dim=-1)
    assert (maxima.diff(dim=-1) > 0).all()
    # Earlier blocks keep a weight that the dtype resolves, in rows whose logits grow least.
    weights = torch.softmax(s, dim=-1)
    assert weights[..., : seqlen_k // 2].sum(dim=-1).max() > 1e-4


@pytest.mark.parametrize("scale", [None, -1.0])
def test_falling_maximum_falls(scale: float | None) -> None:
    case = case_of("falling-maximum", scale=scale, head_dim=4)
    s = logits(case, draw(case))
    drop = s[..., :16].amax(dim=-1) - s[..., 16:].amax(dim=-1)
    assert drop[:, :, 1::2].min() > 100
    assert drop[:, :, 0::2].min() > 5
    assert drop[:, :, 0::2].max() < 60


def test_zero_queries() -> None:
    inputs = draw(case_of("zero-queries"))
    assert (inputs.q == 0).all()
    assert torch.equal(inputs.v, inputs.v.round())


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
