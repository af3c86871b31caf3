"""Bad input of the function with a cache is refused before anything is launched, and so before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flashverify_kernels import ops_cache

from tests.kernels.bad_cache_input import BAD_CALLS, BadCacheCall, table
from tests.kernels.bad_input import BadCall

PUBLISHED = Path(__file__).parents[2] / "docs" / "bad-cache-input.md"


@pytest.fixture
def no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    def launched(*_: object, **__: object) -> None:
        raise AssertionError("a kernel was launched")

    for name in ("append", "rotate", "decode"):
        monkeypatch.setattr(ops_cache, name, launched)


@pytest.mark.usefixtures("no_launch")
@pytest.mark.parametrize("call", BAD_CALLS, ids=lambda call: call.source)
def test_a_bad_call_is_refused(call: BadCall, device: torch.device) -> None:
    call.require_refusal(device)


GOOD = (
    "cached(q, K, V)",
    "cached(q, K, V, k, v, cache_seqlens=63)",
    "cached(q, K, V, k, v, cos, cos, n)",
    "cached(q, pool, pool, k, v, cos, cos, n, block_table=table)",
)


@pytest.mark.usefixtures("no_launch")
@pytest.mark.parametrize("source", GOOD)
def test_a_good_call_would_be_launched(source: str, device: torch.device) -> None:
    with pytest.raises(AssertionError, match="launched"):
        BadCacheCall(source, AssertionError, ()).run(device)


def test_the_published_table_is_current(device: torch.device) -> None:
    assert PUBLISHED.read_text(encoding="utf-8") == table(device), "print it anew: python -m tests.kernels.bad_cache_input"


def test_no_call_stands_in_the_table_twice() -> None:
    sources = [call.source for call in BAD_CALLS]
    assert len(sources) == len(set(sources))
