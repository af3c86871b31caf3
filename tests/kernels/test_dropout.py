"""Dropout: which pairs are dropped, in every kernel alike and as the host predicts; rates, states, and the sign bit."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from flashverify_kernels import TileConfig, Tiles, flash_attn_func, flash_attn_varlen_func, scaled_dot_product_attention
from flashverify_kernels.backward import attention_backward
from flashverify_kernels.dropout import Dropout, dropped_pairs, threshold_of, unpack_dropout, words_used
from flashverify_kernels.forward import attention_forward
from flashverify_kernels.generator import state_of

from flashverify.dropout.mask import Stream, keep, keep_scalar
from flashverify.dropout.mask import words_used as words_predicted
from tests.kernels.packed_support import Places, draw_packed
from tests.kernels.reference import attention
from tests.kernels.support import DTYPES, differing, draw, run
from tests.kernels.test_api import weights

STREAM = Stream(seed=0xFEDCBA9876543210, offset=4 * (2**34 - 3), rate=0.3)
"""Both words of the seed count, and counters overflow the low word within the first keys."""

FEATURES = {
    "plain": {},
    "causal": {"causal_offset": 5},
    "window": {"causal_offset": 7, "first_offset": -9},
    "soft cap": {"softcap": 1.5},
    "negative scale": {"scale": -0.4},
}


def _state(stream: Stream, device: torch.device) -> torch.Tensor:
    return state_of(stream.seed, stream.offset, device)


@triton.jit
def _mask_kernel(
    state_ptr, out_ptr, head, first_query, first_key, largest, QUERIES: tl.constexpr, KEYS: tl.constexpr, FLIP: tl.constexpr
):
    seed, first_call, _rescale = unpack_dropout(state_ptr, 0, tl.float32)
    dropped = dropped_pairs(seed, first_call, head, first_query, first_key, largest, QUERIES, KEYS, FLIP)
    if FLIP:
        dropped = tl.trans(dropped)
    places = tl.arange(0, QUERIES)[:, None] * KEYS + tl.arange(0, KEYS)[None, :]
    tl.store(out_ptr + places, dropped.to(tl.int8))


@pytest.mark.parametrize("keys_first", [False, True])
@pytest.mark.parametrize(
    ("head", "first_query", "first_key"),
    [(0, 0, 0), (3, 16, 48), (2**31 - 1, 2**31 - 64, 0), (70_001, 2**20, 2**31 - 64), (2**16, 2**30, 2**30)],
)
def test_words_of_far_places(head: int, first_query: int, first_key: int, keys_first: bool, device: torch.device) -> None:
    """Beyond 2^32 pairs, and at the ends of 32 bits, in tiles with either orientation."""
    out = torch.empty((32, 64), dtype=torch.int8, device=device)
    largest = threshold_of(STREAM.rate) - 1
    _mask_kernel[(1,)](_state(STREAM, device), out, head, first_query, first_key, largest, 32, 64, keys_first)
    rows, columns = np.arange(first_query, first_query + 32), np.arange(first_key, first_key + 64)
    expected = keep(STREAM, 2**31, 0, head, rows, columns)
    assert (out.cpu().numpy() == 0).tolist() == expected.tolist()


@pytest.mark.parametrize("name", FEATURES)
def test_float64_kernels_compute_the_definition(name: str, device: torch.device) -> None:
    """With the host's mask; both ways to keep it in the backward pass."""
    shape = (2, 4, 2, 37, 45, 16)
    q, k, v, dout = draw(shape, torch.float64, device)
    weight = weights(STREAM, 4, range(2), shape[3:5], device)
    expected = attention(q, k, v, dout, weight=weight, **{"scale": 0.25, **FEATURES[name]})
    found = run(q, k, v, dout, **{"scale": 0.25, **FEATURES[name]}, dropout_p=STREAM.rate, rng_state=_state(STREAM, device))
    assert {key: expected.worst(key, x) <= 1.0 for key, x in found.items()} == dict.fromkeys(found, True)


