"""Sums of centred values are bounded from above, however small the weights are."""

import pytest
import torch

from flashverify.numerics.centred import centred_sum


@pytest.mark.parametrize("size", [1.0, 1e-100, 1e-170, 1e-290])
def test_the_bound_holds_for_weights_of_any_size(size):
    """Cauchy-Schwarz's product of two sums underflowed below 1e-162: a row whose heaviest keys are dropped had no budget."""
    generator = torch.Generator().manual_seed(0)
    excess = size * torch.rand(2, 3, 17, generator=generator, dtype=torch.float64)
    values = torch.randn(2, 17, 5, generator=generator, dtype=torch.float64)
    out = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    exact = torch.einsum("crn,crnd->crd", excess / size, (values[:, None] - out[:, :, None]).abs()) * size
    bound = centred_sum(excess, values, out)
    assert (bound >= exact).all()
    assert (bound <= 2.0 * exact).all()
