"""A campaign: what is certified, on which lane, with which checks; running it gives a certificate."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from flashverify.adapters.kernel import Kernel
from flashverify.campaign.executor import execute
from flashverify.campaign.plan import spread
from flashverify.campaign.worker import KernelFactory
from flashverify.cases.case import AttentionCase
from flashverify.checks.registry import all_checks
from flashverify.numerics.axioms.arithmetic import Arithmetic
from flashverify.records.axioms import to_axioms
from flashverify.records.certificate import Certificate, Plan, now
from flashverify.records.environment import Environment
from flashverify.records.measurement import CaseRecord

MOST_WORKERS = 16
"""Worker processes by default, at most: each holds a CUDA context."""


def number_of_workers(asked: int | None) -> int:
    """How many worker processes there are: as many as were asked for, or one a core, up to `MOST_WORKERS`."""
    return asked or min(MOST_WORKERS, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """What is certified, and how.

    Attributes:
        kernel: name of the kernel, as the factory knows it.
        matrix: name of the matrix of cases, or of another source of cases.
        cases: the cases, in the order in which the certificate has them.
        lane: "gpu" or "interpreter".
        factory: makes the kernel, here and in workers.
        workers: number of processes; by default one a core, up to `MOST_WORKERS`.
        timeout: seconds that one case may take.
        options: further options that shape the results, as on a command line.
    """

    kernel: str
    matrix: str
    cases: tuple[AttentionCase, ...]
    lane: Literal["gpu", "interpreter"]
    factory: KernelFactory
    workers: int | None = None
    timeout: float = 300.0
    options: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return torch.device("cuda" if self.lane == "gpu" else "cpu")

    def load(self) -> Kernel:
        """The kernel, in this process.

        Raises:
            ValueError: if there is no kernel of that name.
        """
        return self.factory(self.kernel, self.device)

    def examined(self, arithmetic: Arithmetic) -> tuple[AttentionCase, ...]:
        """The cases that will run, in their order: none where the arithmetic fits no known model."""
        return () if arithmetic.unexplained else spread(self.cases)

    def run(self, arithmetic: Arithmetic, on_record: Callable[[CaseRecord], None]) -> Certificate:
        """Examine every case and return the certificate.

        Args:
            arithmetic: what the device was measured to do.
            on_record: called once a case as records come, in this process.
        """
        checks = tuple(all_checks())
        records: list[CaseRecord] = []
        started = time.perf_counter()

        def keep(record: CaseRecord) -> None:
            records.append(record)
            on_record(record)

        execute(
            ((self.kernel, case) for case in self.examined(arithmetic)),
            self.device.type,
            self.factory,
            checks,
            workers=number_of_workers(self.workers),
            timeout=self.timeout,
            on_record=keep,
            arithmetic=arithmetic,
        )
        order = {planned.id: place for place, planned in enumerate(self.cases)}
        return Certificate(
            created=now(),
            environment=Environment.capture(self.lane == "interpreter", self.load().sources),
            plan=Plan(
                kernel=self.kernel,
                matrix=self.matrix,
                cases=len(self.cases),
                checks=checks,
                lane=self.lane,
                options=self.options,
            ),
            records=tuple(sorted(records, key=lambda record: order[record.case])),
            seconds=time.perf_counter() - started,
            axioms=to_axioms(arithmetic),
        )
