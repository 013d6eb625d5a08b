"""Where a matrix goes: rendered, compared with a baseline, written whole, kept, told to CI."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from kernelmux.cli.output import note, say
from kernelmux.errors import UsageError

if TYPE_CHECKING:
    from kernelmux.reports.matrix import Matrix
    from kernelmux.reports.matrix_allow import Allowed, Verdict


class Baseline(NamedTuple):
    """What to compare with, and what may differ."""

    matrix: Matrix
    allowed: tuple[Allowed, ...]


def judged(output: dict[str, Any], sources: Sequence[Path]) -> Baseline | None:
    """The baseline and the allowed changes, read before anything is made, so that a fault in them costs nothing."""
    from kernelmux.reports.matrix_allow import read_allowed
    from kernelmux.reports.matrix_files import read

    baseline: Path | None = output["baseline"]
    for option in ("allow", "changes", "fail_on_change"):
        if baseline is None and output[option]:
            raise UsageError(f"--{option.replace('_', '-')} needs --baseline FILE: the matrix to compare with.")
    _apart(output, sources)
    allowed = read_allowed(output["allow"]) if output["allow"] else ()
    return None if baseline is None else Baseline(read(baseline), allowed)


def _apart(output: dict[str, Any], sources: Sequence[Path]) -> None:
    """Raise UsageError where a result would be written over what it is made from."""
    read = {name: output[name] for name in ("baseline", "allow") if output[name] is not None}
    read |= {f"file {number}": path for number, path in enumerate(sources, 1)}
    for name in ("out", "changes"):
        path = output[name]
        for what, other in read.items():
            if path is not None and os.path.realpath(path) == os.path.realpath(other):
                raise UsageError(f"--{name} {path} would write over {what}, which is read. Name another file.")
    if output["out"] is not None and output["out"] == output["changes"]:
        raise UsageError("--out and --changes name the same file.")


def loaded(files: Sequence[Path]) -> Matrix:
    """One matrix of these files."""
    from kernelmux.reports.matrix_files import merge, read

    twice = next((path for number, path in enumerate(files) if path in files[:number]), None)
    if twice is not None:
        raise UsageError(f"{twice} is given twice.")
    parts = [(path, read(path)) for path in files]
    if len(parts) == 1 and parts[0][1].header.shard is None:
        return parts[0][1]
    return merge(parts)


def deliver(
    matrix: Matrix,
    against: Baseline | None,
    *,
    form: str | None,
    out: Path | None,
    packed: bool,
    fail_on_change: bool,
    fail_on_red: bool,
    changes: Path | None,
    record: bool,
    summary: bool,
    as_json: bool,
    **_: Any,
) -> bool:
    """Show, write and keep it. Whether all is well."""
    from kernelmux.reports import matrix_markdown as markdown
    from kernelmux.reports.matrix import RED
    from kernelmux.reports.matrix_files import write

    form = form or ("json" if as_json else "md")
    if packed and form != "json":
        raise UsageError("--packed is a form of JSON: give --format json too.")
    verdict, told = None, ""
    if against is not None:
        verdict, told = _compared(against, matrix)
    text = rendered(matrix, form, packed, verdict, told)
    if out is not None:
        write(out, text)
        note(f"wrote {out} ({len(matrix.cells):,} cells, {len(text):,} bytes)")
    else:
        click.echo(text.rstrip("\n"))
    if changes is not None:
        write(changes, told)
    if told:
        (say if out is not None else note)(told.rstrip("\n"))
    if record:
        _keep(matrix)
    target = os.environ.get("GITHUB_STEP_SUMMARY", "").strip()
    if summary and target:
        _append(Path(target), (told + "\n" if told else "") + markdown.page(matrix))
    red = [cell for cell in matrix.cells if cell.result is not None and cell.result.status in RED]
    if red and fail_on_red:
        note(f"Error: {len(red)} cells failed, as {red[0].title}: {red[0].result.explanation if red[0].result else ''}")
    failed = fail_on_change and verdict is not None and verdict.failed
    return not failed and not (red and fail_on_red)


def _compared(baseline: Baseline, matrix: Matrix) -> tuple[Verdict, str]:
    from kernelmux.reports import matrix_markdown as markdown
    from kernelmux.reports.matrix_allow import sort_out
    from kernelmux.reports.matrix_diff import compare, setting

    verdict = sort_out(compare(baseline.matrix, matrix), baseline.allowed)
    return verdict, markdown.changes(verdict, setting(baseline.matrix, matrix))


def rendered(matrix: Matrix, form: str, packed: bool, verdict: Verdict | None, told: str) -> str:
    """The document in that form."""
    if form == "json":
        from kernelmux.reports.matrix_files import to_json

        return to_json(matrix, packed, verdict).decode()
    if form == "junit":
        from kernelmux.reports.matrix_junit import page as junit

        return junit(matrix, verdict)
    if form == "html":
        from kernelmux.reports.matrix_html import page as html

        return html(matrix)
    from kernelmux.reports.matrix_markdown import page as markdown

    return (told + "\n" if told else "") + markdown(matrix)


def _keep(matrix: Matrix) -> None:
    from kernelmux.reports.matrix_history import keep
    from kernelmux.store.matrices import History, history_path

    with History(history_path()) as history:
        fresh = keep(history, matrix)
    note(f"{'kept' if fresh else 'was kept before'} in {history_path()}")


def _append(path: Path, text: str) -> None:
    """Add to a step's summary, at most what GitHub takes."""
    from kernelmux.reports.matrix_markdown import STEP_SUMMARY_BYTES
    from kernelmux.store.files import store_error

    data = text.encode()
    if len(data) > STEP_SUMMARY_BYTES:
        cut = data[:STEP_SUMMARY_BYTES].rpartition(b"\n")[0].decode(errors="ignore")
        data = f"{cut}\n\nCut here: the whole is in the files of this job.\n".encode()
    try:
        with path.open("ab") as file:
            file.write(data)
    except OSError as error:
        raise store_error(error, "write", path) from error
