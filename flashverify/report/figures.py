"""The plots of a report, as plotly figures in plain dictionaries: the page's own script gives them their colours."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

from flashverify.cases.case import AttentionCase
from flashverify.records.certificate import Certificate
from flashverify.records.summary import ENCLOSURE, in_case_dtype, measurements, severity, table_order
from flashverify.report.text import number

TENSOR_COLOURS = {
    "out": "#3987c8",
    "lse": "#d99a00",
    "dq": "#17a07a",
    "dk": "#dd6640",
    "dv": "#a274cf",
    "dbias": "#8a6d3b",
    "dsink": "#5f7f8f",
}
DTYPE_COLOURS = {"fp16": "#3987c8", "bf16": "#d99a00", "fp32": "#17a07a", "fp64": "#a274cf"}
OTHER_COLOUR = "#8a8f98"

SMALLEST_ULP = 2.0**-7
"""Smaller errors in ulps, 0 among them, are drawn here: a logarithmic axis has no zero."""

LARGEST_ULP = 1e6
"""Larger errors are drawn here: a broken kernel must not squeeze all others to a line."""

LAST_OCTAVE = 16
"""The histogram's last octave takes every larger error too."""

MOST_TICKS = 8

SMALLEST_HEADROOM = 1e-4

_SCALE = [[0.0, "#eef4fa"], [0.4, "#b5d0e8"], [0.65, "#6fa3d2"], [0.8, "#2f6ea8"], [0.8, "#d8452e"], [1.0, "#8f1d10"]]
"""Blue within the budget, red beyond it: the step is where error / budget is 1."""

Figure = dict[str, Any]


def figures(certificate: Certificate) -> dict[str, Figure]:
    """The figures that the certificate has data for, by the id of their place on the page."""
    made = {"headroom": _headroom(certificate), "length": _length(certificate), "histogram": _histogram(certificate)}
    return {name: figure for name, figure in made.items() if figure is not None}


def _headroom(certificate: Certificate) -> Figure | None:
    """Largest error / budget by feature (rows) and by dtype and tensor (columns)."""
    worst: dict[tuple[str, str, str], tuple[float, str]] = {}
    for record, entry in measurements(certificate.records):
        dtype = "fp64" if entry.mode == ENCLOSURE else record.dtype
        for feature in record.features.split("+"):
            key = (feature, dtype, entry.tensor)
            if key not in worst or severity(entry.headroom) > severity(worst[key][0]):
                worst[key] = (entry.headroom, record.case)
    if not worst:
        return None
    columns = sorted({key[1:] for key in worst}, key=lambda column: table_order(*column))
    rows = sorted({key[0] for key in worst}, key=lambda feature: (feature != "plain", feature))
    cells = [[worst.get((row, *column)) for column in columns] for row in rows]
    return {
        "data": [
            {
                "type": "heatmap",
                "x": [[dtype for dtype, _ in columns], [tensor for _, tensor in columns]],
                "y": rows,
                "z": [[None if cell is None else _colour_position(cell[0]) for cell in row] for row in cells],
                "text": [["" if cell is None else _cell(cell[0]) for cell in row] for row in cells],
                "customdata": [["" if cell is None else cell[1] for cell in row] for row in cells],
                "texttemplate": "%{text}",
                "hovertemplate": "%{y}, %{x}<br>error / budget %{text}<br>%{customdata}<extra></extra>",
                "colorscale": _SCALE,
                "zmin": math.log10(SMALLEST_HEADROOM),
                "zmax": 1,
                "xgap": 1,
                "ygap": 1,
                "colorbar": {
                    "title": {"text": "error / budget", "side": "right"},
                    "tickvals": [-4, -3, -2, -1, 0, 1],
                    "ticktext": ["≤ 0.0001", "0.001", "0.01", "0.1", "1", "≥ 10"],
                    "thickness": 12,
                },
            }
        ],
        "layout": {
            "height": max(250, 150 + 34 * len(rows)),
            "yaxis": {"autorange": "reversed", "automargin": True, "showgrid": False, "type": "category"},
            "xaxis": {"side": "top", "showgrid": False, "showdividers": False},
            "margin": {"t": 60, "b": 20, "l": 10, "r": 10},
        },
    }


def _colour_position(headroom: float) -> float:
    """Where on the colour axis, 0 being the budget; whatever is within it stays below 0, however close."""
    if math.isnan(headroom):
        return 1.0
    position = round(math.log10(min(max(headroom, SMALLEST_HEADROOM), 10.0)), 3)
    return min(position, -0.001) if headroom <= 1.0 else position


def _cell(headroom: float) -> str:
    """Two digits; three where they decide on which side of the budget the error is."""
    if 0.0 < headroom < SMALLEST_HEADROOM:
        return f"< {number(SMALLEST_HEADROOM)}"
    digits = 3 if 0.9 < headroom < 1.1 else 2
    return number(float(f"{headroom:.{digits}g}") if math.isfinite(headroom) else headroom)


