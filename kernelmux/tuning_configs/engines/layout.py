"""How the text of a table file is set: what has to be kept so that a file written back has the same bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Pairs = Sequence[tuple[str, Any]]

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s{}\[\],:"]+|[{}\[\],:]')


@dataclass(frozen=True, slots=True)
class Layout:
    """Spaces of indent, and what stands after the last brace; or, for a text set by hand, every gap of white space.

    ``indent`` None with no ``gaps`` is one line, as ``json.dumps`` writes it. ``gaps`` hold the white space before
    each token and after the last one.
    """

    indent: int | None = 4
    tail: str = "\n"
    gaps: tuple[str, ...] = ()

    def render(self, pairs: Pairs) -> str:
        """The text of top-level ``pairs``, in their order. Raises ValueError when ``gaps`` belong to other pairs."""
        text = json.dumps(dict(pairs), indent=self.indent, ensure_ascii=False)
        if not self.gaps:
            return text + self.tail
        tokens = _TOKEN.findall(text)
        if len(tokens) + 1 != len(self.gaps):
            raise ValueError("the white space kept is that of another table")
        return "".join(gap + token for gap, token in zip(self.gaps, (*tokens, ""), strict=True))


# vLLM's and SGLang's tuners: json.dump(..., indent=4) and one line feed.
USUAL = Layout()


def layout_of(text: str, pairs: Mapping[str, Any]) -> Layout | None:
    """The Layout that renders ``pairs`` to exactly ``text``; None where keys or numbers are spelled in another way."""
    items = tuple(pairs.items())
    stripped = text.rstrip()
    tail = text[len(stripped) :]
    first = re.match(r"\{\n( *)", text)
    regular = Layout(len(first[1]) if first else None, "")
    if regular.render(items) == stripped:
        return Layout(regular.indent, tail)
    odd = Layout(None, "", tuple(_gaps(text)))
    try:
        return odd if odd.render(items) == text else None
    except ValueError:
        return None


def _gaps(text: str) -> Iterator[str]:
    end = 0
    for token in _TOKEN.finditer(text):
        yield text[end : token.start()]
        end = token.end()
    yield text[end:]
