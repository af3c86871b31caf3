"""Statistics of masks whose generator is not ours: is the rate right, and are the bits independent?

Each test's p-value is exact, or proven to be too large: under the hypothesis, p <= a has a probability of a at most.
- **Rate.** Of n bits, Binomial(n, rate) are dropped: both tails of that, doubled.
- **Independence.** Take bits x1, x2 and y1, y2, all different, with x1 != x2 and y1 != y2. If they are independent and x1, x2
  have one rate, and y1, y2 one, whatever these are, then x1 = y1 and x1 != y1 have the same probability. So the number of
  agreements among m such quadruples without a common bit is Binomial(m, 1/2), and a rate that is off is no alarm here. It takes
  twice the bits of a test that knows the rate. Which bits: `samples.py`.
- **Repeated tiles.** Two tiles of n bits are equal with a probability of (rate² + (1 - rate)²)^n; times the number of pairs of
  tiles, this bounds the probability that any two are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy.stats
import torch

from flashverify.dropout.mask import require_rate
from flashverify.dropout.samples import KEYS, samples

SMALLEST_SAMPLE = 10**6
"""Bits from which masks are said to be tested."""

TILES = ((16, 16), (32, 32), (64, 64), (128, 128), (256, 256), (1, 256), (1, 512), (1, 1024), (4, 1024))
"""Rows and keys of tiles that are looked for twice."""

PERIODS = (4, 16, 64)
"""Keys after which the words of a counter, of a vector or of a tile come back in the same place."""

AXES = ("call", "batch entry", "head", "row", "key")


@dataclass(frozen=True, slots=True)
class MaskTest:
    """One statistical test of a hypothesis on masks.

    Attributes:
        question: "rate", or "independence".
        name: what was tested.
        trials: how many events could have happened: bits, quadruples or pairs of tiles.
        events: how many did: bits dropped, quadruples that agree, tiles that are equal.
        expected: how many were to be expected.
        p: the p-value.
        allowed: p-values below it are an alarm.
    """

    question: str
    name: str
    trials: int
    events: int
    expected: float
    p: float
    allowed: float = 0.0

    @property
    def alarm(self) -> bool:
        """Whether the hypothesis is rejected."""
        return self.p < self.allowed


def examine(masks: torch.Tensor, rate: float, false_alarms: float) -> list[MaskTest]:
    """Every test of masks, each with its share of the false alarms of all.

    Either question has half of the false alarms, its tests equal parts of that (Bonferroni, whatever their dependence).

    Args:
        masks: bool tensor of kept pairs, (calls, batch, heads, rows, keys), or (batch, heads, rows, keys) of one call; of calls
            and seeds that are to be independent of each other.
        rate: the rate at which pairs are to be dropped.
        false_alarms: probability that independent bits of that rate raise any alarm, at most.

    Raises:
        TypeError: if masks are not bool, or the rate is no number.
        ValueError: if masks have another number of dimensions, too few bits, or the rate lies outside of [0, 1].
    """
    require_rate(rate)
    if masks.dtype != torch.bool:
        raise TypeError(f"masks: got {masks.dtype}, accepted is torch.bool")
    if masks.dim() not in {4, 5}:
        raise ValueError(f"masks: got {masks.dim()} dimensions, accepted are (calls,) batch, heads, rows, keys")
    if masks.numel() < SMALLEST_SAMPLE:
        raise ValueError(f"masks: got {masks.numel()} bits, accepted are at least {SMALLEST_SAMPLE}")
    masks = masks if masks.dim() == 5 else masks[None]
    questions = (list(rates(masks, rate)), [*independence(masks), *repeated_tiles(masks, rate)])
    return [replace(test, allowed=false_alarms / (2 * len(tests))) for tests in questions for test in tests]


def rates(masks: torch.Tensor, rate: float) -> Iterator[MaskTest]:
    """Tests of the rate: of all bits, of each call, batch entry, head, row and key, and of keys a period apart."""
    dropped = ~masks
    yield _rate("all bits", dropped.sum().reshape(1), masks.numel(), rate)
    for axis, name in enumerate(AXES):
        if masks.shape[axis] > 1:
            counts = dropped.sum([other for other in range(len(AXES)) if other != axis])
            yield _rate(f"each {name}", counts, masks.numel() // masks.shape[axis], rate)
    for period in PERIODS:
        whole = masks.shape[KEYS] // period
        if whole > 1:
            counts = dropped[..., : whole * period].reshape(-1, period).sum(0)
            yield _rate(f"each key modulo {period}", counts, masks[..., 0].numel() * whole, rate)


def _rate(name: str, counts: torch.Tensor, trials: int, rate: float) -> MaskTest:
    """The count that is the least likely, with its p-value times the number of counts."""
    tails = two_sided(counts.cpu().numpy(), trials, rate)
    worst = int(tails.argmin())
    p = min(1.0, float(tails[worst]) * counts.numel())
    return MaskTest("rate", name, trials, int(counts[worst]), trials * rate, p)


def independence(masks: torch.Tensor) -> Iterator[MaskTest]:
    """Tests of independence between the bits of every sample."""
    for sample in samples(masks):
        agreements, quadruples = concordance(sample.x, sample.y)
        p = float(two_sided(np.array(agreements), quadruples, 0.5))
        yield MaskTest("independence", sample.name, quadruples, agreements, quadruples / 2, p)


def concordance(x: torch.Tensor, y: torch.Tensor) -> tuple[int, int]:
    """Quadruples with x1 != x2 and y1 != y2 in which x1 = y1, and all of them.

    The partner of an element is the one as far from the other end: none that a repetition would make equal to it.
    """
    x, y = x.reshape(-1), y.reshape(-1)
    half = x.numel() // 2
    x1, y1, x2, y2 = x[:half], y[:half], x[-half:].flip(0), y[-half:].flip(0)
    usable = (x1 ^ x2) & (y1 ^ y2)
    return int((usable & ~(x1 ^ y1)).sum()), int(usable.sum())


def repeated_tiles(masks: torch.Tensor, rate: float) -> Iterator[MaskTest]:
    """Tests for tiles of any call, entry, head and place that are equal bit by bit."""
    for rows, keys in TILES:
        down, across = masks.shape[-2] // rows, masks.shape[-1] // keys
        count = masks[..., 0, 0].numel() * down * across
        if count < 2:
            continue
        cut = masks[..., : down * rows, : across * keys].cpu().numpy()
        tiles = cut.reshape(-1, down, rows, across, keys).swapaxes(2, 3).reshape(count, rows * keys)
        packed = np.ascontiguousarray(np.packbits(tiles, axis=1))
        distinct = np.unique(packed.view(f"V{packed.shape[1]}")).size
        pairs = count * (count - 1) // 2
        expected = pairs * (rate**2 + (1.0 - rate) ** 2) ** (rows * keys)
        p = min(1.0, expected) if distinct < count else 1.0
        yield MaskTest("independence", f"tiles of {rows}x{keys} twice", pairs, count - distinct, expected, p)


def two_sided(events: npt.NDArray[np.integer], trials: int, probability: float) -> npt.NDArray[np.float64]:
    """Both tails of the binomial distribution from the events on, the smaller one doubled; at most 1."""
    distribution = scipy.stats.binom(trials, probability)
    smaller = np.minimum(distribution.cdf(events), distribution.sf(events - 1))
    doubled: npt.NDArray[np.float64] = np.minimum(1.0, 2.0 * smaller)
    return doubled


def describe(tests: list[MaskTest]) -> str:
    """Alarms in words, the least likely first; empty if there is none."""
    alarms = sorted((test for test in tests if test.alarm), key=lambda test: (test.p, -abs(test.events - test.expected)))
    return "; ".join(
        f"{test.question}, {test.name}: {test.events} of {test.trials}, {test.expected:.6g} expected"
        f" (p {'= 0' if test.p == 0.0 else f'about 10^{math.log10(test.p):.0f}'})"
        for test in alarms
    )
