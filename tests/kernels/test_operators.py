"""Registration with torch: schemas, fakes, torch.compile, and what autograd may and may not do."""

from __future__ import annotations

import pytest
import torch
from flashverify_kernels import TileConfig, Tiles, flash_attn_func, scaled_dot_product_attention
from flashverify_kernels.ops import attention, backward

from tests.kernels.support import DTYPES, differing, draw, run

TILES = Tiles(*[TileConfig(16, 16)] * 3)
NO_TILES = None


def _permuted(x: torch.Tensor) -> torch.Tensor:
    """The same values in D,N,H,B memory."""
    return x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)


def _heads_inside(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)


@pytest.mark.parametrize(
    ("offsets", "tiles"), [((None, None), NO_TILES), ((1, None), TILES.flatten()), ((None, 0), NO_TILES), ((2, -1), NO_TILES)]
)
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, _heads_inside, _permuted])
def test_opcheck_of_the_forward_operator(
    layout: object, offsets: tuple[int | None, int | None], tiles: list[int] | None, device: torch.device
) -> None:
    q, k, v, _ = (layout(x) for x in draw((1, 2, 1, 3, 4, 4), torch.float32, device))
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(attention, (*leaves, 0.5, None, None, None, None, *offsets, "ieee", tiles))


def test_opcheck_with_other_columns_in_v(device: torch.device) -> None:
    q, k, v, dout = (_permuted(x) for x in draw((1, 2, 1, 3, 4, 4), torch.float32, device, value_dim=6))
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(attention, (*leaves, 0.5, None, None, None, None, 1, None, "ieee", None))
    out, lse = attention(q, k, v, 0.5, None, None, None, None, 1, None, "ieee", None)
    torch.library.opcheck(
        backward, (dout, None, q, k, v, out, lse, 0.5, None, None, None, None, 1, None, "ieee", False, False, None)
    )


@pytest.mark.parametrize("has_dlse", [False, True])
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, _permuted])
def test_opcheck_of_the_backward_operator(layout: object, has_dlse: bool, device: torch.device) -> None:
    q, k, v, dout = (layout(x) for x in draw((1, 2, 1, 3, 4, 4), torch.float32, device))
    out, lse = attention(q, k, v, 0.5, None, None, None, None, 1, -1, "ieee", None)
    dlse = torch.ones_like(lse) if has_dlse else None
    torch.library.opcheck(
        backward, (dout, dlse, q, k, v, out, lse, 0.5, None, None, None, None, 1, -1, "ieee", False, False, None)
    )


def _flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return flash_attn_func(q * 2, k, v, causal=True, window_size=(9, 0), return_attn_probs=True, tiles=TILES)[:2]


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
    scale = q.shape[-1] ** -0.25
    return (scaled_dot_product_attention(q * 2, k, v, is_causal=True, scale=scale, enable_gqa=True),)


