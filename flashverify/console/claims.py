"""Claims in a terminal."""

from __future__ import annotations

from rich.console import Console

from flashverify.records.claims import Claim

STYLES = {"holds": "green", "does not hold": "red", "not decided": "yellow"}


def print_claim(console: Console, claim: Claim) -> None:
    """One claim: what it says, whether it holds, and what was found."""
    console.print(f"[{STYLES[claim.outcome]}]{claim.outcome}[/]  {claim.name}: ", end="")
    console.print(claim.statement, markup=False, soft_wrap=True)
    console.print(f"  {claim.finding}", markup=False, soft_wrap=True)
