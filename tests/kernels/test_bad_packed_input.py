"""Bad input of the functions for packed sequences is refused before anything is launched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from flashverify_kernels import flash_attn_varlen_func, ops_packed

from tests.kernels.bad_input import BadCall
from tests.kernels.bad_packed_input import BAD_CALLS, BadPackedCall, table
from tests.kernels.packed_support import Places, draw_packed

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")

PUBLISHED = Path(__file__).parents[2] / "docs" / "bad-packed-input.md"


@pytest.fixture
def no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    def launched(*_: object, **__: object) -> None:
        raise AssertionError("a kernel was launched")

    for name in ("attention_forward", "attention_backward"):
        monkeypatch.setattr(ops_packed, name, launched)


@pytest.mark.usefixtures("no_launch")
@pytest.mark.parametrize("call", BAD_CALLS, ids=lambda call: call.source)
def test_a_bad_call_is_refused(call: BadCall, device: torch.device) -> None:
    call.require_refusal(device)


GOOD = (
    "varlen(q, k, v, c, c, 4, 4)",
    "varlen(q, k, v, c, c, 0, 0, seqused_q=n, seqused_k=n)",
    "varlen(q, x(0, 4, 8), x(0, 4, 8), c, c, 4, 0)",
    "varlen(q, k, v, c[:1], c[:1], 0, 0)",
    "qkvpacked(x(6, 3, 4, 8), c, 4, seqused=n)",
    "kvpacked(q, x(6, 2, 4, 8), c, c, 4, 4)",
)


@pytest.mark.usefixtures("no_launch")
@pytest.mark.parametrize("source", GOOD)
def test_a_good_call_would_be_launched(source: str, device: torch.device) -> None:
    with pytest.raises(AssertionError, match="launched"):
        BadPackedCall(source, AssertionError, ()).run(device)


def test_the_published_table_is_current(device: torch.device) -> None:
    assert PUBLISHED.read_text(encoding="utf-8") == table(device), "print it anew: python -m tests.kernels.bad_packed_input"


def test_no_call_stands_in_the_table_twice() -> None:
    sources = [call.source for call in BAD_CALLS]
    assert len(sources) == len(set(sources))


def test_integers_of_numpy_and_strided_starts_are_accepted(device: torch.device) -> None:
    places = Places((3, 2), (4, 5))
    x = draw_packed(places, device)
    starts_q, starts_k, *_ = places.stated(device)
    apart = torch.stack((starts_q, starts_k), 1)
    expected = flash_attn_varlen_func(x.q, x.k, x.v, starts_q, starts_k, 3, 5)
    found = flash_attn_varlen_func(x.q, x.k, x.v, apart[:, 0], apart[:, 1], np.int64(3), np.int32(5))
    assert torch.equal(found, expected)
