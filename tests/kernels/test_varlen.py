"""Packed sequences: each gets the bits that it gets alone, and rows that no sequence uses reach nothing, whatever they hold."""

from __future__ import annotations

import math

import pytest
import torch
from flashverify_kernels import TileConfig, Tiles, flash_attn_varlen_func

from tests.kernels.packed_support import Inputs, Places, draw_packed, guarded_memory, run_apart, run_packed
from tests.kernels.reference import attention
from tests.kernels.support import DTYPES, differing, recorded_launches

TILES = Tiles(TileConfig(16, 16), TileConfig(32, 16), TileConfig(16, 32))

RAGGED = Places((5, 0, 17, 1), (9, 4, 20, 1))
USED = Places((9, 4, 17), (12, 3, 20), (7, 0, 17), (12, 3, 18), tail=5)
LENGTHS = {
    "tile borders": Places((15, 16, 17), (17, 15, 16)),
    "wide tile borders": Places((33, 31), (32, 31)),
    "empty at the ends": Places((0, 0, 9, 0), (0, 3, 12, 0)),
    "no keys in the middle": Places((4, 20, 3), (6, 0, 2)),
    "one row each": Places((1, 1, 1), (1, 1, 1)),
    "all empty": Places((0, 0), (0, 0)),
    "no queries at all": Places((0, 0), (3, 17)),
    "no keys at all": Places((3, 17), (0, 0)),
    "no sequences": Places((), (), tail=20),
    "nothing": Places((), ()),
}


def slopes(places: Places, heads: int, device: torch.device) -> torch.Tensor:
    """Another slope for each sequence and head."""
    return torch.linspace(-0.5, 1.0, places.sequences * heads, device=device).view(places.sequences, heads)


def sinks(heads: int, device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.linspace(-1.0, 2.0, heads).to(device, dtype)


def check(inputs: Inputs, places: Places, **options: object) -> None:
    """Fail unless the packed call gives the bits of a call for each sequence, and touches nothing but its tensors."""
    with guarded_memory():
        found = run_packed(inputs, places.stated(inputs.q.device), **options)
    found.pop("dsink", None)
    assert not differing(run_apart(inputs, places, **options), found)


@pytest.mark.parametrize("name", LENGTHS)
def test_any_lengths_give_the_bits_of_separate_calls(name: str, device: torch.device) -> None:
    places = LENGTHS[name]
    check(draw_packed(places, device, heads=(1, 1)), places, last=0, alibi=slopes(places, 1, device), tiles=TILES)


FEATURES = {
    "plain": {},
    "causal": {"last": 0},
    "window": {"last": 3, "first": -4},
    "left": {"first": -4},
    "softcap": {"softcap": 1.5, "last": 0},
    "negative scale": {"scale": -0.7, "last": 0},
}


@pytest.mark.parametrize("name", FEATURES)
def test_every_feature_gives_the_bits_of_separate_calls(name: str, device: torch.device) -> None:
    check(draw_packed(RAGGED, device, heads=(1, 1), dlse=True), RAGGED, tiles=TILES, **FEATURES[name])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_with_everything_at_once(dtype: torch.dtype, device: torch.device) -> None:
    inputs = draw_packed(USED, device, dtype, columns=(24, 8), dlse=True)
    options = {"last": 2, "first": -6, "softcap": 2.0, "alibi": slopes(USED, 2, device), "sink": sinks(2, device, dtype)}
    check(inputs, USED, tiles=TILES, **options)


@pytest.mark.parametrize(
    ("heads", "columns", "tiles"),
    [
        ((4, 2), (16, 40), TILES),
        ((1, 1), (7, 7), Tiles(TileConfig(32, 16), TileConfig(16, 32), TileConfig(64, 16))),
        ((2, 2), (16, 16), None),
    ],
)
def test_heads_columns_and_tiles(
    heads: tuple[int, int], columns: tuple[int, int], tiles: Tiles | None, device: torch.device
) -> None:
    places = Places((5, 17), (18, 4), (5, 16), (18, 4))
    check(draw_packed(places, device, heads=heads, columns=columns), places, last=0, tiles=tiles)


def test_the_gradient_of_sinks_is_summed_over_all_sequences(device: torch.device) -> None:
    inputs, sink = draw_packed(USED, device, torch.float64, dlse=True), sinks(2, device, torch.float64)
    found = run_packed(inputs.filled(USED, math.nan), USED.stated(device), last=0, sink=sink, tiles=TILES)["dsink"]
    expected, allowed = torch.zeros_like(sink), torch.zeros_like(sink)
    for of_q, of_k in USED.slices():
        parts = (inputs.q[of_q], inputs.k[of_k], inputs.v[of_k], inputs.dout[of_q])
        position = (of_k.stop - of_k.start) - (of_q.stop - of_q.start)
        of_one = attention(
            *(x[None].transpose(1, 2) for x in parts),
            inputs.dlse[None, :, of_q],
            scale=0.3,
            causal_offset=position,
            sink=sink,
        )
        expected, allowed = expected + of_one.values["dsink"], allowed + of_one.allowed["dsink"]
    assert ((found - expected).abs() <= allowed).all()


@pytest.mark.filterwarnings("ignore:invalid value")  # NumPy's, of 0 times infinity, in the interpreter
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -1e30])
def test_unused_rows_reach_nothing(garbage: float, device: torch.device) -> None:
    """Those between sequences and behind the last: their results are 0 and -inf, and all others' bits stay."""
    inputs, stated = draw_packed(USED, device, heads=(1, 1), dlse=True), USED.stated(device)
    options = {"last": 1, "alibi": slopes(USED, 1, device), "sink": sinks(1, device), "tiles": TILES}
    expected = run_packed(inputs.filled(USED, 0.0), stated, **options)
    found = run_packed(inputs.filled(USED, garbage), stated, **options)
    assert not differing(expected, found)
    queries, keys = USED.unused(device)
    assert queries.sum() == 4 + 2 + 5
    assert keys.sum() == 2 + 5
    assert (found["lse"][:, queries] == -math.inf).all()
    assert not any(found[name][:, queries].any() for name in ("out", "dq"))
    assert not any(found[name][:, keys].any() for name in ("dk", "dv"))


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # NumPy's, of a row's maximum, in the interpreter
@pytest.mark.parametrize("sequence", [0, 2])
def test_a_sequence_of_nan_reaches_no_other_rows(sequence: int, device: torch.device) -> None:
    """Neither those of its neighbours, whose bits stay, nor the unused ones of its own stretch, which share its tiles."""
    inputs, stated = draw_packed(USED, device, heads=(1, 1), dlse=True), USED.stated(device)
    expected = run_packed(inputs, stated, tiles=TILES)
    of_q, of_k = USED.slices()[sequence]
    for x, rows in ((inputs.q, of_q), (inputs.dout, of_q), (inputs.k, of_k), (inputs.v, of_k)):
        x[rows] = math.nan
    found = run_packed(inputs, stated, tiles=TILES)
    for name, x in found.items():
        rows = of_k if name in ("dk", "dv") else of_q
        assert x[:, rows].isnan().all()
        x[:, rows] = expected[name][:, rows]
    assert not differing(found, expected)


