"""The operators of packed sequences: schemas, fakes and torch.compile."""

from __future__ import annotations

import pytest
import torch
from flashverify_kernels import flash_attn_varlen_func, flash_attn_varlen_qkvpacked_func
from flashverify_kernels.ops_packed import packed_attention, packed_backward

from tests.kernels.packed_support import Places, draw_packed, starts_of
from tests.kernels.support import differing

PLACES = Places((3, 2), (2, 4), (3, 1), (2, 4))


def tensors(device: torch.device, value_dim: int = 4) -> list[torch.Tensor]:
    """q, k, v and dout as the operators take them, and a sink."""
    x = draw_packed(PLACES, device, columns=(4, value_dim))
    return [*(y[None].transpose(1, 2) for y in (x.q, x.k, x.v, x.dout)), torch.zeros(2, device=device)]


@pytest.mark.parametrize("used", [False, True])
def test_opcheck_of_the_forward_operator(used: bool, device: torch.device) -> None:
    q, k, v, _, sink = (x.detach().requires_grad_() for x in tensors(device, 6))
    stated = PLACES.stated(device)[: 4 if used else 2] + (() if used else (None, None))
    slopes = torch.ones(2, 2, device=device) if used else None
    torch.library.opcheck(packed_attention, (q, k, v, sink if used else None, *stated, 0.5, 2.0, slopes, 0, -3, "ieee", None))


@pytest.mark.parametrize("used", [False, True])
def test_opcheck_of_the_backward_operator(used: bool, device: torch.device) -> None:
    q, k, v, dout, sink = tensors(device, 6)
    stated = PLACES.stated(device)[: 4 if used else 2] + (() if used else (None, None))
    given = sink if used else None
    out, lse = packed_attention(q, k, v, given, *stated, 0.5, None, None, 0, None, "ieee", None)
    dlse = torch.ones_like(lse) if used else None
    arguments = dout, dlse, q, k, v, given, out, lse, *stated, None, 0.5, None, 0, None, "ieee", used, None
    torch.library.opcheck(packed_backward, arguments)


def _apart(q: torch.Tensor, starts: torch.Tensor, used: torch.Tensor) -> tuple[torch.Tensor, ...]:
    out, lse, _ = flash_attn_varlen_func(
        q * 2, q, q.flip(0), starts, starts, 9, 9, causal=True, window_size=(5, 0), return_attn_probs=True, seqused_k=used,
        learnable_sink=q.sum((0, 2)),
    )  # fmt: skip
    return out, lse


def _together(q: torch.Tensor, starts: torch.Tensor, used: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (flash_attn_varlen_qkvpacked_func(torch.stack((q, q * 2, q * 3), 1), starts, 9, seqused=used),)


@pytest.mark.parametrize("function", [_apart, _together])
def test_compiled_whole_gives_the_bits_of_eager(function: object, device: torch.device) -> None:
    """With other numbers of sequences and rows, by one graph."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph

    compiled = torch.compile(function, fullgraph=True, backend=backend, dynamic=True)
    for lengths in ((3, 1, 2), (4, 0, 5, 2)):
        starts, generator = starts_of(lengths, device), torch.Generator().manual_seed(0)
        used = (starts.diff() - 1).clamp(0)
        x = torch.randn(sum(lengths), 2, 8, generator=generator).to(device).requires_grad_()
        results = []
        for call in (function, compiled):
            outputs = call(x, starts, used)
            (gradient,) = torch.autograd.grad(outputs[0].square().sum(), x)
            results.append({str(place): y.detach() for place, y in enumerate((*outputs, gradient))})
        assert not differing(*results)
    assert len(graphs) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("function", [_apart, _together])
def test_inductor_gives_the_bits_of_eager(function: object, device: torch.device) -> None:
    torch._dynamo.reset()
    starts = starts_of((65, 0, 130), device)
    q = torch.randn(195, 2, 64, dtype=torch.bfloat16, device=device)
    compiled = torch.compile(function, fullgraph=True)(q, starts, starts.diff())
    for eager, traced in zip(function(q, starts, starts.diff()), compiled, strict=True):
        assert torch.equal(eager, traced)


def test_gradients_of_gradients_are_refused(device: torch.device) -> None:
    x = draw_packed(PLACES, device).q.requires_grad_()
    starts = starts_of((3, 2), device)
    (dq,) = torch.autograd.grad(flash_attn_varlen_func(x, x, x, starts, starts, 3, 3).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"packed_attention_backward.*no autograd formula"):
        torch.autograd.grad(dq.sum(), x)
