"""torch's generator of a device at the state that a case's dropout says, for kernels that draw from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from flashverify.dropout.mask import SEED_BITS, Stream


class DeviceGenerator:
    """The generator of a device, set for a call and put back after it."""

    def __init__(self, device: torch.device) -> None:
        """Find it when it is first needed.

        Args:
            device: a CUDA device, or cpu.
        """
        self._device = device
        self._left: torch.Tensor | None = None

    @contextmanager
    def at(self, stream: Stream | None) -> Iterator[None]:
        """Calls within draw from a stream's seed and offset on; without a stream, nothing is changed.

        The generator of a CPU has no offset: there, another offset is another seed.
        """
        if stream is None:
            yield
            return
        generator = self._generator()
        before = generator.get_state()
        if self._device.type == "cuda":
            generator.manual_seed(stream.seed)
            generator.set_offset(stream.offset)
        else:
            generator.manual_seed((stream.seed + stream.offset) % 2**SEED_BITS)
        yield from self._call(generator, before)

    @contextmanager
    def where_it_was_left(self) -> Iterator[None]:
        """Calls within draw on from where those of the last block ended.

        Raises:
            RuntimeError: if there was none.
        """
        if self._left is None:
            raise RuntimeError("no call has drawn from the generator yet")
        generator = self._generator()
        before = generator.get_state()
        generator.set_state(self._left)
        yield from self._call(generator, before)

    def _call(self, generator: torch.Generator, before: torch.Tensor) -> Iterator[None]:
        try:
            yield
            self._left = generator.get_state()
        finally:
            generator.set_state(before)

    def _generator(self) -> torch.Generator:
        if self._device.type != "cuda":
            return torch.default_generator
        torch.cuda.init()  # type: ignore[no-untyped-call]
        return torch.cuda.default_generators[self._device.index or 0]
