"""Which rows each program owns: all of a packed tensor's, each once; and nothing outside of it, whatever is stated."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from flashverify_kernels import TileConfig, Tiles
from flashverify_kernels.packed import Packed, own_key_block, own_query_block, packed_arguments
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.packed_support import Places, draw_packed, guarded_memory, int32, run_packed
from tests.kernels.support import differing


@triton.jit
def owners_kernel(
    owners_ptr, seen_ptr, starts_q_ptr, used_q_ptr, starts_k_ptr, used_k_ptr, sequences, rows_q, rows_k,
    KEYS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """For each row of q, or of k, that a program owns: one more owner, and what the program knows of it."""
    where = starts_q_ptr, used_q_ptr, starts_k_ptr, used_k_ptr
    if KEYS:
        sequence, first, start_other, others, start, stored, used = own_key_block(
            tl.program_id(0), *where, sequences, rows_q, rows_k, BLOCK
        )
    else:
        sequence, first, start, stored, used, start_other, others = own_query_block(
            tl.program_id(0), *where, sequences, rows_q, rows_k, BLOCK
        )
    rows = first + tl.arange(0, BLOCK)
    inside = (rows >= 0) & (rows < stored)
    tl.atomic_add(owners_ptr + start + rows, 1, mask=inside)
    seen = seen_ptr + (start + rows) * 5
    tl.store(seen, sequence, mask=inside)
    tl.store(seen + 1, rows, mask=inside)
    tl.store(seen + 2, used, mask=inside)
    tl.store(seen + 3, start_other, mask=inside)
    tl.store(seen + 4, others, mask=inside)


def owners(packed: Packed, rows: tuple[int, int], block: int, *, keys: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """How many programs own each row, and what one of them knows: sequence, place, used, start and number of the others."""
    device = packed.starts_q.device
    count, seen = (torch.zeros(rows[keys], *more, dtype=torch.int32, device=device) for more in ((), (5,)))
    slots = packed.slots(rows[keys], block)
    owners_kernel[(slots,)](count, seen, *packed_arguments(packed), *rows, KEYS=keys, BLOCK=block)
    return count, seen


def told(places: Places, *, keys: bool) -> list[list[int]]:
    """What programs know of each row, from the definition."""
    own, others = (places.stored_k, places.stored_q) if keys else (places.stored_q, places.stored_k)
    used, used_others = (places.used_k, places.used_q) if keys else (places.used_q, places.used_k)
    found, start_others = [], 0
    for sequence, (stored, stored_others) in enumerate(zip(own, others, strict=True)):
        known = (stored if used is None else used[sequence]), start_others
        of_others = stored_others if used_others is None else used_others[sequence]
        found += [[sequence, place, *known, of_others] for place in range(stored)]
        start_others += stored_others
    return found + [[places.sequences - 1, place, 0, start_others, 0] for place in range(places.tail)]


@st.composite
def drawn_places(draw: st.DrawFn) -> Places:
    """Up to six sequences of up to 70 rows, many of them empty, with or without unused rows."""
    length = st.one_of(st.just(0), st.sampled_from((1, 15, 16, 17, 31, 32, 33, 64)), st.integers(0, 70))
    stored_q, stored_k = (), ()
    for _ in range(draw(st.integers(0, 6))):
        stored_q, stored_k = (*stored_q, draw(length)), (*stored_k, draw(length))
    used = []
    for stored in (stored_q, stored_k):
        used.append(draw(st.one_of(st.none(), st.tuples(*(st.integers(0, rows) for rows in stored)))))
    return Places(stored_q, stored_k, *used, tail=draw(st.sampled_from((0, 1, 16, 40))))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(places=drawn_places(), block=st.sampled_from((16, 32, 64, 128)), keys=st.booleans())
def test_every_row_has_one_owner_that_knows_its_sequence(places: Places, block: int, keys: bool, device: torch.device) -> None:
    count, seen = owners(Packed(*places.stated(device)), places.rows, block, keys=keys)
    assert count.tolist() == [1] * places.rows[keys]
    assert seen.tolist() == told(places, keys=keys)


@pytest.mark.parametrize("keys", [False, True])
def test_slots_are_few(keys: bool, device: torch.device) -> None:
    """Each stretch has at most one slot too many, and so have the rows behind: work follows the lengths."""
    for lengths in ((16,) * 9, (1,) * 9, (15, 17) * 4, (0,) * 9, (640,)):
        places, blocks = Places(lengths, lengths), sum(-(-length // 16) for length in lengths)
        slots = Packed(*places.stated(device)).slots(places.rows[keys], 16)
        assert blocks <= slots <= blocks + len(lengths) + 1


TILES = Tiles(*[TileConfig(16, 16)] * 3)
LARGEST = 2**31 - 1
ROWS = (20, 24)
"""Rows of q, and of k and v."""

WRONG = {
    "beyond the end": ((0, 5, 30), (0, 7, 9000), None, None),
    "as far as can be": ((0, LARGEST, LARGEST), (0, LARGEST, LARGEST), None, None),
    "negative": ((-7, 5, 20), (0, -5, 24), None, None),
    "descending": ((20, 10, 0), (24, 3, 0), None, None),
    "back and forth": ((0, 18, 3), (0, 20, 2), None, None),
    "beginning late": ((18, 19, 20), (17, 20, 24), None, None),
    "used beyond the stretch": ((0, 5, 20), (0, 7, 24), (6, LARGEST), (LARGEST, 30)),
    "negative numbers of used rows": ((0, 5, 20), (0, 7, 24), (-1, -LARGEST - 1), (-5, 17)),
}
"""Starts of queries and of keys, and numbers of used ones."""


def wrongly(name: str, device: torch.device) -> tuple[torch.Tensor | None, ...]:
    return tuple(None if numbers is None else int32(numbers, device) for numbers in WRONG[name])


@pytest.mark.parametrize("name", WRONG)
def test_nothing_outside_is_touched_whatever_is_stated(name: str, device: torch.device) -> None:
    inputs = draw_packed(Places(ROWS[:1], ROWS[1:]), device, heads=(1, 1), dlse=True)
    slopes, sink = torch.ones(2, 1, device=device), torch.ones(1, device=device)
    with guarded_memory():
        found = run_packed(inputs, wrongly(name, device), last=1, first=-9, alibi=slopes, sink=sink, tiles=TILES)
    assert [found[x].shape[1] for x in ("out", "lse", "dq", "dk", "dv")] == [20, 20, 20, 24, 24]


CUT = {
    "beyond the end": Places((5, 15), (7, 17)),
    "as far as can be": Places((20, 0), (24, 0)),
    "used beyond the stretch": Places((5, 15), (7, 17)),
    "negative numbers of used rows": Places((5, 15), (7, 17), (0, 0), (0, 17)),
}


@pytest.mark.parametrize("name", CUT)
def test_what_is_stated_too_large_is_cut_off(name: str, device: torch.device) -> None:
    inputs = draw_packed(CUT[name], device, heads=(1, 1))
    with guarded_memory():
        found = run_packed(inputs, wrongly(name, device), last=0, tiles=TILES)
    assert not differing(found, run_packed(inputs, CUT[name].stated(device), last=0, tiles=TILES))


def test_the_guard_sees_a_load_and_a_store_outside(device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("needs the interpreter, whose memory is guarded")
    starts, count, seen = int32((0, 5), device), torch.zeros(5, dtype=torch.int32), torch.zeros(25, dtype=torch.int32)
    for given_starts, given_seen in ((starts[:1], seen), (starts, seen[:24])):
        with guarded_memory(), pytest.raises(Exception, match="outside of every tensor"):
            owners_kernel[(1,)](count, given_seen, given_starts, None, starts.clone(), None, 1, 5, 5, KEYS=False, BLOCK=16)
    with guarded_memory():
        owners_kernel[(1,)](count, seen, starts, None, starts.clone(), None, 1, 5, 5, KEYS=False, BLOCK=16)
