"""Magnitudes: by their definition, element by element, and where nothing is seen."""

import pytest
import torch

from flashverify.cases.case import AttentionCase
from flashverify.cases.regimes import draw
from flashverify.cases.semantics import visible
from flashverify.dropout.of_case import kept_scalar, rescale
from flashverify.numerics.conditioning import magnitudes
from flashverify.oracles import dense

CASE = AttentionCase(
    dtype="fp64", batch=2, heads_q=4, heads_kv=2, seqlen_q=7, seqlen_k=5, head_dim=3, mask="causal", lse_grad=True, seed=3
)


def by_definition(case, inputs, lse):
    """The module's formulas as loops over one head's rows and keys."""
    scale = abs(case.softmax_scale)
    sizes = {
        name: torch.zeros(getattr(inputs, of).shape).double()
        for name, of in (("out", "q"), ("dq", "q"), ("dk", "k"), ("dv", "v"))
    }
    for b in range(case.batch):
        for h in range(case.heads_q):
            q, dout = inputs.q[b, h], inputs.dout[b, h].abs()
            k, v = inputs.k[b, h // case.group_size], inputs.v[b, h // case.group_size].abs()
            for i in range(case.seqlen_q):
                keys = [j for j in range(case.seqlen_k) if visible(case, b, i, j)]
                p = {j: float(torch.exp(case.softmax_scale * (q[i] @ k[j]) - lse[b, h, i])) for j in keys}
                a = {j: scale * float(q[i].abs() @ k[j].abs()) for j in keys}
                row = sum(p[j] * a[j] for j in keys)
                w = {j: p[j] * (1 + a[j] + row) for j in keys}
                r = {j: rescale(case) * kept_scalar(case, b, h, i, j) for j in keys}
                out = sum((w[j] * r[j] * v[j] for j in keys), torch.zeros(case.head_dim).double())
                plain = sum((p[j] * r[j] * v[j] for j in keys), torch.zeros(case.head_dim).double())
                sizes["out"][b, h, i] = out
                for j in keys:
                    inner = float(r[j] * (dout[i] @ v[j]) + dout[i] @ plain + inputs.dlse[b, h, i].abs())
                    g = w[j] * inner + p[j] * float(dout[i] @ out)
                    sizes["dq"][b, h, i] += scale * g * k[j].abs()
                    sizes["dk"][b, h // case.group_size, j] += scale * g * q[i].abs()
                    sizes["dv"][b, h // case.group_size, j] += w[j] * r[j] * dout[i]
    return sizes


@pytest.mark.parametrize("tile_elements", [1, 30, 2**24])
@pytest.mark.parametrize("dropout", [None, 0.4, 1.0])
def test_magnitudes_are_their_definition(tile_elements, dropout):
    case = CASE.replace(dropout=dropout)
    inputs = draw(case)
    _, lse = dense.forward(case, inputs)
    found = magnitudes(case, inputs, lse, tile_elements)
    for name, expected in by_definition(case, inputs, lse).items():
        torch.testing.assert_close(getattr(found, name), expected)


def test_rows_that_see_nothing_have_no_terms():
    inputs = draw(CASE)
    _, lse = dense.forward(CASE, inputs)
    found = magnitudes(CASE, inputs, lse)
    assert torch.isneginf(lse[:, :, :2]).all()
    for tensor in (found.out, found.lse, found.dq):
        assert not tensor[:, :, :2].any()
