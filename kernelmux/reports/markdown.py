"""Markdown from data: text that stays text, tables as GitHub and other readers take them."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence


def text(value: object) -> str:
    """``value`` so that no reader finds markup in it; on one line."""
    words = html.escape(" ".join(str(value).split()), quote=False)
    return re.sub(r"([\\`*\[\]|~])|((?<!\w)_|_(?!\w))", r"\\\g<0>", words)


def code(value: object) -> str:
    """``value`` in a code span, whatever backticks it holds."""
    words = " ".join(str(value).split()).replace("|", "\\|")
    longest = max((len(run) for run in re.findall(r"`+", words)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if words.startswith("`") or words.endswith("`") else ""
    return f"{fence}{pad}{words}{pad}{fence}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """A table; cells must be Markdown already (`text`, `code`). ``right``: right-aligned columns."""
    aligned = set(right)
    rule = ["---:" if i in aligned else "---" for i in range(len(head))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *rows])