def test_with_a_bias_sinks_slopes_and_other_columns(device: torch.device) -> None:
    q, k, v, dout = draw((2, 4, 2, 19, 35, 16), torch.float64, device, value_dim=24)
    generator = torch.Generator().manual_seed(1)
    bias, slopes, sink = (
        torch.randn(size, generator=generator, dtype=torch.float64).to(device) for size in ((1, 4, 1, 35), (2, 4), (4,))
    )
    features = {"bias": bias, "alibi": slopes.float(), "sink": sink, "softcap": 2.0, "causal_offset": 18, "scale": 0.3}
    expected = attention(q, k, v, dout, weight=weights(STREAM, 4, range(2), (19, 35), device), **features)
    found = run(q, k, v, dout, **features, dropout_p=STREAM.rate, rng_state=_state(STREAM, device))
    assert set(found) == {"out", "lse", "dq", "dk", "dv", "dbias", "dsink"}
    assert {key: expected.worst(key, x) <= 1.0 for key, x in found.items()} == dict.fromkeys(found, True)


TILES = [(16, 16, 1, 1), (32, 64, 4, 1), (64, 32, 4, 2), (128, 16, 8, 2)]


def _probes(device: torch.device) -> tuple[torch.Tensor, ...]:
    """q, k, v, dout whose results are a mask's bits: uniform probabilities, and an identity of values and cotangents."""
    queries = keys = columns = 64
    zero = torch.zeros((2, 2, queries, columns), dtype=torch.float32, device=device)
    one = torch.eye(keys, columns, device=device).expand(2, 2, keys, columns)
    return zero, zero, one, one


def test_one_mask_in_every_pass_of_every_tile(device: torch.device) -> None:
    """Read from out, and from dV by cotangents of the identity: both are P, 1/64 or 0, whose rows are told apart by columns."""
    q, k, v, dout = _probes(device)
    predicted = weights(STREAM, 2, range(2), (64, 64), device) != 0.0
    for tile in TILES:
        tiles = Tiles(*[TileConfig(*tile)] * 3)
        found = run(q, k, v, dout, tiles=tiles, dropout_p=STREAM.rate, rng_state=_state(STREAM, device))
        assert torch.equal(found["out"] != 0.0, predicted), tile
        assert torch.equal(found["dv"] != 0.0, predicted.mT), tile


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_ways_to_keep_the_mask_give_the_same_bits(dtype: torch.dtype, device: torch.device) -> None:
    q, k, v, dout = draw((1, 2, 1, 40, 50, 16), dtype, device)
    tile = TileConfig(32, 32, 4, 1)
    found = []
    for separate in (False, True):
        dropout = Dropout(_state(STREAM, device), threshold_of(0.3), separate)
        out, lse = attention_forward(q, k, v, 0.3, 10, None, "ieee", tile, dropout=dropout)
        gradients = attention_backward(dout, None, q, k, v, out, lse, 0.3, 10, None, "ieee", tile, tile, dropout=dropout)
        found.append(dict(zip(("out", "lse", "dq", "dk", "dv"), (out, lse, *gradients), strict=False)))
    assert not differing(*found)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lse_has_the_same_bits_with_and_without(dtype: torch.dtype, device: torch.device) -> None:
    q, k, v, dout = draw((1, 2, 2, 33, 70, 16), dtype, device)
    without = run(q, k, v, dout)
    with_dropout = run(q, k, v, dout, dropout_p=0.5, rng_state=_state(STREAM, device))
    assert differing({"lse": without["lse"]}, {"lse": with_dropout["lse"]}) == []
    assert differing({"out": without["out"]}, {"out": with_dropout["out"]}) == ["out"]