def _biased(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
    bias, sink = k[:1, :1, None, :, 0], q.sum((0, 2, 3))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return flash_attn_func(q, k, v, attn_bias=bias, learnable_sink=sink, return_attn_probs=True)[:2]


def _masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (scaled_dot_product_attention(q, k, v, k[:, :1, None, :, 0] > 0, enable_gqa=True),)


def _results(function: object, inputs: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs[:3]]
    outputs = function(*leaves)
    gradients = torch.autograd.grad(sum(output.square().sum() for output in outputs), leaves)
    return {str(place): x.detach() for place, x in enumerate((*outputs, *gradients))}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("function", [_flash, _sdpa, _biased, _masked])
def test_compiled_whole_gives_the_bits_of_eager(function: object, dynamic: bool, device: torch.device) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    shapes = [(1, 2, 1, 5, 6, 4), (2, 4, 2, 9, 7, 8)] if dynamic else [(1, 2, 1, 5, 6, 4)]
    for shape in shapes:
        inputs = tuple(_permuted(x) for x in draw(shape, torch.float32, device))
        eager, traced = _results(function, inputs), _results(compiled, inputs)
        assert not differing(eager, traced)
        assert [x.stride() for x in eager.values()] == [x.stride() for x in traced.values()]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", [_flash, _sdpa, _biased, _masked])
def test_inductor_gives_the_bits_of_eager(function: object, dtype: torch.dtype, device: torch.device) -> None:
    torch._dynamo.reset()
    inputs = draw((2, 4, 2, 65, 70, 64), dtype, device)
    forward_only = torch.compile(function, fullgraph=True)(*inputs[:3])
    for eager, compiled in zip(function(*inputs[:3]), forward_only, strict=True):
        assert torch.equal(eager, compiled)


@pytest.mark.parametrize("strict", [False, True])
def test_exported_with_every_size_dynamic(strict: bool, device: torch.device) -> None:

    class Model(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return flash_attn_func(q, k, v, causal=True, softmax_scale=0.3)

    sizes = {name: torch.export.Dim(name, min=2, max=64) for name in ("batch", "queries", "keys")}
    q, k, v, _ = (x.transpose(1, 2) for x in draw((2, 2, 1, 5, 7, 8), torch.float32, device))
    shapes = ({0: sizes["batch"], 1: sizes["queries"]}, *[{0: sizes["batch"], 1: sizes["keys"]}] * 2)
    program = torch.export.export(Model(), (q, k, v), dynamic_shapes=shapes, strict=strict).module()
    for shape in ((2, 2, 1, 5, 7, 8), (3, 2, 1, 9, 4, 8)):
        q, k, v, _ = (x.transpose(1, 2) for x in draw(shape, torch.float32, device, seed=1))
        assert torch.equal(program(q, k, v), Model()(q, k, v))


def test_a_scale_made_of_a_symbolic_size(device: torch.device) -> None:
    torch._dynamo.reset()

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return flash_attn_func(q, k, v, softmax_scale=4 / (8 + q.shape[1]))

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    for seqlen in (5, 9):
        inputs = [x.transpose(1, 2) for x in draw((1, 2, 1, seqlen, 7, 8), torch.float32, device)[:3]]
        assert torch.equal(compiled(*inputs), call(*inputs))


def test_a_bad_call_inside_a_compiled_function_says_the_same(device: torch.device) -> None:
    torch._dynamo.reset()
    q, k, v, _ = draw((1, 2, 1, 3, 4, 4), torch.float32, device)
    compiled = torch.compile(lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=1), backend="eager")
    with pytest.raises(TypeError, match="is_causal: got 1 of type int, accepted are True and False"):
        compiled(q, k, v)


def test_double_backward_is_refused(device: torch.device) -> None:
    leaves = [x.requires_grad_() for x in draw((1, 1, 1, 3, 4, 4), torch.float64, device)[:3]]
    out = scaled_dot_product_attention(*leaves)
    (dq,) = torch.autograd.grad(out.square().sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"attention_backward.*no autograd formula"):
        torch.autograd.grad(dq.sum(), leaves[0])


def test_no_gradient_asked_for(device: torch.device) -> None:
    q, k, v, dout = draw((1, 1, 1, 3, 4, 4), torch.float32, device)
    assert not scaled_dot_product_attention(q, k, v).requires_grad
    with torch.no_grad():
        assert not scaled_dot_product_attention(q.requires_grad_(), k, v).requires_grad
    out = scaled_dot_product_attention(q, k, v)
    (dq,) = torch.autograd.grad(out, q, dout)
    assert torch.equal(dq, run(q, k, v, dout)["dq"])


def test_an_input_overwritten_before_backward_is_noticed(device: torch.device) -> None:
    q, k, v = (x.requires_grad_() for x in draw((1, 1, 1, 3, 4, 4), torch.float32, device)[:3])
    out = scaled_dot_product_attention(q, k, v)
    with torch.no_grad():
        k.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_checkpointing_gives_the_same_bits(device: torch.device) -> None:
    inputs = draw((1, 2, 1, 5, 6, 4), torch.float32, device)
    again = _results(lambda *x: torch.utils.checkpoint.checkpoint(_flash, *x, use_reentrant=False), inputs)
    assert not differing(_results(_flash, inputs), again)
