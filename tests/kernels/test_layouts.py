"""Any strides, each tensor independently: the same bits as contiguous ones, no hidden copies, nothing read outside."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from flashverify_kernels import flash_attn_func, scaled_dot_product_attention

from tests.kernels.support import DTYPES, differing, draw, recorded_launches, run

SHAPE = (2, 2, 1, 17, 35, 4)
TENSORS = ("q", "k", "v", "dout")


def _inside(x: torch.Tensor, order: tuple[int, ...], before: int, after: int, step: int) -> torch.Tensor:
    """x in memory of NaN: axes from outermost to innermost in `order`, with a margin around every axis."""
    sizes = [x.shape[axis] * step + before + after for axis in order]
    memory = torch.full(sizes, math.nan, dtype=x.dtype, device=x.device)
    slices = tuple(slice(before, before + x.shape[axis] * step, step) for axis in order)
    view = memory[slices].permute([order.index(axis) for axis in range(4)])
    view.copy_(x)
    return view


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "guarded": lambda x: _inside(x, (0, 1, 2, 3), 3, 2, 1),
    "B,N,H,D": lambda x: _inside(x, (0, 2, 1, 3), 0, 0, 1),
    "B,N,H,D-sliced": lambda x: _inside(x, (0, 2, 1, 3), 1, 5, 1),
    "every-other": lambda x: _inside(x, (0, 1, 2, 3), 0, 0, 2),
    "D-outside": lambda x: _inside(x, (3, 1, 0, 2), 1, 1, 1),
    "N-innermost": lambda x: _inside(x, (0, 1, 3, 2), 7, 1, 1),
}


@pytest.fixture(scope="module")
def contiguous(device: torch.device) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    inputs = draw(SHAPE, torch.float32, device)
    return inputs, run(*inputs, causal_offset=2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tensor", TENSORS)
def test_layout_of_one_tensor(
    tensor: str, layout: str, contiguous: tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]
) -> None:
    inputs, expected = contiguous
    laid_out = [LAYOUTS[layout](x) if name == tensor else x for name, x in zip(TENSORS, inputs, strict=True)]
    with recorded_launches() as launches:
        results = run(*laid_out, causal_offset=2)
    assert not differing(results, expected)
    read = {launch.kernel: [x.data_ptr() for x in launch.tensors] for launch in launches}
    pointers = [x.data_ptr() for x in laid_out]
    assert read["forward_kernel"][:3] == pointers[:3]
    assert read["dkdv_kernel"][:4] == read["dq_kernel"][:4] == pointers
    assert read["delta_kernel"][1] == pointers[3]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_four_layouts_at_once(dtype: torch.dtype, device: torch.device) -> None:
    inputs = draw((1, 2, 1, 18, 35, 20), dtype, device)
    layouts = ("every-other", "D-outside", "N-innermost", "B,N,H,D-sliced")
    laid_out = [LAYOUTS[layout](x) for layout, x in zip(layouts, inputs, strict=True)]
    assert not differing(run(*laid_out), run(*inputs))


@pytest.mark.parametrize("value_dim", [8, 40])
def test_four_layouts_at_once_with_other_columns_in_v(value_dim: int, device: torch.device) -> None:
    inputs = draw((2, 2, 1, 18, 35, 20), torch.float32, device, value_dim=value_dim)
    layouts = ("N-innermost", "every-other", "B,N,H,D-sliced", "D-outside")
    laid_out = [LAYOUTS[layout](x) for layout, x in zip(layouts, inputs, strict=True)]
    assert not differing(run(*laid_out), run(*inputs))


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@pytest.mark.parametrize("tensor", TENSORS)
def test_expanded(tensor: str, axis: int, device: torch.device) -> None:
    """Stride 0, as `out.sum().backward()` and a broadcast key make it."""
    inputs = dict(zip(TENSORS, draw((2, 2, 2, 3, 5, 4), torch.float32, device), strict=True))
    x = inputs[tensor].narrow(axis, 0, 1).expand_as(inputs[tensor])
    expected = run(*{**inputs, tensor: x.contiguous()}.values())
    assert not differing(run(*{**inputs, tensor: x}.values()), expected)


def test_one_number_as_cotangent(device: torch.device) -> None:
    q, k, v, dout = draw((2, 2, 1, 5, 18, 4), torch.float32, device)
    ones = torch.ones((), device=device)
    lse_ones = ones.expand(dout.shape[:3])
    expected = run(q, k, v, torch.ones_like(dout), torch.ones_like(dout[..., 0]))
    assert not differing(run(q, k, v, ones.expand_as(dout), lse_ones), expected)


def test_packed_projection(device: torch.device) -> None:
    """q, k and v as slices of one B,N,3,H,D projection, with gradients that arrive in its memory."""
    packed = torch.randn(2, 9, 3, 2, 8, generator=torch.Generator().manual_seed(1)).to(device).requires_grad_()
    flash_attn_func(*packed.unbind(2), causal=True).square().sum().backward()
    apart = [x.detach().contiguous().requires_grad_() for x in packed.unbind(2)]
    flash_attn_func(*apart, causal=True).square().sum().backward()
    assert torch.equal(packed.grad, torch.stack([x.grad for x in apart], 2))


def test_same_tensor_thrice(device: torch.device) -> None:
    x = draw((1, 1, 1, 9, 9, 4), torch.float32, device)[0].requires_grad_()
    scaled_dot_product_attention(x, x, x).square().sum().backward()
    apart = [x.detach().clone().requires_grad_() for _ in range(3)]
    scaled_dot_product_attention(*apart).square().sum().backward()
    assert torch.equal(x.grad, apart[0].grad + apart[1].grad + apart[2].grad)


def test_lazily_negated_memory(device: torch.device) -> None:
    """The imaginary part of a lazy conjugate holds its negative in memory."""
    q, k, v, dout = draw((1, 1, 1, 5, 6, 4), torch.float32, device)
    lazy = [torch.complex(torch.zeros_like(x), -x).conj().imag for x in (q, k, v, dout)]
    assert all(x.is_neg() for x in lazy)
    assert not differing(run(*lazy), run(q, k, v, dout))


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3), (3, 2, 1, 0)])
def test_results_are_laid_out_as_documented(order: tuple[int, ...], device: torch.device) -> None:
    inputs = [_inside(x, order, 0, 0, 1) for x in draw((2, 2, 1, 5, 6, 4), torch.float32, device)]
    results = run(*inputs)
    for name in ("out", "dq", "dk", "dv"):
        assert results[name].transpose(1, 2).is_contiguous()
    assert results["lse"].is_contiguous()
