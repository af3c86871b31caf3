"""Rotary embedding is the documented rotation, and its scalar and vectorised forms are one."""

from __future__ import annotations

import hashlib
import math

import mpmath
import pytest
import torch
from hypothesis import given, settings

from flashverify.cases import rotary
from flashverify.cases.caches import appended, cached
from flashverify.cases.case import DTYPES, ROTARIES, AttentionCase
from flashverify.cases.regimes import draw
from flashverify.cases.sampling import torch_dtype
from flashverify.cases.strategies import cached_cases

CASE = AttentionCase(
    dtype="fp64", batch=2, heads_q=2, seqlen_q=3, seqlen_k=20, head_dim=40, mask="causal", cache="paged", rotary="half"
)

UNIT = 2.0**-53


@settings(deadline=None)
@given(cached_cases().filter(lambda case: case.rotary is not None))
def test_scalar_and_vectorised_rotations_agree(case: AttentionCase) -> None:
    """Within two roundings of what an element is a sum of; exactly where it stays."""
    inputs = draw(case)
    for side, (x, found) in enumerate(zip((inputs.q, inputs.k), rotary.turned(case, inputs), strict=True)):
        place = (rotary.query_position, rotary.key_position)[side]
        assert found.values.shape == found.terms.shape == x.shape
        for b in range(case.batch):
            for row in range(x.shape[2]):
                position = place(case, b, row)
                with mpmath.workprec(4400):
                    exact = rotary.turned_scalar(case, [mpmath.mpf(value) for value in x[b, 0, row].tolist()], position)
                    values, terms = found.values[b, 0, row].tolist(), found.terms[b, 0, row].tolist()
                    for column, (one, value, size) in enumerate(zip(exact, values, terms, strict=True)):
                        turns = position is not None and column < rotary.rotary_dim(case)
                        assert (size > 0.0) is turns
                        assert abs(one - value) <= 2.0 * UNIT * size * (1.0 + UNIT)


@pytest.mark.parametrize("kind", ROTARIES)
@pytest.mark.parametrize("seed", [0, 1])
def test_pairs_are_complex_numbers_that_turn(kind: str, seed: int) -> None:
    """x_a + i·x_b is multiplied by exp(i·angle): an independent formula, with the angles of the paper."""
    case = CASE.replace(rotary=kind, seed=seed)
    columns = (32, 16)[seed]
    assert rotary.rotary_dim(case) == columns
    inputs = draw(case)
    (turned, _), q = rotary.turned(case, inputs), inputs.q
    x, y = (
        (z[..., :columns].unflatten(-1, (2, -1)).mT if kind == "half" else z[..., :columns].unflatten(-1, (-1, 2)))
        for z in (q, turned.values)
    )
    x, y = (torch.view_as_complex(z.contiguous()) for z in (x, y))
    positions = torch.arange(3, dtype=torch.float64)[:, None] + 17
    angle = positions * 10000.0 ** (-torch.arange(columns // 2, dtype=torch.float64) * 2 / columns)
    expected = x * torch.polar(torch.ones_like(angle), angle)
    assert ((expected - y).abs() <= 16 * 20 * UNIT * x.abs()).all()  # the angle itself, up to 20, is rounded
    assert torch.equal(turned.values[..., columns:], q[..., columns:])


def test_partial_dimensions_are_multiples_of_16() -> None:
    found = {
        (d, seed): rotary.rotary_dim(CASE.replace(head_dim=d, seed=seed)) for d in (16, 31, 32, 48, 128, 256) for seed in (0, 1)
    }
    assert found == {
        **{(16, 0): 16, (16, 1): 16, (31, 0): 16, (31, 1): 16, (32, 0): 32, (32, 1): 16},
        **{(48, 0): 48, (48, 1): 32, (128, 0): 128, (128, 1): 64, (256, 0): 256, (256, 1): 128},
    }


def test_positions_are_those_of_flash_attn() -> None:
    assert [rotary.query_position(CASE, 0, i) for i in range(3)] == [17, 18, 19]
    assert [rotary.query_position(CASE.replace(window_left=10**9, mask="full"), 0, i) for i in range(3)] == [17, 18, 19]
    assert [rotary.query_position(CASE.replace(mask="full"), 0, i) for i in range(3)] == [17, 17, 17]
    assert [rotary.key_position(CASE, 0, j) for j in (0, 16, 17, 19)] == [None, None, 17, 19]


def test_positions_count_from_the_front_of_a_cache_with_left_pads_and_lengths() -> None:
    case = CASE.replace(lengths="keys", left_pad=True, batch=3)
    for b, before in enumerate(cached(case)):
        assert rotary.query_position(case, b, 1) == before + 1
        places = [rotary.key_position(case, b, j) for j in range(case.seqlen_k)]
        assert [place for place in places if place is not None] == list(range(before, before + appended(case)))


def test_keys_that_the_cache_holds_stay() -> None:
    inputs = draw(CASE)
    _, k = rotary.turned(CASE, inputs)
    assert torch.equal(k.values[:, :, :17], inputs.k[:, :, :17])
    assert not k.terms[:, :, :17].any()
    assert ((k.values - inputs.k)[:, :, 17:, :2].abs() > 2.0**-20).all()  # the fastest pairs


@pytest.mark.parametrize("dtype", DTYPES)
def test_angles_are_numbers_of_the_dtype(dtype: str) -> None:
    cos, sin = rotary.angles(CASE.replace(dtype=dtype), 1234)
    for values, function in ((cos, math.cos), (sin, math.sin)):
        tensor = torch.tensor(values, dtype=torch.float64)
        assert torch.equal(tensor.to(torch_dtype(dtype)).double(), tensor)
        exact = torch.tensor([function(1234 * 10000 ** (-2 * p / 32)) for p in range(16)], dtype=torch.float64)
        assert ((tensor - exact).abs() <= torch.finfo(torch_dtype(dtype)).eps + 2**10 * UNIT).all()


def test_angles_are_the_same_on_every_machine() -> None:
    words = repr([rotary.angles(CASE.replace(head_dim=256), position) for position in (1, 77, 4095)])
    assert hashlib.sha256(words.encode()).hexdigest()[:16] == "9fbf6ebced0dbd60"


def test_without_rotary_nothing_is_turned() -> None:
    case = CASE.replace(rotary=None)
    inputs = draw(case)
    assert all(torch.equal(x, y) for x, y in zip(rotary.turned_inputs(case, inputs), (inputs.q, inputs.k), strict=True))
