"""The walk over keys against a loop over blocks, row by row."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from flashverify.numerics.walk import walk
from tests.numerics.simulated import HONEST, sharp_contract_of

CONTRACT = sharp_contract_of("bf16", HONEST["bf16"])


def loop(row: list[float], block: int, direction: str, splits: int) -> tuple[list[float], list[int], list[int]]:
    """Running maximum, later rescalings and run of each key of a row."""
    starts = list(range(0, len(row), block))
    length = math.ceil(len(starts) / splits)
    maximum, later, runs, last = [-math.inf] * len(row), [0] * len(row), [0] * len(row), []
    for place, first in enumerate(range(0, len(starts), length)):
        run = starts[first : first + length]
        running, done = -math.inf, []
        for start in run if direction == "left" else run[::-1]:
            keys = range(start, min(start + block, len(row)))
            new = max(running, *(row[key] for key in keys))
            if new > running > -math.inf:
                for key in done:
                    later[key] += 1
            running = new
            for key in keys:
                maximum[key], runs[key] = running, place
            done += keys
        last.append((running, done))
    for running, done in last:
        if running < max(other for other, _ in last):
            for key in done:
                later[key] += 1
    return maximum, later, runs


@pytest.mark.parametrize("splits", [1, 2, 3])
@pytest.mark.parametrize("direction", ["left", "right"])
@pytest.mark.parametrize("block", [1, 4, 5, 16, 64, None])
@pytest.mark.parametrize("causal", [False, True])
def test_walks_are_those_of_a_loop(block: int | None, direction: str, splits: int, causal: bool) -> None:
    logit = torch.randn(2, 19, 19, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    logit[:, :, 7] = logit[:, :, 3]  # a maximum that comes twice does not move
    if causal:
        logit = logit.masked_fill(torch.ones(19, 19).triu(1).bool(), -math.inf)
    contract = dataclasses.replace(CONTRACT, block_k=block, direction=direction, splits=splits)
    walked = walk(logit, contract)
    for lane in range(2):
        for row in range(19):
            seen = logit[lane, row].isfinite()
            maximum, later, runs = loop(logit[lane, row].tolist(), min(block or 19, 19), direction, splits)
            assert walked.maximum[lane, row].tolist() == maximum
            assert walked.later[lane, row][seen].tolist() == torch.tensor(later)[seen].tolist()
            assert walked.run.tolist() == runs


def test_a_row_handled_whole_is_never_rescaled() -> None:
    logit = torch.randn(1, 3, 40, dtype=torch.float64)
    walked = walk(logit, dataclasses.replace(CONTRACT, block_k=None))
    assert (walked.later == 0).all()
    assert (walked.maximum == logit.amax(-1, keepdim=True)).all()


@pytest.mark.parametrize("direction", ["left", "right"])
@pytest.mark.parametrize("block", [1, 4, 16, None])
@pytest.mark.parametrize("causal", [False, True])
def test_a_walk_with_a_start_is_one_whose_first_block_is_that_key(block: int | None, direction: str, causal: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    logit = torch.randn(2, 19, 19, dtype=torch.float64, generator=generator)
    start = torch.randn(2, 19, 1, dtype=torch.float64, generator=generator)
    start[0, 3] = -math.inf  # no start
    start[1, 4] = 30.0  # never exceeded
    if causal:
        logit = logit.masked_fill(torch.ones(19, 19).triu().bool(), -math.inf)  # the first row sees its start alone
    size = block or 19
    nothing = torch.full((2, 19, size - 1), -math.inf, dtype=torch.float64)
    contract = dataclasses.replace(CONTRACT, block_k=block, direction=direction, splits=1)
    found = walk(logit, contract, start)
    if direction == "left":
        keys = slice(size, None)
        whole = walk(torch.cat([start, nothing, logit], -1), dataclasses.replace(contract, block_k=size))
        of_start = whole.later[..., :1]
    else:
        tail = torch.full((2, 19, -19 % size), -math.inf, dtype=torch.float64)  # so that the grid is the same
        keys = slice(0, 19)
        whole = walk(torch.cat([logit, tail, nothing, start], -1), dataclasses.replace(contract, block_k=size))
        of_start = whole.later[..., -1:]
    assert torch.equal(found.maximum, whole.maximum[..., keys])
    seen = logit.isfinite()
    assert torch.equal(found.later[seen], whole.later[..., keys][seen])
    begun = start.isfinite()
    assert torch.equal(found.of_start[begun], of_start[begun])
    assert (found.of_start[1, 4] == 0).all()
    assert (found.run == 0).all()


@pytest.mark.parametrize("splits", [2, 3])
def test_every_run_of_a_walk_begins_with_the_start(splits: int) -> None:
    logit = torch.randn(1, 5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    start = torch.full((1, 5, 1), 0.5, dtype=torch.float64)
    contract = dataclasses.replace(CONTRACT, block_k=4, direction="left", splits=splits)
    found, length = walk(logit, contract, start), 24 // splits
    for run in range(splits):
        keys = slice(run * length, (run + 1) * length)
        alone = walk(logit[..., keys], dataclasses.replace(contract, splits=1), start)
        assert torch.equal(found.maximum[..., keys], alone.maximum)
        assert (found.run[keys] == run).all()
    assert (found.maximum >= start).all()


def test_a_start_below_every_key_is_one_rescaling_and_changes_nothing_else() -> None:
    logit = torch.randn(2, 6, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    contract = dataclasses.replace(CONTRACT, block_k=4, direction="left", splits=1)
    without, found = walk(logit, contract), walk(logit, contract, torch.full((2, 6, 1), -1e9, dtype=torch.float64))
    assert torch.equal(found.maximum, without.maximum)
    assert torch.equal(found.later, without.later)
    assert torch.equal(found.of_start, 1 + without.later[..., :1])
