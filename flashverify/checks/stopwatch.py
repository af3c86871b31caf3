"""How long the stages of an examination take: each moment counts for the innermost stage that it lies in, and for no other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from flashverify.records.timings import OTHER, STAGES

DIGITS = 6
"""Decimals of the seconds that are kept: microseconds."""


class Stopwatch:
    """Seconds by stage since it was made; what lies in no stage is `OTHER`.

    A GPU works behind the program's back: at each boundary its work is waited for, so that it counts where it was asked for.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        """Start.

        Args:
            device: whose work is waited for.
            clock: seconds.
        """
        self._on_gpu = device.type == "cuda"
        self._clock = clock
        self._spent = dict.fromkeys(STAGES, 0.0)
        self._open = [OTHER]
        self._since = clock()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What runs inside counts for this stage, but for the stages within it.

        Raises:
            ValueError: if there is no stage of that name.
        """
        if name not in self._spent:
            raise ValueError(f"stage: got {name!r}, accepted are {', '.join(STAGES)}")
        self._wait()
        self._charge()
        self._open.append(name)
        try:
            yield
            self._wait()  # not after an exception, which a lost GPU would hide behind its own
        finally:
            self._charge()
            self._open.pop()

    def seconds(self) -> dict[str, float]:
        """Seconds by stage so far, to the microsecond; stages that took less are left out."""
        self._wait()
        self._charge()
        rounded = {name: round(seconds, DIGITS) for name, seconds in self._spent.items()}
        return {name: seconds for name, seconds in rounded.items() if seconds}

    def _wait(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()

    def _charge(self) -> None:
        now = self._clock()
        self._spent[self._open[-1]] += now - self._since
        self._since = now