@pytest.mark.parametrize("rate", [0.0, 2.0**-34, 2.0**-33, 2.0**-32, 1.0 - 2.0**-20, 1.0 - 2.0**-32, 1.0 - 2.0**-34, 1.0])
def test_edges_of_the_rate(rate: float, device: torch.device) -> None:
    """Nothing dropped is no dropout, to the bit; everything dropped leaves zeros; in between the definition holds."""
    shape = (1, 2, 1, 20, 40, 16)
    q, k, v, dout = draw(shape, torch.float64, device)
    stream = Stream(STREAM.seed, STREAM.offset, rate)
    found = run(q, k, v, dout, dropout_p=rate, rng_state=_state(stream, device))
    if stream.threshold == 0:
        assert not differing(found, run(q, k, v, dout))
    if stream.threshold == 2**32:
        assert not any(found[name].any() for name in ("out", "dq", "dk", "dv"))
    expected = attention(q, k, v, dout, weight=weights(stream, 2, range(1), shape[3:5], device))
    assert {key: expected.worst(key, x) <= 1.0 for key, x in found.items()} == dict.fromkeys(found, True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_probabilities_carry_their_mask(dtype: torch.dtype, device: torch.device) -> None:
    """In sign bits, of hidden pairs and of those that underflow too: -0 is not 0."""
    q, k, v, _ = (x.transpose(1, 2) for x in draw((2, 4, 2, 37, 45, 16), dtype, device))
    options = {"dropout_p": STREAM.rate, "rng_state": (STREAM.seed, STREAM.offset), "causal": True}
    _, _, probabilities = flash_attn_func(30.0 * q, k, v, return_attn_probs=True, **options)
    kept = weights(STREAM, 4, range(2), (37, 45), device) != 0.0
    assert probabilities.dtype == dtype
    assert torch.equal(torch.signbit(probabilities), ~kept)
    assert bool((probabilities == 0.0).any())
    assert int(((probabilities >= 0.0) != kept).sum()) > 0  # what decoding by value would lose
    scores = (30.0 * q).double().transpose(1, 2) @ k.double().transpose(1, 2).repeat_interleave(2, 1).mT / 4.0
    seen = torch.arange(45, device=device) <= torch.arange(37, device=device)[:, None] + 8
    true = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    sums = probabilities.abs().double().sum(-1)
    assert torch.equal(probabilities.abs().double() > 0.5, true > 0.5) or dtype != torch.float64
    assert not probabilities.requires_grad
    assert bool(((sums - 1.0).abs() <= 45 * torch.finfo(dtype).eps).all())


def test_packed_sequences_have_the_mask_of_dense_ones(device: torch.device) -> None:
    """Bit for bit, with the sequence as batch entry; the probabilities too, which are 0 beyond the lengths."""
    places = Places((5, 0, 37, 20), (45, 7, 33, 20), tail=3)
    x = draw_packed(places, device, torch.float32, heads=(4, 2))
    starts_q, starts_k, *_ = places.stated(device)
    options = {"dropout_p": 0.4, "rng_state": (STREAM.seed, STREAM.offset), "causal": True, "return_attn_probs": True}
    q, k, v = (y.clone().requires_grad_() for y in (x.q, x.k, x.v))
    out, _, probabilities = flash_attn_varlen_func(q, k, v, starts_q, starts_k, 37, 45, **options)
    gradients = torch.autograd.grad(out, (q, k, v), x.dout)
    assert probabilities.shape == (4, 4, 37, 45)
    for sequence, (of_q, of_k) in enumerate(places.slices()):
        rows, keys = of_q.stop - of_q.start, of_k.stop - of_k.start
        if rows == 0:
            continue
        alone = [y[None, part] for y, part in ((x.q, of_q), (x.k, of_k), (x.v, of_k), (x.dout, of_q))]
        before = [torch.zeros_like(y).expand(sequence, *y.shape[1:]) for y in alone]
        q1, k1, v1, dout = (torch.cat(pair) for pair in zip(before, alone, strict=True))
        leaves = [y.requires_grad_() for y in (q1, k1, v1)]
        dense, _, shown = flash_attn_func(*leaves, **options)
        expected = torch.autograd.grad(dense, leaves, dout)
        found = {"out": out[of_q], "dq": gradients[0][of_q], "dk": gradients[1][of_k], "dv": gradients[2][of_k]}
        found["probabilities"] = probabilities[sequence, :, :rows, :keys]
        wanted = dict(zip(found, (dense[-1], *(y[-1] for y in expected), shown[-1]), strict=True))
        assert not differing(found, wanted), sequence
        assert not probabilities[sequence, :, rows:].any()
        assert not probabilities[sequence, :, :, keys:].any()


def test_the_state_comes_from_the_generator_or_from_the_caller(device: torch.device) -> None:
    """A seed repeats, calls differ, two integers are a tensor of them, and nothing is drawn that is not used."""
    q = torch.randn(1, 20, 2, 16, device=device)
    torch.manual_seed(5)
    first, second = flash_attn_func(q, q, q, 0.5), flash_attn_func(q, q, q, 0.5)
    torch.manual_seed(5)
    again = flash_attn_func(q, q, q, 0.5)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(
        scaled_dot_product_attention(q, q, q, dropout_p=0.5), scaled_dot_product_attention(q, q, q, dropout_p=0.5)
    )
    named = flash_attn_func(q, q, q, 0.5, rng_state=(-3, 64))
    for state in ((2**64 - 3, 64), [-3, 64], torch.tensor([-3, 64], device=device)):
        assert torch.equal(flash_attn_func(q, q, q, 0.5, rng_state=state), named)
    before = torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)
    flash_attn_func(q, q, q, 0.0)
    flash_attn_func(q, q, q, 0.5, rng_state=(1, 0))
    assert torch.equal(before, torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device))


