"""Numbers as the terminal shows them."""

from __future__ import annotations


def figure(x: float | None) -> str:
    """Three significant digits; nothing for none."""
    return "" if x is None else f"{x:.3g}"
