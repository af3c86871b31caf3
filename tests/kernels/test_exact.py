"""Cases whose results are exactly known, in every dtype: no rounding, so no tolerance."""

from __future__ import annotations

import math

import pytest
import torch
from flashverify_kernels import flash_attn_func
from flashverify_kernels.launch import accumulator_of

from tests.kernels.support import DTYPES, RESULTS, differing, draw, run

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def _integers(*shape: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, shape, generator=generator).to(device, dtype)


def _one_hot(chosen: torch.Tensor, size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    # Logits of 64·64 = 4096 or 0: exp(-4096) is 0 in float64, so P is exactly one-hot.
    return 64 * torch.nn.functional.one_hot(chosen, size).to(device, dtype)[None, None]


@every_dtype
@pytest.mark.parametrize("offset", [None, 0])
def test_copy_attention_is_exact(dtype: torch.dtype, offset: int | None, device: torch.device) -> None:
    """Every key of three tiles, their edges included, is the needle of some query: out is its value, bit for bit."""
    length = 70
    chosen = torch.randperm(length, generator=torch.Generator().manual_seed(3))
    if offset == 0:
        chosen = torch.minimum(chosen, torch.arange(length))
    q = _one_hot(chosen, length, dtype, device)
    k = _one_hot(torch.arange(length), length, dtype, device)
    v, dout = (_integers(1, 1, length, length, dtype=dtype, device=device, seed=seed) for seed in (1, 2))
    results = run(q, k, v, dout, scale=1.0, causal_offset=offset)
    assert torch.equal(results["out"][0, 0], v[0, 0][chosen])
    assert (results["lse"] == 4096.0).all()
    assert torch.equal(results["dv"][0, 0], torch.zeros_like(v[0, 0]).index_add(0, chosen.to(device), dout[0, 0]))
    assert not results["dq"].any()
    assert not results["dk"].any()
    normal = draw((1, 1, 1, length, length, length), dtype, device)[2]
    out = run(q, k, normal, dout, scale=1.0, causal_offset=offset)["out"]
    assert torch.equal(out[0, 0], normal[0, 0][chosen])


@every_dtype
@pytest.mark.parametrize("zero", ["q", "k", "scale"])
def test_equal_logits_give_the_mean(dtype: torch.dtype, zero: str, device: torch.device) -> None:
    q, k, _, dout = draw((1, 2, 1, 5, 64, 20), dtype, device)
    q, k = (torch.zeros_like(q) if zero == "q" else q), (torch.zeros_like(k) if zero == "k" else k)
    v = _integers(1, 1, 64, 20, dtype=dtype, device=device)
    results = run(q, k, v, dout, scale=0.0 if zero == "scale" else 0.5)
    assert torch.equal(results["out"], (v.double().sum(2, keepdim=True) / 64).to(dtype).expand_as(results["out"]))
    # lse = log2(64)·ln 2: the logarithm, the constant ln 2 and the product each round once, by at most half an ulp or one.
    unit = torch.finfo(accumulator_of(dtype)).eps
    assert ((results["lse"].double() - math.log(64)).abs() <= 3 * unit * math.log(64)).all()


@every_dtype
def test_one_key_gives_its_value(dtype: torch.dtype, device: torch.device) -> None:
    """Nk = 1: P is 1 whatever the logit, and dQ and dK are 0 as dO·v - dO·v is."""
    q, dout = (_integers(1, 2, 37, 20, dtype=dtype, device=device, seed=seed) for seed in (0, 1))
    k, v = (_integers(1, 1, 1, 20, dtype=dtype, device=device, seed=seed) for seed in (2, 3))
    results = run(q, k, v, dout, scale=100.0)
    assert torch.equal(results["out"], v.expand_as(results["out"]))
    assert torch.equal(results["dv"], dout.double().sum((1, 2), keepdim=True).to(dtype))
    assert not results["dq"].any()
    assert not results["dk"].any()


@every_dtype
def test_rows_that_see_no_key(dtype: torch.dtype, device: torch.device) -> None:
    q, k, v, dout = draw((1, 1, 1, 50, 17, 8), dtype, device)
    results = run(q, k, v, dout, causal_offset=17 - 50)
    empty = 50 - 17
    for name in ("out", "dq"):
        assert torch.equal(results[name][:, :, :empty], torch.zeros_like(q[:, :, :empty]))
        assert results[name][:, :, empty + 1 :].any(-1).all()  # the row that sees one key has out = v, dq = 0
    assert (results["lse"][:, :, :empty] == -math.inf).all()
    assert results["lse"][:, :, empty:].isfinite().all()
    dout[:, :, :empty] *= -1000.0
    q[:, :, :empty] = 1000.0
    assert not differing(results, run(q, k, v, dout, causal_offset=17 - 50))


@every_dtype
@pytest.mark.parametrize("causal", [False, True])
def test_no_keys_at_all(dtype: torch.dtype, causal: bool, device: torch.device) -> None:
    q, k, v, dout = draw((2, 2, 1, 3, 0, 8), dtype, device)
    results = run(q, k, v, dout, causal_offset=-3 if causal else None)
    assert torch.equal(results["out"], torch.zeros_like(q))
    assert (results["lse"] == -math.inf).all()
    assert torch.equal(results["dq"], torch.zeros_like(q))
    assert results["dk"].shape == results["dv"].shape == (2, 1, 0, 8)


@pytest.mark.parametrize("causal", [False, True])
def test_no_queries_at_all(causal: bool, device: torch.device) -> None:
    inputs = draw((2, 2, 1, 0, 35, 8), torch.float32, device)
    results = run(*inputs, causal_offset=35 if causal else None)
    assert results["out"].shape == (2, 2, 0, 8)
    assert results["lse"].shape == (2, 2, 0)
    assert torch.equal(results["dk"], torch.zeros_like(inputs[1]))
    assert torch.equal(results["dv"], torch.zeros_like(inputs[2]))


@pytest.mark.parametrize(("batch", "heads_q", "seqlen"), [(0, 2, 3), (1, 0, 3), (0, 0, 0)])
def test_empty_tensors(batch: int, heads_q: int, seqlen: int, device: torch.device) -> None:
    inputs = draw((batch, heads_q, 1, seqlen, seqlen, 4), torch.float32, device)
    results = run(*inputs, causal_offset=0)
    assert results["out"].shape == (batch, heads_q, seqlen, 4)
    assert results["lse"].shape == (batch, heads_q, seqlen)
    for name, like in zip(("dq", "dk", "dv"), inputs[:3], strict=True):
        assert torch.equal(results[name], torch.zeros_like(like))


HUGE = {torch.float16: 60000.0, torch.bfloat16: 1e15, torch.float32: 1e15, torch.float64: 1e140}


@every_dtype
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_huge_logits_choose_the_largest(dtype: torch.dtype, sign: float, device: torch.device) -> None:
    """Logits of up to 1e30: rows are one-hot at the key of the largest, wherever it stands; no NaN, no infinity."""
    size = 40
    chosen = torch.randperm(size, generator=torch.Generator().manual_seed(5))
    magnitude = HUGE[dtype]
    q = _one_hot(chosen, size, dtype, device) / 64 * magnitude * sign
    k = _one_hot(torch.arange(size), size, dtype, device) / 64 * magnitude
    v, dout = (_integers(1, 1, size, size, dtype=dtype, device=device, seed=seed) for seed in (1, 2))
    results = run(q, k, v, dout, scale=sign)
    assert torch.equal(results["out"][0, 0], v[0, 0][chosen])
    assert torch.equal(results["dv"][0, 0], torch.zeros_like(v[0, 0]).index_add(0, chosen.to(device), dout[0, 0]))
    assert not results["dq"].any()
    assert not results["dk"].any()
    product = q.abs().max().to(accumulator_of(dtype)) * k.abs().max().to(accumulator_of(dtype))
    assert (results["lse"] == product).all()


@every_dtype
def test_backward_of_huge_inexact_logits_stays_finite(dtype: torch.dtype, device: torch.device) -> None:
    """Backward sums a score in another order than forward: of logits of 1e8 it differs by 32, and exp(32) overflows float16.

    A probability above 1 is never right, so it is cut there: the gradients are no larger than P = 1 everywhere makes them.
    """
    q, k, v, dout = draw((1, 1, 1, 40, 70, 64), dtype, device)
    magnitude = min(HUGE[dtype] / 6.0, 1e15)
    results = run((q * magnitude).to(dtype), (k * magnitude).to(dtype), v, dout)
    assert all(x.isfinite().all() for x in results.values())
    largest = dout.double().abs().sum(2, keepdim=True)
    rounding = q.shape[2] * torch.finfo(dtype).eps  # a sum of Nq terms, each rounded
    assert (results["dv"].double().abs() <= (1.0 + rounding) * largest).all()


@every_dtype
def test_all_logits_hugely_negative(dtype: torch.dtype, device: torch.device) -> None:
    """A finite stand-in for -inf (-1e5, -65504) would drop these rows."""
    q, k, _, dout = draw((1, 1, 1, 5, 64, 16), dtype, device)
    magnitude = 2.0 ** math.floor(math.log2(HUGE[dtype]))  # a power of two: sums of products are exact in any order
    q, k = torch.full_like(q, -magnitude), torch.full_like(k, magnitude)
    v = _integers(1, 1, 64, 16, dtype=dtype, device=device)
    results = run(q, k, v, dout, scale=1.0, causal_offset=59)
    mean = torch.stack([v[0, 0, : 60 + row].double().mean(0) for row in range(5)])
    unit = torch.finfo(dtype).eps
    largest = v.abs().max().double()
    assert ((results["out"][0, 0].double() - mean).abs() <= unit * largest).all()
    assert results["lse"].isfinite().all()


@every_dtype
def test_keys_that_are_not_seen_never_matter(dtype: torch.dtype, device: torch.device) -> None:
    """The mask is perturbed, not compared: what a row does not see changes none of its bits."""
    q, k, v, dout = draw((1, 1, 1, 40, 70, 8), dtype, device)
    before = run(q, k, v, dout, causal_offset=0)
    for row in (0, 31, 32):
        other_k, other_v = k.clone(), v.clone()
        other_k[:, :, row + 1 :] = 100.0
        other_v[:, :, row + 1 :] = -100.0
        after = run(q, other_k, other_v, dout, causal_offset=0)
        for name in ("out", "lse", "dq"):
            assert torch.equal(before[name][:, :, : row + 1], after[name][:, :, : row + 1])
            assert not torch.equal(before[name][:, :, row + 1], after[name][:, :, row + 1])
    for name in ("dk", "dv"):
        assert not before[name][:, :, 40:].any()
        assert before[name][:, :, :40].any(-1).all()


@every_dtype
def test_repeated_calls_give_the_same_bits_and_leave_the_inputs_alone(dtype: torch.dtype, device: torch.device) -> None:
    inputs = draw((1, 2, 1, 33, 35, 20), dtype, device)
    copies = [x.clone() for x in inputs]
    first = run(*inputs, causal_offset=2)
    assert not differing(first, run(*inputs, causal_offset=2))
    assert all(torch.equal(x, copy) for x, copy in zip(inputs, copies, strict=True))
    assert all(results.isfinite().all() for results in first.values())
    assert tuple(first) == RESULTS


@every_dtype
def test_batches_and_heads_do_not_mix(dtype: torch.dtype, device: torch.device) -> None:
    """One batch and one group of heads alone gives the bits that it gives among others."""
    q, k, v, dout = draw((2, 4, 2, 5, 18, 6), dtype, device)
    together = run(q, k, v, dout)
    alone = run(q[1:2, 2:4], k[1:2, 1:2], v[1:2, 1:2], dout[1:2, 2:4])
    for name, x in alone.items():
        heads = slice(1, 2) if name in ("dk", "dv") else slice(2, 4)
        assert torch.equal(together[name][1:2, heads], x)


@every_dtype
def test_dtypes_of_results(dtype: torch.dtype, device: torch.device) -> None:
    q, k, v = (x.transpose(1, 2).requires_grad_() for x in draw((1, 1, 1, 2, 3, 4), dtype, device)[:3])
    out, lse, _ = flash_attn_func(q, k, v, return_attn_probs=True)
    (out.sum() + lse.sum()).backward()
    assert out.dtype == q.grad.dtype == k.grad.dtype == v.grad.dtype == dtype
    assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
