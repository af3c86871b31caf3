"""Decoding with a cache: the function and its arguments, splits, sequences of any length, what is never read."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from flashverify_kernels import decode_tiles, flash_attn_with_kvcache
from flashverify_kernels.decode_tiles import decode_tile, number_of_splits
from flashverify_kernels.ops_cache import cached_attention

from tests.kernels import cache_reference
from tests.kernels.cache_support import DTYPES, Call, Inputs, bits

CALLS = range(32)

SIGNATURE = {
    "q": inspect.Parameter.empty,
    "k_cache": inspect.Parameter.empty,
    "v_cache": inspect.Parameter.empty,
    "k": None,
    "v": None,
    "rotary_cos": None,
    "rotary_sin": None,
    "cache_seqlens": None,
    "cache_batch_idx": None,
    "cache_leftpad": None,
    "block_table": None,
    "softmax_scale": None,
    "causal": False,
    "window_size": (-1, -1),
    "softcap": 0.0,
    "rotary_interleaved": True,
    "alibi_slopes": None,
    "num_splits": 0,
    "return_softmax_lse": False,
}
"""Names in order, and defaults (flash-attn 2.8: flash_attn_interface.py)."""


def test_names_order_and_defaults() -> None:
    parameters = inspect.signature(flash_attn_with_kvcache).parameters
    positional = {name: p.default for name, p in parameters.items() if p.kind is not inspect.Parameter.KEYWORD_ONLY}
    assert list(positional.items()) == list(SIGNATURE.items())
    assert set(parameters) - set(positional) == {"input_precision"}


@pytest.mark.parametrize("number", CALLS)
def test_float64_is_the_definition(number: int, device: torch.device) -> None:
    Call(number, torch.float64, device).check()


@pytest.mark.parametrize("number", range(32, 40))
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_other_formats_are_off_by_their_rounding(number: int, dtype: torch.dtype, device: torch.device) -> None:
    Call(number, dtype, device).check()


@pytest.mark.gpu
@pytest.mark.parametrize("number", range(100, 160))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiled_kernels_are_the_definition(number: int, dtype: torch.dtype, device: torch.device) -> None:
    Call(number, dtype, device).check()


@pytest.mark.gpu
@pytest.mark.parametrize("page_size", [0, 16, 256])
@pytest.mark.parametrize("queries", [1, 9])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiled_kernels_at_the_sizes_of_models(
    dtype: torch.dtype, head_dim: int, queries: int, page_size: int, device: torch.device
) -> None:
    inputs = Inputs(
        dtype, device, lengths=[0, 1, 255, 700], queries=queries, tokens=queries, heads=8, heads_kv=1, head_dim=head_dim,
        capacity=768, page_size=page_size,
    )  # fmt: skip
    want = expected(inputs, right=0)
    for splits in (0, 1, 5):
        assert want.worst(*inputs.run(causal=True, num_splits=splits)) <= 1.0


def expected(inputs: Inputs, **options: object) -> cache_reference.Attention:
    """The definition on the inputs as they lie, with new keys in their places."""
    k_cache, v_cache = (
        cache_reference.appended(cache, new, inputs.where, inputs.lengths, inputs.capacity)
        for cache, new in ((inputs.k_cache, inputs.k), (inputs.v_cache, inputs.v))
    )
    totals = [length + inputs.tokens for length in inputs.lengths]
    return cache_reference.attention(
        inputs.q, k_cache, v_cache, inputs.where, totals, inputs.capacity, inputs.dtype, leftpad=inputs.leftpad, **options
    )


@pytest.mark.parametrize("splits", [1, 2, 3, 7, 128])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_any_number_of_splits_gives_the_same_function(splits: int, softcap: float, device: torch.device) -> None:
    """With 7 parts of 64 keys in blocks of 32, most parts are empty; of lengths 0 and 1 all but one are."""
    inputs = Inputs(torch.float64, device, lengths=[0, 1, 33, 64], queries=3, heads=6)
    results = inputs.run(causal=True, num_splits=splits, softcap=softcap)
    assert expected(inputs, right=0, softcap=softcap).worst(*results) <= 1.0


@pytest.mark.parametrize("scale", [1e3, -1e3])
def test_parts_of_large_logits_weigh_exactly(scale: float, device: torch.device) -> None:
    """Logits of thousands: parts that were merged by a rounded lse would be off by its ulps."""
    inputs = Inputs(torch.float32, device, lengths=[64], capacity=64)
    one, three = (inputs.run(softmax_scale=scale, num_splits=splits) for splits in (1, 3))
    torch.testing.assert_close(one[0], three[0], rtol=0.0, atol=8 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("splits", [1, 3])
def test_a_row_that_sees_no_key(splits: int, device: torch.device) -> None:
    inputs = Inputs(torch.float32, device, lengths=[0, 2, 40, 40], queries=5, leftpad=[0, 0, 40, 38])
    out, lse = inputs.run(causal=True, num_splits=splits)
    sees = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 5, [False] * 3 + [True] * 2], device=device)
    assert torch.equal(lse > -math.inf, sees[:, None].expand_as(lse))
    assert torch.equal((out != 0.0).any(-1).any(-1), sees)
    assert (lse[~sees[:, None].expand_as(lse)] == -math.inf).all()


@pytest.mark.parametrize(("heads", "heads_kv"), [(8, 1), (6, 2), (3, 3), (40, 1)])
@pytest.mark.parametrize("queries", [1, 4])
def test_groups_share_their_keys(heads: int, heads_kv: int, queries: int, device: torch.device) -> None:
    inputs = Inputs(torch.float64, device, lengths=[37, 50], queries=queries, heads=heads, heads_kv=heads_kv)
    assert expected(inputs, right=0).worst(*inputs.run(causal=True)) <= 1.0


@pytest.mark.parametrize(("left", "right"), [(7, 0), (0, 0), (-1, 3), (40, -1), (10**9, 0), (2, 5)])
def test_windows(left: int, right: int, device: torch.device) -> None:
    inputs = Inputs(torch.float64, device, lengths=[3, 45, 64], queries=6)
    sides = {"left": None if left == -1 else left, "right": None if right == -1 else right}
    assert expected(inputs, **sides).worst(*inputs.run(window_size=(left, right), num_splits=2)) <= 1.0


@pytest.mark.parametrize("block", [(16, 16), (32, 64), (64, 32), (16, 128)])
@pytest.mark.parametrize("page_size", [0, 16, 64])
def test_any_tile_gives_the_same_function(block: tuple[int, int], page_size: int, device: torch.device) -> None:
    inputs = Inputs(torch.float64, device, lengths=[1, 100, 128], queries=9, heads=6, capacity=128, page_size=page_size)
    table = inputs.integers(inputs.where.table)
    places = (inputs.integers(inputs.lengths), 0, 0, None, None, table)
    caches = (inputs.q, inputs.k_cache, inputs.v_cache, None, None)
    tile = [*block, 4, 1]
    results = cached_attention(*caches, *places, 0.25, None, None, 0, 20, True, True, 2, "ieee", tile)
    assert expected(inputs, right=0, left=20).worst(*results) <= 1.0


def test_lengths_may_be_an_integer_or_nothing(device: torch.device) -> None:
    inputs = Inputs(torch.float32, device, lengths=[64, 64])
    want = inputs.run()
    for lengths in (64, None):
        found = inputs.run(cache_seqlens=lengths)
        assert all(torch.equal(a, b) for a, b in zip(want, found, strict=True))
    assert not torch.equal(want[0], inputs.run(cache_seqlens=63)[0])


def test_lengths_that_only_the_device_knows_stay_within_the_cache(device: torch.device) -> None:
    """Wrong lengths must not read or write anywhere else; what they mean is what they are cut off to."""
    inputs = Inputs(torch.float32, device, lengths=[64, 0])
    want = inputs.run()
    found = inputs.run(cache_seqlens=inputs.integers([2**31 - 1, -5]))
    assert all(torch.equal(a, b) for a, b in zip(want, found, strict=True))


@pytest.mark.parametrize("page_size", [0, 16])
def test_new_keys_without_room_are_not_seen(page_size: int, device: torch.device) -> None:
    """Queries keep their places; what lies behind the cache, or in the next row of the page table, is not read."""
    inputs = Inputs(torch.float64, device, lengths=[30, 32, 29], tokens=4, queries=3, capacity=32, page_size=page_size)
    if not page_size:
        inputs.k_cache, inputs.v_cache = (
            torch.cat([x, torch.full_like(x, math.nan)], 1)[:, :32] for x in (inputs.k_cache, inputs.v_cache)
        )
    want = expected(inputs, right=0)
    assert want.worst(*inputs.run(causal=True, num_splits=2)) <= 1.0


def test_strided_queries_slopes_and_integers(device: torch.device) -> None:
    inputs = Inputs(torch.float32, device, lengths=[20, 41], queries=3, leftpad=[2, 3])
    slopes = torch.linspace(-0.5, 0.5, 8, device=device).reshape(2, 4)
    want = inputs.run(alibi_slopes=slopes, causal=True)
    apart = {name: torch.stack([inputs.integers(x)] * 2, 1)[:, 0] for name, x in (("l", [20, 41]), ("p", [2, 3]))}
    inputs.q = inputs.q.transpose(1, 3).contiguous().transpose(1, 3)
    options = {"cache_seqlens": apart["l"], "cache_leftpad": apart["p"], "alibi_slopes": slopes.T.contiguous().T}
    found = inputs.run(causal=True, **options)
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(want, found, strict=True))


def test_empty_sizes(device: torch.device) -> None:
    inputs = Inputs(torch.float32, device, lengths=[5, 6])
    assert inputs.q.shape[0] == 2
    out, lse = flash_attn_with_kvcache(inputs.q[:, :0], inputs.k_cache, inputs.v_cache, return_softmax_lse=True)
    assert (out.shape, lse.shape) == ((2, 0, 4, 16), (2, 4, 0))
    out = flash_attn_with_kvcache(inputs.q[:0], inputs.k_cache, inputs.v_cache)
    assert out.shape == (0, 1, 4, 16)
    out, lse = flash_attn_with_kvcache(inputs.q, inputs.k_cache[:, :0], inputs.v_cache[:, :0], return_softmax_lse=True)
    assert not out.any()
    assert (lse == -math.inf).all()


def test_no_gradient_without_a_word(device: torch.device) -> None:
    inputs = Inputs(torch.float32, device, lengths=[5])
    inputs.k_cache.requires_grad_()
    with pytest.raises(NotImplementedError, match="k_cache: got a tensor that requires a gradient"):
        inputs.run()
    with torch.no_grad():
        assert not inputs.run()[0].requires_grad


def test_splits_fill_the_processors() -> None:
    for programs, blocks, processors in ((64, 512, 132), (1, 512, 132), (8, 512, 132), (132, 64, 132), (1000, 512, 132)):
        splits = number_of_splits(programs, blocks, processors)
        places = processors * decode_tiles.PROGRAMS_OF_A_PROCESSOR
        assert 1 <= splits <= min(decode_tiles.MOST_SPLITS, blocks // decode_tiles.FEWEST_BLOCKS)
        assert programs * splits >= 0.7 * min(places, programs * decode_tiles.MOST_SPLITS)
    assert number_of_splits(1000, 512, 132) == 1
    assert number_of_splits(1, 1, 132) == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_interpreter_has_a_tile_for_every_shape(dtype: torch.dtype, device: torch.device) -> None:
    for head_dim, rows in ((1, 1), (256, 1000)):
        tile = decode_tile(device, dtype, head_dim, 16, rows)
        assert tile.block_m >= 16
