"""The debug mode shows what the kernels compute before their final rounding: rounding it gives what users get, bit for bit."""

import pytest
import torch
from flashverify_kernels.unrounded import unrounded_attention

from tests.kernels.support import draw, run

SHAPE = (1, 2, 1, 17, 33, 16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("offset", [None, 2])
def test_rounding_gives_what_users_get(dtype, offset, device):
    q, k, v, dout = draw(SHAPE, dtype, device)
    dlse = torch.randn(q.shape[:3], generator=torch.Generator().manual_seed(5)).to(device)
    given = run(q, k, v, dout, dlse, causal_offset=offset)
    *results, dbias, dsink = unrounded_attention(q, k, v, dout, dlse, 0.25, offset)
    assert dbias is None
    assert dsink is None
    seen = dict(zip(given, results, strict=True))
    for name, tensor in given.items():
        assert seen[name].dtype == torch.float32
        assert torch.equal(seen[name].to(tensor.dtype), tensor), name
    assert not torch.equal(seen["out"], given["out"].float())


def test_other_dtypes_have_nothing_to_leave_out(device):
    q, k, v, dout = draw(SHAPE, torch.float32, device)
    with pytest.raises(ValueError, match=r"q: got torch.float32, accepted are torch.float16 and torch.bfloat16"):
        unrounded_attention(q, k, v, dout, None, 0.25, None)
