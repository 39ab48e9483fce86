"""Parts of a report's page, and the document around them: one file without script, font or request.

Texts are escaped here; arguments named `html` or `svg` are inserted unchanged.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files

STYLE = files(__package__).joinpath("style.css").read_text("utf-8")


def document(title: str, parts: Iterable[str]) -> str:
    """The whole page."""
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<style>{STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def header(eyebrow: str, headline: str, lead: str) -> str:
    """The top of a page: a line above the headline, the headline, a paragraph below."""
    return (
        f"<header><p class='eyebrow'>{escape(eyebrow)}</p><h1>{escape(headline)}</h1>"
        f"<p class='lead'>{escape(lead)}</p></header>"
    )


def section(title: str, html: str, *, note: str = "") -> str:
    """A part of the page under its heading."""
    above = f"<p class='note'>{escape(note)}</p>" if note else ""
    return f"<section><h2>{escape(title)}</h2>{above}{html}</section>"


def tiles(values: Iterable[tuple[str, str, str]]) -> str:
    """Single numbers, large: (label, value, note)."""
    inner = "".join(
        f"<div class='tile'><div class='label'>{escape(label)}</div><div class='value'>{escape(value)}</div>"
        f"<div class='note'>{escape(note)}</div></div>"
        for label, value, note in values
    )
    return f"<section class='tiles'>{inner}</section>"


def claims(rows: Iterable[tuple[bool, str, str]]) -> str:
    """Claims with their sign: (True if the claim holds, the claim, the measured value)."""
    inner = "".join(
        f"<li class='{'ok' if ok else 'failed'}'><span class='sign'>{'✓' if ok else '✗'}</span>"
        f"<span>{escape(claim)}</span><span class='value'>{escape(value)}</span></li>"
        for ok, claim, value in rows
    )
    return f"<ul class='claims'>{inner}</ul>"


def figures(charts: Iterable[tuple[str, str, str]]) -> str:
    """Charts side by side: (title, note, svg)."""
    inner = "".join(
        f"<figure><figcaption><b>{escape(title)}</b> <span>{escape(note)}</span></figcaption>{svg}</figure>"
        for title, note, svg in charts
    )
    return f"<div class='charts'>{inner}</div>"


def legend(kinds: Sequence[tuple[str, str]]) -> str:
    """Names of the dots of a chart: (class of the dot, name)."""
    inner = "".join(f"<span><i class='dot {kind}'></i>{escape(name)}</span>" for kind, name in kinds)
    return f"<div class='legend'>{inner}</div>"


def facts(values: Mapping[str, object]) -> str:
    """A table of names and values."""
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in values.items())
    return f"<table class='facts'>{rows}</table>"


def table(columns: Sequence[str], html: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A table of rows (name, a cell for each column). On a narrow screen a cell is a line that names its column."""
    head = "".join(f"<th>{escape(column)}</th>" for column in ("", *columns))
    rows = "".join(
        f"<tr><th>{escape(name)}</th>"
        + "".join(f"<td data-label='{escape(column)}'>{cell}</td>" for column, cell in zip(columns, cells, strict=True))
        + "</tr>"
        for name, cells in html
    )
    return f"<table class='facts'><tr class='head'>{head}</tr>{rows}</table>"