def _views_of_one(x: Inputs) -> tuple[torch.Tensor, ...]:
    """Slices of one (rows, 4, H, D) tensor."""
    return torch.stack((x.q, x.k, x.v, x.dout), 1).unbind(1)


def _heads_first(x: Inputs) -> tuple[torch.Tensor, ...]:
    return tuple(y.transpose(0, 1).contiguous().transpose(0, 1) for y in (x.q, x.k, x.v, x.dout))


def _columns_first(x: Inputs) -> tuple[torch.Tensor, ...]:
    return tuple(y.permute(2, 1, 0).contiguous().permute(2, 1, 0) for y in (x.q, x.k, x.v, x.dout))


def _expanded(x: Inputs) -> tuple[torch.Tensor, ...]:
    """Every head and row of dout, and every head of k and v, at the same address."""
    heads = x.k.shape[1]
    return x.q, x.k[:, :1].expand(-1, heads, -1), x.v[:, :1].expand(-1, heads, -1), x.dout[:1, :1].expand_as(x.dout)


def _apart(x: Inputs) -> tuple[torch.Tensor, ...]:
    """Every other row and column of a larger tensor, from its middle on."""
    larger = (torch.full((2 * y.shape[0] + 3, y.shape[1], 2 * y.shape[2]), math.nan).to(y) for y in (x.q, x.k, x.v, x.dout))
    views = [y[3::2, :, ::2] for y in larger]
    return tuple(view.copy_(y) for view, y in zip(views, (x.q, x.k, x.v, x.dout), strict=True))


@pytest.mark.parametrize("layout", [_views_of_one, _heads_first, _columns_first, _expanded, _apart])
def test_tensors_are_read_where_they_lie(layout: object, device: torch.device) -> None:
    places = Places((5, 0, 17), (5, 0, 17), tail=2)
    q, k, v, dout = layout(draw_packed(places, device, heads=(2, 2)))
    copies = [x.clone(memory_format=torch.contiguous_format) for x in (q, k, v, dout)]
    with recorded_launches() as launches:
        found = run_packed(Inputs(q, k, v, dout), places.stated(device), last=0, tiles=TILES)
    # On a GPU, a thread has the columns of dO that its strides suggest: delta, and so dq and dk, are summed in another order.
    compared = found if device.type == "cpu" else {name: found[name] for name in ("out", "lse", "dv")}
    assert not differing(compared, run_packed(Inputs(*copies), places.stated(device), last=0, tiles=TILES))
    sources = {x.data_ptr() for launch in launches for x in launch.tensors}
    assert {x.data_ptr() for x in (q, k, v, dout)} <= sources
    assert all(torch.equal(x, copy) for x, copy in zip((q, k, v, dout), copies, strict=True))


def test_work_and_results_do_not_depend_on_the_longest(device: torch.device) -> None:
    x = draw_packed(RAGGED, device, heads=(1, 1))
    starts_q, starts_k, *_ = RAGGED.stated(device)

    def call(longest: int) -> tuple[dict[str, torch.Tensor], list[int]]:
        with recorded_launches() as launches:
            out, lse, _ = flash_attn_varlen_func(
                x.q, x.k, x.v, starts_q, starts_k, longest, longest, return_attn_probs=True, tiles=TILES
            )
        return {"out": out, "lse": lse}, launches[0].integers

    expected, arguments = call(20)
    for longest in (0, 1, 10**9):
        found, same = call(longest)
        assert not differing(expected, found)
        assert same == arguments


def test_the_comparison_sees_one_key_of_a_neighbour(device: torch.device) -> None:
    """With the last key of the first sequence counted to the second, both change."""
    places, moved = Places((5, 7), (9, 11)), Places((5, 7), (8, 12))
    inputs = draw_packed(places, device, heads=(1, 1))
    found, other = (run_packed(inputs, p.stated(device), tiles=TILES) for p in (places, moved))
    assert differing(found, other) == list(found)
