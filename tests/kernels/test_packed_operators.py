"""Functions for packed sequences under torch.compile; their operators are in `test_opcheck.py`."""

from __future__ import annotations

import pytest
import torch
from flashverify_kernels import flash_attn_varlen_func, flash_attn_varlen_qkvpacked_func

from tests.kernels.packed_support import Places, draw_packed, starts_of
from tests.kernels.support import differing


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
    x = draw_packed(Places((3, 2), (2, 4), (3, 1), (2, 4)), device).q.requires_grad_()
    starts = starts_of((3, 2), device)
    (dq,) = torch.autograd.grad(flash_attn_varlen_func(x, x, x, starts, starts, 3, 3).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"packed_attention_backward.*no autograd formula"):
        torch.autograd.grad(dq.sum(), x)
