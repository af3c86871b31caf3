"""Where tiles come from: pointers or tensor descriptors, wide or narrow offsets, one section of heads or several. Same bits."""

from __future__ import annotations

import math

import pytest
import torch
from flashverify_kernels import backward, forward, launch
from flashverify_kernels.launch import (
    fits_descriptor,
    has_tensor_copies,
    heads_at_once,
    needs_wide_offsets,
    tile_sources,
)
from triton.tools.tensor_descriptor import TensorDescriptor

from tests.kernels.reference import attention
from tests.kernels.support import DTYPES, RESULTS, differing, draw, recorded_launches, run

SHAPE = (1, 4, 2, 20, 35, 24)
TILED = {"forward_kernel", "dkdv_kernel", "dq_kernel"}


@pytest.mark.parametrize("causal_offset", [None, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_descriptors_give_the_same_bits(
    dtype: torch.dtype, causal_offset: int | None, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = draw(SHAPE, dtype, device)
    expected = run(*inputs, causal_offset=causal_offset, scale=-0.3)
    monkeypatch.setattr(launch, "DESCRIPTOR_PRODUCTS", 0)
    with recorded_launches() as launches:
        results = run(*inputs, causal_offset=causal_offset, scale=-0.3)
    by_descriptors = {record.kernel for record in launches if record.options.get("DESCRIPTORS")}
    assert by_descriptors == (set() if dtype == torch.float64 else TILED)
    assert not differing(results, expected)


def test_what_lies_beyond_a_tensor_is_not_read(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and columns of NaN behind the last ones: a descriptor's tiles reach into both."""

    def amid_nan(x: torch.Tensor) -> torch.Tensor:
        batch, heads, rows, columns = x.shape
        memory = torch.full((batch, heads, rows + 9, columns + 8), math.nan, dtype=x.dtype, device=x.device)
        view = memory[:, :, :rows, :columns]
        view.copy_(x)
        return view

    inputs = draw(SHAPE, torch.float16, device)
    expected = run(*inputs)
    monkeypatch.setattr(launch, "DESCRIPTOR_PRODUCTS", 0)
    assert not differing(run(*(amid_nan(x) for x in inputs)), expected)


@pytest.mark.parametrize("place", range(4))
def test_one_tensor_that_does_not_fit_is_enough_for_pointers(
    place: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = draw(SHAPE, torch.float32, device)
    expected = run(*inputs)
    monkeypatch.setattr(launch, "DESCRIPTOR_PRODUCTS", 0)
    laid_out = [x.mT.contiguous().mT if index == place else x for index, x in enumerate(inputs)]
    assert [fits_descriptor(x) for x in laid_out] == [index != place for index in range(4)]
    assert not differing(run(*laid_out), expected)


def _view(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> torch.Tensor:
    return torch.empty(1 << 16, dtype=torch.float16).as_strided(size, stride, offset)


@pytest.mark.parametrize(
    ("fits", "x"),
    {
        "contiguous": (True, _view((2, 3, 5, 24), (360, 120, 24, 1))),
        "B,N,H,D": (True, _view((2, 3, 5, 24), (360, 24, 72, 1))),
        "one late": (False, _view((2, 3, 5, 24), (360, 120, 24, 1), 1)),
        "eight late": (True, _view((2, 3, 5, 24), (360, 120, 24, 1), 8)),
        "rows of 12 elements": (False, _view((2, 3, 5, 12), (180, 60, 12, 1))),
        "one row of 12 elements": (True, _view((1, 1, 1, 12), (12, 12, 12, 1))),
        "every other column": (False, _view((2, 3, 5, 24), (720, 240, 48, 2))),
        "expanded over heads": (False, _view((2, 3, 5, 24), (120, 0, 24, 1))),
        "empty": (False, _view((2, 3, 0, 24), (120, 120, 24, 1))),
    }.values(),
)
def test_which_tensors_fit_a_descriptor(fits: bool, x: torch.Tensor) -> None:
    assert fits_descriptor(x) == fits
    if fits:
        sources, has_descriptors = tile_sources((x, 16, 32), products=launch.DESCRIPTOR_PRODUCTS)
        assert has_descriptors
        assert isinstance(sources[0], TensorDescriptor)
        assert tile_sources((x, 16, 32), products=launch.DESCRIPTOR_PRODUCTS - 1) == ([x], False)


@pytest.mark.parametrize(("capability", "has"), [((8, 0), False), ((8, 9), False), ((9, 0), True), ((12, 0), True)])
def test_devices_without_tensor_copies(capability: tuple[int, int], has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert has_tensor_copies(torch.device("cuda", 0)) == has


def test_wide_offsets_where_32_bits_do_not_hold_them() -> None:
    """31 rows at a stride of 2^26 + 2^21.5 end just below 2^31; one more element of stride goes beyond."""
    largest = torch.iinfo(torch.int32).max
    stride = largest // 31
    rest = largest - 31 * stride
    narrow, wide = (torch.empty(1, device="meta").as_strided((1, 1, 2, 1), (0, 0, s, rest)) for s in (stride, stride + 1))
    assert not needs_wide_offsets((narrow, 32, 2))
    assert needs_wide_offsets((wide, 32, 2))
    assert needs_wide_offsets((narrow, 32, 2), (wide, 32, 2))


def test_wide_offsets_give_the_same_bits(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = draw(SHAPE, torch.float32, device)
    expected = run(*inputs)
    for module in (forward, backward):
        monkeypatch.setattr(module, "needs_wide_offsets", lambda *tiles: True)
    assert not differing(run(*inputs), expected)


@pytest.mark.parametrize("cache_bytes", [1, 2 * 2 * 40 * 8 * 4, 2**40])
def test_sections_of_heads_give_the_same_bits(cache_bytes: int, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """One key head at a time, two, which do not divide all three, and all of them."""
    inputs = draw((3, 1, 1, 40, 40, 8), torch.float32, device)
    expected = run(*inputs, causal_offset=3)
    monkeypatch.setattr(launch, "CACHE_BYTES", cache_bytes)
    assert not differing(run(*inputs, causal_offset=3), expected)


def test_heads_at_once_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "CACHE_BYTES", 1000)
    walked = torch.empty(2, 3, 10, 5, dtype=torch.float16)  # 200 bytes a head and its partner
    assert heads_at_once(walked, sharing=1, heads=100) == 5
    assert heads_at_once(walked, sharing=4, heads=100) == 20
    assert heads_at_once(walked, sharing=4, heads=7) == 7
    assert heads_at_once(walked[:, :, :0], sharing=1, heads=0) == 1
    assert heads_at_once(torch.empty(1, 1, 1000, 64), sharing=1, heads=9) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [8, 24, 64, 96])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_keys_along_n(dtype: torch.dtype, head_dim: int, device: torch.device) -> None:
    """On an H200 this ended in an illegal memory access at D = 24; see test_compiles.py."""
    q, k, v, dout = draw((1, 4, 2, 15, 17, head_dim), dtype, device)
    inputs = (q, k.mT.contiguous().mT, v, dout)
    results = run(*inputs)
    torch.cuda.synchronize()
    assert not differing({name: results[name] for name in RESULTS}, run(*inputs))
    doubled = tuple(x.double() for x in (q, k, v, dout))
    expected = attention(*doubled)
    worst = {name: expected.worst(name, run(*doubled)[name]) for name in RESULTS}
    assert max(worst.values()) <= 1.0
