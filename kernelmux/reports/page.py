"""A self-contained HTML page: no network, works from a file; and the few elements reports are made of.

Every function takes text and escapes it, except where a parameter is called ``markup``.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

# A page that someone sends you loads and runs nothing, whatever text ended up in it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(title: str, markup: str, data: Mapping[str, Any], data_id: str = "report") -> str:
    """A whole document. ``data`` is kept inside it as JSON, so that a program can read the report back."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)}</title>\n<style>\n{style('chart.css')}{style('page.css')}</style>\n</head>\n<body>\n"
        f"{markup}\n{embedded(data, data_id)}\n</body>\n</html>\n"
    )


@lru_cache
def style(name: str) -> str:
    """A style sheet of this package."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def embedded(data: Mapping[str, Any], data_id: str) -> str:
    """``data`` as JSON in a script element that no browser runs; nothing in it can end the element."""
    body = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&":  # inside a script element only these could end it or open a comment
        body = body.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{text(data_id)}">{body}</script>'


def text(value: object) -> str:
    """``value`` as text, also inside a quoted attribute."""
    return html.escape(str(value), quote=True)


def element(tag: str, markup: str, **attributes: object) -> str:
    """``<tag ...>markup</tag>``; an attribute of None is left out, ``class_`` is class, ``aria_label`` aria-label."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{tag}{given}>{markup}</{tag}>"


def section(title: str, markup: str, anchor: str, note: str = "") -> str:
    """A titled part of the page with a link of its own."""
    said = element("p", text(note), class_="note") if note else ""
    heading = element("h2", text(title), id=f"{anchor}-title")
    return element("section", f"{heading}\n{said}{markup}", id=anchor, aria_labelledby=f"{anchor}-title") + "\n"


def table(head: Sequence[str], markup_rows: Iterable[Sequence[str]], caption: str, right: Iterable[int] = ()) -> str:
    """A table that scrolls on its own, by keyboard too. Cells are markup; the first of a row is its header."""
    aligned = set(right)

    def cell(tag: str, i: int, markup: str, scope: str | None) -> str:
        return element(tag, markup, scope=scope, class_="num" if i in aligned else None)

    top = "".join(cell("th", i, text(name), "col") for i, name in enumerate(head))
    body = "\n".join(
        "<tr>" + "".join(cell("td" if i else "th", i, c, None if i else "row") for i, c in enumerate(row)) + "</tr>"
        for row in markup_rows
    )
    inner = f"{element('caption', text(caption))}\n<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    return element("div", f"<table>{inner}</table>", class_="scroll", tabindex=0, role="region", aria_label=caption)


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of names with their values; the values are markup."""
    return element("dl", "\n".join(f"<div><dt>{text(name)}</dt><dd>{markup}</dd></div>" for name, markup in pairs))


def bullets(lines: Iterable[object]) -> str:
    """An unordered list of texts."""
    return element("ul", "\n".join(element("li", text(line)) for line in lines))
