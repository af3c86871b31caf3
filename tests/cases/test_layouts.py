"""Layouts keep every bit, have the strides that they promise, and are surrounded by NaN."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from flashverify.cases.case import DTYPES, AttentionCase
from flashverify.cases.layouts import GUARD, LAYOUTS, PADDING, apply
from flashverify.cases.regimes import draw
from flashverify.cases.strategies import cases
from flashverify.cases.tensors import Inputs

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
NAMES = ("q", "k", "v", "dout", "dlse")


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(BITS[x.element_size()])


def laid_out(layout: str, **changes: object) -> tuple[AttentionCase, Inputs, Inputs]:
    case = AttentionCase(
        dtype="bf16", batch=2, heads_q=6, heads_kv=3, seqlen_q=5, seqlen_k=7, head_dim=16, layout=layout, lse_grad=True
    ).replace(**changes)
    plain = draw(case)
    return case, plain, apply(case, plain)


@settings(deadline=None)
@given(cases(max_elements=2**11))
def test_values_are_bit_identical(case: AttentionCase) -> None:
    plain = draw(case)
    inputs = apply(case, plain)
    for name in NAMES:
        before, after = getattr(plain, name), getattr(inputs, name)
        if before is None:
            assert after is None
            continue
        assert after.dtype == before.dtype
        assert after.shape == before.shape
        assert torch.equal(bits(after), bits(before))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_negative_zeros_survive(layout: str, dtype: str) -> None:
    _, plain, inputs = laid_out(layout, dtype=dtype, regime="signed-zeros")
    for name in NAMES:
        assert torch.equal(torch.signbit(getattr(inputs, name)), torch.signbit(getattr(plain, name)))
    assert (torch.signbit(inputs.v) & (inputs.v == 0)).any()


@pytest.mark.parametrize(
    ("layout", "q_stride", "k_stride"),
    [
        ("contiguous", (480, 80, 16, 1), (336, 112, 16, 1)),
        ("bnhd", (480, 16, 96, 1), (336, 16, 48, 1)),
        ("padded", (720, 120, 16 + PADDING, 1), (504, 168, 16 + PADDING, 1)),
        ("offset", (480, 80, 16, 1), (336, 112, 16, 1)),
        ("strided-d", (960, 160, 32, 2), (672, 224, 32, 2)),
        ("transposed-d", (480, 80, 1, 5), (336, 112, 1, 7)),
        ("expanded", (480, 80, 16, 1), (336, 112, 16, 1)),
        ("packed-qkv", (480, 16, 96, 1), (672, 16, 96, 1)),
    ],
)
def test_strides(layout: str, q_stride: tuple[int, ...], k_stride: tuple[int, ...]) -> None:
    _, _, inputs = laid_out(layout)
    assert inputs.q.stride() == q_stride
    assert inputs.dout.stride() == q_stride
    assert inputs.k.stride() == k_stride
    assert inputs.v.stride() == k_stride


def test_packed_slices_share_one_buffer() -> None:
    _, _, inputs = laid_out("packed-qkv", seqlen_q=7)
    assert inputs.q.stride() == inputs.k.stride() == inputs.v.stride() == (7 * 12 * 16, 16, 12 * 16, 1)
    assert len({x.untyped_storage().data_ptr() for x in (inputs.q, inputs.k, inputs.v)}) == 1
    assert inputs.k.storage_offset() - inputs.q.storage_offset() == 6 * 16


def test_expanded_has_stride_zero_where_values_are_equal() -> None:
    _, _, inputs = laid_out("expanded", regime="constant-gradient")
    assert inputs.dout.stride() == (0, 0, 0, 0)
    _, _, inputs = laid_out("expanded", regime="equal-logits")
    assert inputs.k.stride(2) == 0
    assert 0 not in inputs.v.stride()


def test_expanded_tells_zeros_of_different_sign_apart() -> None:
    case, plain, _ = laid_out("expanded")
    plain.dout = torch.tensor([0.0, -0.0], dtype=torch.bfloat16).repeat(2, 6, 5, 8)
    inputs = apply(case, plain)
    assert inputs.dout.stride()[:3] == (0, 0, 0)
    assert inputs.dout.stride(3) != 0


def test_offset_is_not_aligned() -> None:
    _, _, inputs = laid_out("offset")
    assert inputs.q.data_ptr() % 16 == inputs.q.element_size()
    _, _, inputs = laid_out("contiguous")
    assert inputs.q.data_ptr() % 16 == 0


def test_mixed_layouts_differ_and_take_turns() -> None:
    seen = set()
    for seed in range(5):
        _, _, inputs = laid_out("mixed", seed=seed, seqlen_q=7, heads_q=3)
        kinds = [(x.stride(), x.storage_offset()) for x in (inputs.q, inputs.k, inputs.v, inputs.dout)]
        assert len(set(kinds)) == 4
        seen.add(kinds[0])
    assert len(seen) == 5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_everything_around_the_values_is_nan(layout: str) -> None:
    _, _, inputs = laid_out(layout)
    groups = [[inputs.q], [inputs.k], [inputs.v], [inputs.dout], [inputs.dlse]]
    if layout == "packed-qkv":
        groups = [[inputs.q], [inputs.k, inputs.v], [inputs.dout], [inputs.dlse]]
    for group in groups:
        storage = torch.empty(0, dtype=group[0].dtype).set_(group[0].untyped_storage())
        used = torch.zeros(storage.numel(), dtype=torch.bool)
        for x in group:
            used.as_strided(x.shape, x.stride(), x.storage_offset()).fill_(True)
        assert storage[~used].isnan().all()
        assert not storage[used].isnan().any()
        assert not used[:GUARD].any()
        assert not used[-GUARD:].any()


def test_unknown_layout() -> None:
    case = AttentionCase(dtype="fp16", seqlen_q=1, seqlen_k=1, head_dim=1, layout="zigzag")
    with pytest.raises(ValueError, match=r"layout: got 'zigzag', accepted are contiguous, "):
        apply(case, draw(case))
