"""A certificate, or claims, as a web page (one file, no network) and as Markdown."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from flashverify.records.certificate import Certificate
from flashverify.records.claims import Claims
from flashverify.records.files import write_atomically
from flashverify.report.claims import claim_figures, claim_views
from flashverify.report.figures import Figure, figures
from flashverify.report.text import markdown_cell, markdown_code
from flashverify.report.view import build_view


def render_markdown(certificate: Certificate, claims: Claims | None = None) -> str:
    """The report as Markdown: verdict, what is not covered, failures, tables; no plots.

    Args:
        certificate: the certificate.
        claims: claims of the same kernel on the same platform, for a chapter of their own, or None.

    Raises:
        ValueError: if the claims hold for something else.
    """
    template = _templates().get_template("report.md.jinja")
    return template.render(view=build_view(certificate), **_chapter(certificate, claims))


def render_html(certificate: Certificate, claims: Claims | None = None) -> str:
    """The report as one HTML file with its plots; the plotting library is packed into it, and nothing is loaded.

    Args:
        certificate: the certificate.
        claims: as for `render_markdown`.

    Raises:
        ValueError: if the claims hold for something else.
    """
    drawn = figures(certificate) | ({} if claims is None else claim_figures(claims))
    return _page("report.html.jinja", drawn, view=build_view(certificate), **_chapter(certificate, claims))


def write_report(
    certificate: Certificate, path_html: Path | None = None, path_markdown: Path | None = None, claims: Claims | None = None
) -> None:
    """Write the report in the forms for which a path is given, each file as a whole.

    Raises:
        OSError: if a folder cannot be written.
        ValueError: if the claims hold for something else.
    """
    if path_html is not None:
        write_atomically(path_html, render_html(certificate, claims).encode())
    if path_markdown is not None:
        write_atomically(path_markdown, render_markdown(certificate, claims).encode())


def render_claims_markdown(claims: Claims) -> str:
    """Claims alone, as Markdown."""
    facts = claims.environment.describe()
    return _templates().get_template("claims.md.jinja").render(claims=claims, claim_views=claim_views(claims), facts=facts)


def render_claims_html(claims: Claims) -> str:
    """Claims alone, as one HTML file with its plots."""
    facts = claims.environment.describe()
    return _page("claims.html.jinja", claim_figures(claims), claims=claims, claim_views=claim_views(claims), facts=facts)


SAME = ("platform", "gpu", "torch", "triton", "kernel_sources")
"""What has to be the same where claims are a chapter of a certificate's report."""


def _chapter(certificate: Certificate, claims: Claims | None) -> dict[str, object]:
    """What templates need for the chapter of claims, or nothing."""
    if claims is None:
        return {}
    there, here = claims.environment, certificate.environment
    for name in SAME:
        if getattr(there, name) != getattr(here, name):
            raise ValueError(f"claims: got claims for {name} {getattr(there, name)}, accepted is {getattr(here, name)}")
    if claims.kernel != certificate.plan.kernel:
        raise ValueError(f"claims: got claims of {claims.kernel}, accepted is {certificate.plan.kernel}")
    return {"claims": claims, "claim_views": claim_views(claims)}


def _page(template: str, drawn: dict[str, Figure], **content: object) -> str:
    """A page with its style, figures and script."""
    templates = _templates()
    return templates.get_template(template).render(
        figures=drawn,
        figures_json=_script_json(drawn),
        plotly=_packed_plotly() if drawn else "",
        style=_trusted(templates, "report.css"),
        script=_trusted(templates, "report.js"),
        **content,
    )


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
