"""Numbers and words as reports write them."""

from __future__ import annotations

import math
import re
import shlex

SIGNIFICANT_DIGITS = 3

DEFAULT_KERNEL = "triton"
"""What the command line examines if no kernel is named."""


def number(x: float | None) -> str:
    """A number with three significant digits: 0.0123, 1,850, 4.57e-13, NaN, ∞; a dash for none."""
    if x is None:
        return "–"
    if math.isnan(x):
        return "NaN"
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    text = f"{x:.{SIGNIFICANT_DIGITS}g}"
    if 1e3 <= abs(float(text)) < 1e5:
        return f"{float(text):,.0f}".replace("-", "−")
    text = re.sub(r"e([+-])0*(\d+)", lambda found: f"e{found[1].replace('+', '')}{found[2]}", text)
    return re.sub(r"^-", "−", text)


def exact(x: float) -> str:
    """A number as it is stored, every digit that its float64 needs."""
    return repr(float(x)).replace("nan", "NaN").replace("inf", "Infinity")


def count(n: int, singular: str, plural: str | None = None) -> str:
    """A number of things: "1 case", "1,024 cases"."""
    return f"{n:,} {singular if n == 1 else plural or singular + 's'}"


def duration(seconds: float) -> str:
    """A wall time: "12.3 s", "4 min 05 s"."""
    if not math.isfinite(seconds):
        return number(seconds)
    if seconds < 60:
        return f"{number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def replay_command(case: str, kernel: str) -> str:
    """The command that runs one case again, with the kernel where it is not the one that the command takes by itself."""
    option = "" if kernel == DEFAULT_KERNEL else f" --kernel {shlex.quote(kernel)}"
    return f"flashverify replay {shlex.quote(case)}{option}"


def markdown_cell(text: object) -> str:
    """Text for a cell of a Markdown table: nothing in it is taken for markup, and it stays on one line."""
    escaped = re.sub(r"([\\`*_\[\]#|~$])", r"\\\1", str(text))
    escaped = escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return " ".join(escaped.split())


def markdown_code(text: object) -> str:
    """Text as code in a Markdown table, whatever it holds."""
    plain = " ".join(str(text).split())
    if re.search(r"[`|]", plain):
        return markdown_cell(plain)
    return f"`{plain}`" if plain else ""
