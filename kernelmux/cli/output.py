"""Print one result: as a JSON object or as text for people. Data first, words made from it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click


def emit(data: Mapping[str, Any], as_json: bool | None, render: Callable[[], None]) -> None:
    """Print ``data`` as one JSON object, or let ``render`` say it in words.

    ``as_json=None`` reads the ``--json`` every command has from the running click context.
    """
    if as_json is None:
        as_json = wants_json()
    if as_json:
        click.echo(json.dumps(data, indent=2, ensure_ascii=False, default=_plain))
    else:
        render()


def wants_json() -> bool:
    """Whether ``--json`` was given to the running command."""
    ctx = click.get_current_context(silent=True)
    return bool(ctx and (ctx.meta.get("kernelmux.as_json") or ctx.params.get("as_json")))


def _plain(value: object) -> object:
    if isinstance(value, (set, frozenset)):
        return sorted(str(v) for v in value)
    if isinstance(value, Mapping):
        return dict(value)
    to_json = getattr(value, "to_json", None)
    return to_json() if callable(to_json) else str(value)


def fancy(stream: Any = None) -> bool:
    """Colour and boxes: only on a terminal, and not where NO_COLOR is set or TERM is dumb."""
    stream = stream or sys.stdout
    return bool(stream.isatty()) and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, right: Iterable[int] = (), title: str = "") -> None:
    """Print a table to stdout: rich on a terminal, aligned plain lines elsewhere. ``right``: right-aligned columns."""
    cells = [[_cell(value) for value in row] for row in rows]
    aligned = set(right)
    if fancy():
        _rich_table(head, cells, aligned, title)
    else:
        _plain_table(head, cells, aligned, title)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _rich_table(head: Sequence[str], cells: list[list[str]], right: set[int], title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=title or None, box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for i, name in enumerate(head):
        grid.add_column(name, justify="right" if i in right else "left", overflow="fold")
    for row in cells:
        grid.add_row(*(Text(cell) for cell in row))
    Console().print(grid)


def _plain_table(head: Sequence[str], cells: list[list[str]], right: set[int], title: str) -> None:
    widths = [max(len(row[i]) for row in [list(head), *cells]) for i in range(len(head))]
    if title:
        click.echo(title)
    for row in [list(head), *cells]:
        aligned = (c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        click.echo("  ".join(aligned).rstrip())


def say(text: str = "") -> None:
    """One line of result for people, on stdout."""
    click.echo(text)


def note(text: str) -> None:
    """One line beside the result (a warning, a hint), on stderr, so that stdout stays the result."""
    click.echo(text, err=True)
