"""A campaign as it is watched: the arithmetic is measured, the bar moves, the summary is printed."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from flashverify.campaign.campaign import Campaign
from flashverify.console.axioms import print_unexplained
from flashverify.console.progress import CampaignProgress
from flashverify.console.tables import print_summary
from flashverify.numerics.axioms.measure import measure
from flashverify.records.axioms import to_axioms
from flashverify.records.certificate import Certificate
from flashverify.records.measurement import CaseRecord


def run_watched(console: Console, campaign: Campaign, on_record: Callable[[CaseRecord], None]) -> Certificate:
    """Measure the device's arithmetic, run the campaign with a progress bar, print the summary, return the certificate."""
    arithmetic = measure(campaign.device)
    print_unexplained(console, to_axioms(arithmetic))
    with CampaignProgress(console, len(campaign.examined(arithmetic))) as progress:

        def show(record: CaseRecord) -> None:
            on_record(record)
            progress.add(record)

        certificate = campaign.run(arithmetic, show)
    print_summary(console, certificate)
    return certificate