def _length(certificate: Certificate) -> Figure | None:
    """Largest error in ulps of every case against its number of keys: a panel a dtype, a colour a tensor."""
    points: dict[tuple[str, str], list[tuple[int, float, str]]] = defaultdict(list)
    for record, entry in measurements(certificate.records):
        keys = _number_of_keys(record.case)
        if in_case_dtype(record, entry) and keys and math.isfinite(entry.max_ulp):
            points[record.dtype, entry.tensor].append((keys, entry.max_ulp, record.case))
    if not points:
        return None
    dtypes = sorted({dtype for dtype, _ in points}, key=table_order)
    drawn = [math.log10(_drawn(ulp)) for found in points.values() for _, ulp, _ in found]
    decades = max(1, math.ceil((max(drawn) - min(drawn)) / MOST_TICKS))
    layout: Figure = {
        "height": 400,
        "grid": {"rows": 1, "columns": len(dtypes), "pattern": "coupled", "xgap": 0.06},
        "yaxis": {
            "type": "log",
            "title": {"text": "largest error of a case, ulp"},
            "exponentformat": "power",
            "dtick": decades,
        },
        "legend": {"orientation": "h", "y": -0.2, "x": 0},
        "annotations": [],
        "margin": {"t": 40, "b": 90, "l": 70, "r": 20},
    }
    data: list[Figure] = []
    named: set[str] = set()
    for column, dtype in enumerate(dtypes):
        axis = "x" if column == 0 else f"x{column + 1}"
        layout[axis.replace("x", "xaxis")] = {
            "type": "log",
            "title": {"text": "keys"},
            "tickformat": "~s",
            **({} if column == 0 else {"matches": "x"}),
            "tickangle": 0,
            "exponentformat": "none",
            "dtick": 1,
        }
        layout["annotations"].append(
            {
                "text": f"<b>{dtype}</b>",
                "xref": f"{axis} domain",
                "yref": "paper",
                "x": 0.5,
                "y": 1.08,
                "showarrow": False,
            }
        )
        for tensor in sorted({name for kind, name in points if kind == dtype}, key=lambda name: table_order(dtype, name)):
            found = sorted(points[dtype, tensor])
            worst: dict[int, tuple[int, float, str]] = {}
            for point in found:
                if point[0] not in worst or point[1] > worst[point[0]][1]:
                    worst[point[0]] = point
            colour = TENSOR_COLOURS.get(tensor, OTHER_COLOUR)
            common = {"type": "scatter", "xaxis": axis, "yaxis": "y", "legendgroup": tensor, "name": tensor}
            data.append(
                {
                    **common,
                    "x": [x for x, _, _ in found],
                    "y": [_drawn(y) for _, y, _ in found],
                    "mode": "markers",
                    "marker": {"color": colour, "size": 4, "opacity": 0.3},
                    "hoverinfo": "skip",
                    "showlegend": False,
                }
            )
            data.append(
                {
                    **common,
                    "x": list(worst),
                    "y": [_drawn(y) for _, y, _ in worst.values()],
                    "customdata": [[number(ulp), case] for _, ulp, case in worst.values()],
                    "mode": "lines+markers",
                    "marker": {"color": colour, "size": 6},
                    "line": {"color": colour, "width": 1.3},
                    "hovertemplate": f"{tensor}: %{{customdata[0]}} ulp at %{{x}} keys<br>%{{customdata[1]}}<extra></extra>",
                    "showlegend": tensor not in named,
                }
            )
            named.add(tensor)
    return {"data": data, "layout": layout}


def _number_of_keys(case_id: str) -> int:
    """Number of keys of a case, or 0 if the id is not one that this version knows."""
    try:
        return AttentionCase.from_id(case_id).seqlen_k
    except ValueError:
        return 0


def _drawn(ulp: float) -> float:
    """Where an error is drawn: within the plot, with three digits."""
    return float(f"{min(max(ulp, SMALLEST_ULP), LARGEST_ULP):.3g}")


def _histogram(certificate: Certificate) -> Figure | None:
    """How many measurements have their largest error in each octave of ulps, stacked by dtype."""
    tally: dict[str, dict[float, int]] = defaultdict(lambda: defaultdict(int))
    for record, entry in measurements(certificate.records):
        if in_case_dtype(record, entry):
            tally[record.dtype][_octave(entry.max_ulp)] += 1
    if not tally:
        return None
    octaves = {octave for counts in tally.values() for octave in counts}
    finite = [octave for octave in octaves if math.isfinite(octave)]
    bins = [float(octave) for octave in range(int(min(finite)), int(max(finite)) + 1)] if finite else []
    bins = [*(b for b in (-math.inf,) if b in octaves), *bins, *(b for b in (math.inf,) if b in octaves)]
    dtypes = sorted(tally, key=table_order)
    return {
        "data": [
            {
                "type": "bar",
                "name": dtype,
                "x": [_octave_label(octave) for octave in bins],
                "y": [tally[dtype][octave] for octave in bins],
                "marker": {"color": DTYPE_COLOURS.get(dtype, OTHER_COLOUR)},
                "hovertemplate": f"{dtype}, %{{x}} ulp: %{{y}} measurements<extra></extra>",
            }
            for dtype in dtypes
        ],
        "layout": {
            "height": 360,
            "barmode": "stack",
            "bargap": 0.08,
            "xaxis": {
                "type": "category",
                "title": {"text": "largest error of a tensor of a case, ulp"},
                "showgrid": False,
            },
            "yaxis": {"title": {"text": "measurements"}},
            "legend": {"orientation": "h", "y": 1.12, "x": 0, "traceorder": "normal"},
            "margin": {"t": 30, "b": 70, "l": 70, "r": 10},
        },
    }


def _octave(ulp: float) -> float:
    """The k with 2^(k-1) < ulp <= 2^k, at least that of `SMALLEST_ULP`; -inf for exact results, inf if not finite."""
    if not math.isfinite(ulp):
        return math.inf
    if ulp <= 0.0:
        return -math.inf
    mantissa, exponent = math.frexp(max(ulp, SMALLEST_ULP))
    return float(min(exponent - 1 if mantissa == 0.5 else exponent, LAST_OCTAVE))


def _octave_label(octave: float) -> str:
    if math.isinf(octave):
        return "not finite" if octave > 0 else "0"
    if octave >= LAST_OCTAVE:
        return f"> 2<sup>{LAST_OCTAVE - 1}</sup>"
    return f"≤ {2 ** int(octave)}" if 0 <= octave < 7 else f"≤ 2<sup>{int(octave)}</sup>"
