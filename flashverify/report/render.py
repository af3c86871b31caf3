"""A certificate as a web page (one file, no network) and as Markdown."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from flashverify.records.certificate import Certificate
from flashverify.records.files import write_atomically
from flashverify.report.figures import figures
from flashverify.report.text import markdown_cell, markdown_code
from flashverify.report.view import build_view


def render_markdown(certificate: Certificate) -> str:
    """The report as Markdown: verdict, what is not covered, failures, tables; no plots."""
    return _templates().get_template("report.md.jinja").render(view=build_view(certificate))


def render_html(certificate: Certificate) -> str:
    """The report as one HTML file with its plots; the plotting library is packed into it, and nothing is loaded."""
    templates = _templates()
    drawn = figures(certificate)
    return templates.get_template("report.html.jinja").render(
        view=build_view(certificate),
        figures=drawn,
        figures_json=_script_json(drawn),
        plotly=_packed_plotly() if drawn else "",
        style=_trusted(templates, "report.css"),
        script=_trusted(templates, "report.js"),
    )


def write_report(certificate: Certificate, path_html: Path | None = None, path_markdown: Path | None = None) -> None:
    """Write the report in the forms for which a path is given, each file as a whole.

    Raises:
        OSError: if a folder cannot be written.
    """
    if path_html is not None:
        write_atomically(path_html, render_html(certificate).encode())
    if path_markdown is not None:
        write_atomically(path_markdown, render_markdown(certificate).encode())


def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("flashverify.report", "templates"),
        autoescape=lambda name: name is not None and name.endswith(".html.jinja"),
        undefined=jinja2.ChainableUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": markdown_cell, "code": markdown_code}
    return environment


def _trusted(templates: jinja2.Environment, name: str) -> markupsafe.Markup:
    """A file of ours that goes into the page as it is."""
    assert templates.loader is not None
    return markupsafe.Markup(templates.loader.get_source(templates, name)[0])


def _script_json(value: Any) -> markupsafe.Markup:
    """JSON for a script element: no text in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return markupsafe.Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _packed_plotly() -> markupsafe.Markup:
    """The plotting library: gzip, base64. The page's script unpacks it."""
    from plotly.offline import get_plotlyjs

    return markupsafe.Markup(base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode())
