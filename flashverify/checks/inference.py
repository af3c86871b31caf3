"""The walk of a closed kernel over the keys, read off its rounding errors.

With large logits a few keys dominate a row, and which of their weights is exactly 1, and so not rounded, follows from the
running maximum: errors that the sharp model predicts for a wrong walk are missed by factors, for the right one they fit.
Several draws of inputs are tried; of the walks that fit all of them, the one with the fewest runs and the finest blocks is
taken. If none fits, the walk stays unknown, and the sharp tiers do not apply. The hard budget never takes an inferred walk.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Literal

import torch

from flashverify.checks.rates import SHARE
from flashverify.numerics.calibration import accuracy_of_model
from flashverify.numerics.contract import Contract
from flashverify.numerics.scores import FEWEST_ELEMENTS, FEWEST_ROWS, Clustered, by_row, quantile
from flashverify.numerics.sharp import factor, forward_spread, inapplicable
from flashverify.oracles import tiled

if TYPE_CHECKING:
    from flashverify.checks.examination import Examination

PROBE = "large"
"""Regime of the draws: logits eight times those of normal inputs."""

SEEDS = range(4)

BLOCKS = (16, 32, 64, 128, 256)
DIRECTIONS: tuple[Literal["left", "right"], ...] = ("left", "right")
SPLITS = (1, 2, 3, 4, 5, 6, 7, 8)


def inferred_contract(examination: Examination) -> Contract:
    """The kernel's contract with the walk that fits its errors, or as stated if none does.

    `Contract.inferred` says what was found. Nothing is inferred for cases in which the sharp model says nothing anyway.
    """
    stated = examination.contract
    if stated.block_k is None or stated.block_k_exact or examination.case.dtype == "fp64" or not examination.case.seqlen_k:
        return stated
    if examination.case.seqlen_k <= stated.block_k:  # every walk is the same
        return dataclasses.replace(stated, block_k_exact=True)
    probes = [examination.probe(examination.case.replace(regime=PROBE, seed=seed, layout="contiguous")) for seed in SEEDS]
    candidates = _candidates(stated, examination.case.seqlen_k)
    if any(inapplicable(probe.case, probe.inputs, candidates[0]) for probe in probes):
        return stated
    for probe in probes:
        with examination.stopwatch.stage("oracle"):
            out, lse = tiled.forward(probe.case, probe.inputs)
        candidates = [walk for walk in candidates if _fits(probe, out, lse, walk)]
    if not candidates:
        return dataclasses.replace(stated, inferred=f"no walk of those tried fits {len(SEEDS)} draws")
    found = candidates[0]
    words = (
        f"from the {found.direction} in blocks of {found.block_k}, runs: {found.splits}; inferred from the rounding errors of "
        f"{len(SEEDS)} draws, which {len(candidates)} of the walks tried fit"
    )
    return dataclasses.replace(found, inferred=words)


def _candidates(stated: Contract, keys: int) -> list[Contract]:
    """Walks to try, the preferred first: few runs, then fine blocks, then from the left. Walks that are the same come once."""
    found: dict[tuple[int, int, str], Contract] = {}
    for splits, block, direction in itertools.product(SPLITS, BLOCKS, DIRECTIONS):
        blocks = -(-keys // block)
        if blocks < splits or block < (stated.block_k or block):
            continue
        same = (1, 0, "") if blocks == 1 else (splits, block, direction)
        walk = dataclasses.replace(stated, block_k=block, block_k_exact=True, direction=direction, splits=splits)
        found.setdefault(same, walk)
    return list(found.values())


def _fits(probe: Examination, out: torch.Tensor, lse: torch.Tensor, walk: Contract) -> bool:
    """Whether every element lies within the sharp budget, and errors have the predicted size."""
    spread = forward_spread(probe.case, probe.inputs, out, lse, walk).out
    error = probe.outputs.out.double() - out
    if not bool((error.abs() <= spread.allowed(out, walk.stored, factor(out.numel(), SHARE))).all()):
        return False
    scores = by_row((error / spread.size(out, walk.stored)).square())
    if scores.shape[0] < FEWEST_ROWS or scores.numel() < FEWEST_ELEMENTS:
        return True
    squares = Clustered.of(scores, torch.ones_like(scores, dtype=torch.bool))
    accuracy = accuracy_of_model("out", walk)
    noise = quantile(squares.rows, SHARE) * squares.error
    return accuracy.smallest**2 - noise <= squares.mean <= accuracy.largest**2 + noise