@pytest.mark.parametrize("keys", [0, 1, 8, 9, 16, 17, 1000])
def test_calls_in_a_row_share_no_word(keys: int) -> None:
    """The next call's first counter comes behind the last that this one reads, and not by more than the group's end."""
    assert words_used(keys) == words_predicted(keys)
    last = max(((j // 16) * 8 + j % 8 for j in range(keys)), default=-1)
    assert 4 * last + 4 <= words_used(keys) <= 4 * last + 4 + 32
    assert words_used(keys) % 4 == 0


def test_a_larger_rate_drops_more(device: torch.device) -> None:
    q, k, v, dout = _probes(device)
    masks = [run(q, k, v, dout, dropout_p=p, rng_state=_state(STREAM, device))["out"] != 0.0 for p in (0.1, 0.5, 0.9)]
    assert not bool((masks[1] & ~masks[0]).any())
    assert not bool((masks[2] & ~masks[1]).any())


@pytest.mark.gpu
def test_the_generators_offset_advances_by_what_is_used(device: torch.device) -> None:
    """And the mask is that of the offset before, which the host predicts."""
    generator = torch.cuda.default_generators[device.index or 0]
    torch.cuda.manual_seed(77)
    generator.set_offset(4096)
    q, k, v, _dout = _probes(device)
    x = [y.transpose(1, 2) for y in (q, k, v)]
    out = flash_attn_func(*x, 0.25).transpose(1, 2)
    assert generator.get_offset() == 4096 + words_used(64)
    predicted = weights(Stream(generator.initial_seed(), 4096, 0.25), 2, range(2), (64, 64), device) != 0.0
    assert torch.equal(out != 0.0, predicted)


@pytest.mark.gpu
def test_graphs_draw_anew_at_every_replay(device: torch.device) -> None:
    """Forward and backward of one replay have one mask."""
    q, k, v, dout = (x.transpose(1, 2).contiguous() for x in _probes(device))
    leaf = v.clone().requires_grad_()

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        out = flash_attn_func(q, k, leaf, 0.5)
        return out, *torch.autograd.grad(out, leaf, dout)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, dv = step()
    seen = []
    for _ in range(3):
        graph.replay()
        kept = out.transpose(1, 2) != 0.0
        assert torch.equal(dv.transpose(1, 2) != 0.0, kept.mT)
        seen.append(kept.clone())
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_compiled_calls_draw_anew(device: torch.device) -> None:
    """Two calls of one graph, and two runs of it."""
    torch._dynamo.reset()
    q = torch.randn(1, 20, 1, 16, device=device)
    compiled = torch.compile(
        lambda x: (flash_attn_func(x, x, x, 0.5), flash_attn_func(x, x, x, 0.5)), fullgraph=True, backend="aot_eager"
    )
    results = [*compiled(q), *compiled(q)]
    assert all(not torch.equal(a, b) for place, a in enumerate(results) for b in results[:place])


def test_spot_bits_of_the_scalar_form() -> None:
    """The two hosts' forms that these tests stand on agree where they are used."""
    draws = random.Random(3)
    rows = columns = np.arange(40)
    whole = keep(STREAM, 4, 1, 2, rows, columns)
    for _ in range(50):
        i, j = draws.randrange(40), draws.randrange(40)
        assert keep_scalar(STREAM, 4, 1, 2, i, j) == whole[i, j]
