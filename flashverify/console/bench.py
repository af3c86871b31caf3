"""What is certified before a speed is shown."""

from __future__ import annotations

from flashverify.bench.problems import certified_cases
from flashverify.campaign.campaign import Campaign
from flashverify.campaign.worker import KernelFactory
from flashverify.cases.matrices import matrix


def campaign_of(kernel: str, factory: KernelFactory, workers: int | None) -> Campaign:
    """A large case of each kind that is timed, and the smoke matrix, on the GPU."""
    planned = tuple(dict.fromkeys((*certified_cases(kernel), *matrix("smoke"))))
    return Campaign(kernel=kernel, matrix="bench", cases=planned, lane="gpu", factory=factory, workers=workers)
