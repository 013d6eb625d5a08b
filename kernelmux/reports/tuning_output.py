"""Turn a tuning report into text of a format, and write it to a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kernelmux.errors import UsageError
from kernelmux.store.files import write_whole

FORMATS: Mapping[str, tuple[str, ...]] = {"md": (".md", ".markdown"), "html": (".html", ".htm"), "json": (".json",)}


def format_of(path: Path) -> str:
    """The format that a file's name asks for. Raises UsageError."""
    for form, endings in FORMATS.items():
        if path.suffix.lower() in endings:
            return form
    raise UsageError(f"a report cannot be written to {path}: its name must end in .md, .html or .json.")


def render(report: Mapping[str, Any], form: str, images: Sequence[tuple[str, str]] = ()) -> str:
    """The report as "md", "html" or "json". ``images``: plots beside a Markdown file, as (title, file name)."""
    from kernelmux.reports import tuning_html, tuning_markdown

    if form == "html":
        return tuning_html.render(report)
    if form == "md":
        return tuning_markdown.render(report, images)
    return json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def files(report: Mapping[str, Any], path: Path, form: str = "", *, plots: bool = False) -> dict[Path, str]:
    """Path -> content of everything to write; with ``plots`` a Markdown report's images too (``NAME-time.svg``)."""
    form = form or format_of(path)
    if not (plots and form == "md"):
        return {path: render(report, form)}
    from kernelmux.reports.tuning_charts import plots as drawn

    made = [(path.with_name(f"{path.stem}-{plot.name}.svg"), plot) for plot in drawn(report)]
    images = [(plot.title, file.name) for file, plot in made]
    return {path: render(report, form, images), **{file: plot.file() for file, plot in made}}


def write(report: Mapping[str, Any], path: Path, form: str = "", *, plots: bool = False) -> list[Path]:
    """Write `files`, each whole. Raises UsageError for an unknown ending, StoreError where it cannot be written."""
    made = files(report, path, form, plots=plots)
    for file, content in made.items():
        write_whole(file, content)
    return list(made)
