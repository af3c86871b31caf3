"""Bad input is refused with the argument, what came and what is accepted, before anything is launched."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from flashverify_kernels import flash_attn_func, ops, scaled_dot_product_attention, validation

from tests.kernels.bad_input import BAD_CALLS, BadCall, table

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")

PUBLISHED = Path(__file__).parents[2] / "docs" / "bad-input.md"


@pytest.fixture
def no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    def launched(*_: object, **__: object) -> None:
        raise AssertionError("a kernel was launched")

    monkeypatch.setattr(ops, "attention_forward", launched)
    monkeypatch.setattr(ops, "attention_backward", launched)


@pytest.mark.usefixtures("no_launch")
@pytest.mark.parametrize("call", BAD_CALLS, ids=lambda call: call.source)
def test_a_bad_call_is_refused(call: BadCall, device: torch.device) -> None:
    call.require_refusal(device)


@pytest.mark.usefixtures("no_launch")
def test_a_good_call_would_be_launched(device: torch.device) -> None:
    with pytest.raises(AssertionError, match="launched"):
        BadCall("flash(q, k, v)", AssertionError, ()).run(device)


@pytest.mark.usefixtures("no_launch")
def test_the_cpu_is_refused_outside_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "INTERPRETED", False)
    with pytest.raises(ValueError, match="q: got a tensor on cpu, accepted is a CUDA device, or cpu if TRITON_INTERPRET"):
        BadCall("flash(q, k, v)", ValueError, ()).run(torch.device("cpu"))


def test_the_published_table_is_current(device: torch.device) -> None:
    assert PUBLISHED.read_text(encoding="utf-8") == table(device), "print it anew: python -m tests.kernels.bad_input"


def test_no_call_stands_in_the_table_twice() -> None:
    assert len({call.source for call in BAD_CALLS}) == len(BAD_CALLS) >= 60


@pytest.mark.parametrize("scale", [np.float64(0.25), np.float32(0.25), np.int64(1), Fraction(1, 4), 1, -1, 0, -0.0])
def test_every_real_number_is_a_scale(scale: float, device: torch.device) -> None:
    """NumPy's float32 is no Python float, and its value is what counts: converting it to float64 is exact."""
    q, k, v = torch.randn(3, 1, 3, 1, 4, device=device, generator=torch.Generator(device).manual_seed(1))
    expected = flash_attn_func(q, k, v, softmax_scale=float(scale))
    assert torch.equal(flash_attn_func(q, k, v, softmax_scale=scale), expected)


@pytest.mark.parametrize("window", [(2, 1), [2, 1], (np.int64(2), np.int32(1)), torch.Size([2, 1])])
def test_every_pair_of_integers_is_a_window(window: object, device: torch.device) -> None:
    q, k, v = torch.randn(3, 1, 7, 1, 4, device=device, generator=torch.Generator(device).manual_seed(1))
    expected = flash_attn_func(q, k, v, window_size=(2, 1))
    assert torch.equal(flash_attn_func(q, k, v, window_size=window), expected)
    assert not torch.equal(flash_attn_func(q, k, v), expected)


@pytest.mark.parametrize("window", [(-1, -1), [-1, -1]])
def test_neutral_values_of_features_that_are_not_there_yet_are_accepted(window: object, device: torch.device) -> None:
    x = torch.ones(1, 2, 1, 4, device=device)
    out = flash_attn_func(x, x, x, 0, None, False, window, 0, None, True, False)
    assert torch.equal(out, x)
    assert torch.equal(scaled_dot_product_attention(x, x, x, None, 0, False, None, True), x)


def test_parameters_and_other_subclasses_are_tensors(device: torch.device) -> None:
    x = torch.nn.Parameter(torch.ones(1, 2, 1, 4, device=device))
    out = flash_attn_func(x, x, x)
    out.sum().backward()
    assert torch.equal(out, x)
    assert x.grad is not None
