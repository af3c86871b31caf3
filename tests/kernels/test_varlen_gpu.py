"""Packed sequences where it takes a GPU: very many of them, a CUDA graph whose lengths change, and lengths of every kind."""

from __future__ import annotations

import random
from itertools import product

import pytest
import torch
from flashverify_kernels import flash_attn_varlen_func

from tests.kernels.packed_support import Inputs, Places, draw_packed, run_apart, run_packed, starts_of
from tests.kernels.reference import attention
from tests.kernels.support import DTYPES, differing
from tests.kernels.test_varlen import sinks, slopes

pytestmark = pytest.mark.gpu

MANY = 70_001
"""Sequences; grids of two dimensions end at 65,535."""


def test_very_many_short_sequences(device: torch.device) -> None:
    """Of 0 to 3 rows: those of the same two lengths are one batch of the definition."""
    drawn = random.Random(0)
    places = Places(*(tuple(drawn.randint(0, 3) for _ in range(MANY)) for _ in range(2)))
    x = draw_packed(places, device, torch.float64, heads=(2, 1), columns=(8, 8), dlse=True)
    steps = slopes(places, 2, device)
    found = run_packed(x, places.stated(device), last=0, alibi=steps)
    starts_q, starts_k, *_ = places.stated(device)
    lengths_q, lengths_k = starts_q.diff(), starts_k.diff()
    compared = 0
    for seqlen_q, seqlen_k in product(range(4), repeat=2):
        chosen = ((lengths_q == seqlen_q) & (lengths_k == seqlen_k)).nonzero()[:, 0]
        of_q = starts_q[chosen, None] + torch.arange(seqlen_q, device=device)
        of_k = starts_k[chosen, None] + torch.arange(seqlen_k, device=device)
        parts = (x.q[of_q], x.k[of_k], x.v[of_k], x.dout[of_q])
        expected = attention(
            *(y.transpose(1, 2) for y in parts),
            x.dlse[:, of_q].transpose(0, 1),
            scale=0.3,
            causal_offset=seqlen_k - seqlen_q,
            alibi=steps[chosen],
        )
        for name, computed in found.items():
            rows = computed[:, of_k if name in ("dk", "dv") else of_q].transpose(0, 1)
            assert expected.worst(name, rows) <= 1.0, (name, seqlen_q, seqlen_k)
        compared += len(chosen)
    assert compared == MANY


def test_a_graph_replays_with_other_lengths(device: torch.device) -> None:
    rows = 300
    x = draw_packed(Places((rows,), (rows,)), device, torch.bfloat16, heads=(4, 2), columns=(64, 64))
    starts, used = starts_of((100, 0, 200), device), torch.tensor((100, 0, 150), dtype=torch.int32, device=device)

    def call() -> tuple[torch.Tensor, ...]:
        leaves = [y.detach().requires_grad_() for y in (x.q, x.k, x.v)]
        out, lse, _ = flash_attn_varlen_func(
            *leaves, starts, starts, rows, rows, causal=True, return_attn_probs=True, seqused_k=used
        )
        return out.detach(), lse.detach(), *torch.autograd.grad(out, leaves, x.dout)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    for lengths, numbers in (((100, 0, 200), (100, 0, 150)), ((1, 128, 171), (1, 127, 171)), ((0, 0, 77), (0, 0, 9))):
        starts.copy_(starts_of(lengths, device))
        used.copy_(torch.tensor(numbers))
        graph.replay()
        names = ("out", "lse", "dq", "dk", "dv")
        assert not differing(dict(zip(names, results, strict=True)), dict(zip(names, call(), strict=True)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [(64, 64), (128, 128), (192, 128), (40, 40)])
@pytest.mark.parametrize("limits", [(None, None), (0, None), (9, -70)])
def test_the_tables_tiles_give_the_bits_of_separate_calls(
    dtype: torch.dtype, columns: tuple[int, int], limits: tuple[int | None, int | None], device: torch.device
) -> None:
    places = Places(
        (300, 0, 127, 1, 129, 640), (299, 5, 128, 1, 0, 700), (300, 0, 127, 1, 128, 600), (290, 5, 1, 1, 0, 700), 77
    )
    x = draw_packed(places, device, dtype, heads=(4, 2), columns=columns, dlse=True).filled(places, float("nan"))
    options = {"last": limits[0], "first": limits[1], "alibi": slopes(places, 4, device), "sink": sinks(4, device, dtype)}
    found = run_packed(x, places.stated(device), **options)
    assert found.pop("dsink").isfinite().all()
    apart = x.filled(places, 0.0)
    assert not differing(run_apart(Inputs(apart.q, apart.k, apart.v, apart.dout, apart.dlse), places, **options), found)
