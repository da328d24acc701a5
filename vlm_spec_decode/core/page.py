"""HTML pages that hold everything themselves, in one visual language: the style sheets of `assets/page`.

A page loads nothing: style, script and pictures are inside. What is written into it is escaped here, except
for what is called `html`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from vlm_spec_decode.core.config import ASSETS

STYLES = ("theme.css", "report.css")
"""Style sheets of a report, of the folder `assets/page`; the first is the console's, too."""


def style(*names: str) -> str:
    """Return style sheets of `assets/page` as one text."""
    return "\n".join((ASSETS / "page" / name).read_text(encoding="utf-8") for name in names or STYLES)


def page(title: str, html: Iterable[str], *, css: str = "", end: str = "") -> str:
    """Return a page. `css` follows the shared style; `end` is what closes the body, scripts mostly."""
    parts = "\n".join(part for part in html if part)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title>"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<style>{style()}\n{css}</style></head>\n<body><main>\n{parts}\n</main>{end}</body></html>\n"
    )


@dataclass(frozen=True, slots=True)
class Html:
    """Text that is HTML already."""

    html: str


Text = str | Html


def written(text: Text) -> str:
    """Return a text as HTML."""
    return text.html if isinstance(text, Html) else escape(text)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table; `is_unsure` rows are muted, which their words must say, too."""

    cells: Sequence[Text]
    is_unsure: bool = False


def table(caption: str, head: Sequence[Text], rows: Sequence[Row], *, words: Iterable[int] = ()) -> str:
    """Return a table that scrolls by itself. The first column names the row; `words` columns hold prose."""
    sentences = set(words)

    def place(column: int) -> str:
        return ' class="words"' if column in sentences else ' class="number"' if column else ""

    heads = "".join(f'<th scope="col"{place(i)}>{written(cell)}</th>' for i, cell in enumerate(head))
    lines = []
    for row in rows:
        first, *others = row.cells
        cells = "".join(f"<td{place(i)}>{written(cell)}</td>" for i, cell in enumerate(others, 1))
        unsure = ' class="unsure"' if row.is_unsure else ""
        lines.append(f'<tr{unsure}><th scope="row">{written(first)}</th>{cells}</tr>')
    body = f"<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return wide(f"<table><caption>{escape(caption)}</caption>{body}</table>", caption)


def wide(html: str, name: str) -> str:
    """Return a part that scrolls by itself where it is too wide; by keyboard, too, and named for readers."""
    return f'<div class="wide" tabindex="0" role="region" aria-label="{escape(name)}">{html}</div>'


def figure(title: str, note: str, svg: str) -> str:
    """Return a chart with its title and what it shows; "" for an empty chart."""
    if not svg:
        return ""
    caption = f"<figcaption>{escape(title)} <span>{escape(note)}</span></figcaption>"
    return f"<figure>{caption}{wide(svg, title)}</figure>"


def terms(pairs: Iterable[tuple[str, str]]) -> str:
    """Return a list of terms with their meanings."""
    return "<dl>" + "".join(f"<dt>{escape(t)}</dt><dd>{escape(m)}</dd>" for t, m in pairs) + "</dl>"
