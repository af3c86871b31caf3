"""Claims as reports show them: outcome, method and finding of each, its series as a table, plots on logarithmic axes."""

from __future__ import annotations

from dataclasses import dataclass

from flashverify.records.claims import Claim, Claims, Series
from flashverify.report.figures import Figure
from flashverify.report.text import number

COLOURS = {"standard": "#dd6640", "ours": "#3987c8"}
OTHER_COLOURS = ("#17a07a", "#a274cf")
COUNTED_DASH, DROPPING_DASH = "dot", "dash"
KINDS = {"holds": "certified", "does not hold": "failed", "not decided": "inconclusive"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimView:
    """A claim as a reader meets it.

    Attributes:
        name: its slug, which is that of its plot too.
        kind: the outcome as a class of style.
        header: columns of the table of series: quantity, subject, unit, one a length, slope.
        rows: one a series.
        columns: columns of the further table; empty if there is none.
        cells: its rows.
    """

    name: str
    statement: str
    method: str
    outcome: str
    kind: str
    finding: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]


def claim_views(claims: Claims) -> tuple[ClaimView, ...]:
    """The claims as a reader meets them."""
    return tuple(map(_view, claims.claims))


def claim_figures(claims: Claims) -> dict[str, Figure]:
    """A plot of each claim that has series, by the id of its place on the page."""
    return {place_of(claim.name): _figure(claim) for claim in claims.claims if claim.series}


def place_of(name: str) -> str:
    """The id of a claim's plot."""
    return f"claim-{name}"


def _view(claim: Claim) -> ClaimView:
    lengths = sorted({length for series in claim.series for length in series.lengths})
    table = claim.table
    return ClaimView(
        name=claim.name,
        statement=claim.statement,
        method=claim.method,
        outcome=claim.outcome,
        kind=KINDS[claim.outcome],
        finding=claim.finding,
        header=("quantity", "of", "unit", *(f"{length:,}" for length in lengths), "slope") if lengths else (),
        rows=tuple(_row(series, lengths) for series in claim.series),
        columns=() if table is None else table.columns,
        cells=() if table is None else tuple(tuple(map(_cell, row)) for row in table.rows),
    )


def _row(series: Series, lengths: list[int]) -> tuple[str, ...]:
    scale, unit = (2.0**20, "MiB") if series.unit == "bytes" else (1.0, series.unit)
    values = (series.at(length) for length in lengths)
    shown = (number(None if value is None else value / scale) for value in values)
    return series.quantity, series.subject, unit, *shown, f"{series.slope:.2f}"


def _cell(cell: str | int | float) -> str:
    if isinstance(cell, str):
        return cell
    return f"{cell:,}" if isinstance(cell, int) else number(cell)


def _figure(claim: Claim) -> Figure:
    """All series of a claim against the number of tokens; bytes as MiB."""
    subjects = list(dict.fromkeys(series.subject for series in claim.series))
    others = [subject for subject in subjects if subject.split(" + ")[0] not in COLOURS]
    unit = {"bytes": "MiB"}.get(claim.series[0].unit, claim.series[0].unit)
    scale = 2.0**20 if unit == "MiB" else 1.0
    quantities = list(dict.fromkeys(series.quantity for series in claim.series))
    symbols = dict(zip(quantities, ("circle", "square-open", "triangle-up-open", "diamond-open"), strict=False))
    data = []
    for series in claim.series:
        base, _, dropping = series.subject.partition(" + ")
        colour = COLOURS.get(base) or OTHER_COLOURS[others.index(series.subject) % len(OTHER_COLOURS)]
        dash = COUNTED_DASH if "counted" in series.quantity else DROPPING_DASH if dropping else "solid"
        name = series.subject if len(quantities) == 1 else f"{series.subject}: {series.quantity}"
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                "x": list(series.lengths),
                "y": [float(f"{value / scale:.4g}") for value in series.values],
                "line": {"color": colour, "dash": dash, "width": 1.6},
                "marker": {"color": colour, "size": 7, "symbol": symbols.get(series.quantity, "circle")},
                "hovertemplate": f"{name}<br>%{{y:,}} {unit} at %{{x:,}} tokens (slope {series.slope:.2f})<extra></extra>",
            }
        )
    ticks = sorted({length for series in claim.series for length in series.lengths})
    return {
        "data": data,
        "layout": {
            "height": 440,
            "xaxis": {"type": "log", "title": {"text": "tokens"}, "tickvals": ticks, "ticktext": [f"{n:,}" for n in ticks]},
            "yaxis": {"type": "log", "title": {"text": unit}, "exponentformat": "none", "dtick": 1},
            "legend": {"orientation": "h", "y": -0.2, "x": 0},
            "margin": {"t": 20, "b": 90, "l": 70, "r": 20},
        },
    }
