"""One op over the matrices that were kept: which kernel each cell had, how it stood, how fast it was."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kernelmux.errors import MissingPackage, UsageError
from kernelmux.reports.matrix import Matrix
from kernelmux.reports.matrix_cases import fits
from kernelmux.store.matrices import History, Kept, Point

if TYPE_CHECKING:
    from collections.abc import Callable

BARS = "▁▂▃▄▅▆▇█"


def keep(history: History, matrix: Matrix, note: str = "") -> bool:
    """Put a matrix into the history; False where it is there already. Raises UsageError for a shard."""
    head = matrix.header
    if head.shard is not None:
        raise UsageError(f"shard {head.shard.index}/{head.shard.of} is no whole matrix: merge the shards, then record.")
    body = msgspec.json.encode(matrix.packed())
    digest = hashlib.sha256(body).hexdigest()
    return history.add(
        digest, head.created, head.kernelmux, head.packages.title, zlib.compress(body, 6), _points(matrix), note
    )


def restore(history: History, matrix: int) -> Matrix:
    """A kept matrix as it was."""
    from kernelmux.reports.matrix_files import parse

    return parse(zlib.decompress(history.body(matrix)), f"matrix {matrix} of {history.path}")


def _points(matrix: Matrix) -> Iterator[Point]:
    for cell in matrix.cells:
        outcome, result = cell.outcome, cell.result
        time = result.time_us if result else None
        status = result.status if result else outcome.evidence or "no kernel"
        yield Point(
            cell.key, cell.case.op, outcome.kernel or "", status,
            time.median if time else None, time.low if time else None, time.high if time else None,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """One cell over the kept matrices; None where a matrix has no such cell."""

    key: str
    points: tuple[Point | None, ...]

    @property
    def changed(self) -> bool:
        """Whether the kernel or its standing differs between any two matrices that have the cell."""
        return len({(point.kernel, point.status) for point in self.points if point is not None}) > 1

    @property
    def timed(self) -> bool:
        return any(point is not None and point.us is not None for point in self.points)

    def spark(self) -> str:
        """Times as bars, the longest the highest; letters of the status where there is no time."""
        times = [point.us for point in self.points if point is not None and point.us is not None]
        top = max(times, default=0.0)

        def bar(point: Point | None) -> str:
            if point is None:
                return " "
            if point.us is None or not top:
                return point.status[:1]
            return BARS[min(len(BARS) - 1, int(point.us / top * (len(BARS) - 1) + 0.5))]

        return "".join(map(bar, self.points))


def lines(history: History, op: str, cell: str | None = None) -> tuple[list[Kept], list[Line]]:
    """The matrices that have the op, and a line a cell. ``cell``: a glob over keys. Raises UsageError for none."""
    kept = history.matrices()
    found = history.points(op)
    if not found:
        known = ", ".join(history.ops()) or "nothing"
        raise UsageError(f"the history has no cell of {op!r}. It has: {known}.")
    kept = [one for one in kept if one.id in found]
    by_key: dict[str, dict[int, Point]] = {}
    for matrix, points in found.items():
        for point in points:
            by_key.setdefault(point.key, {})[matrix] = point
    wanted = {key: points for key, points in by_key.items() if cell is None or fits(key, cell)}
    if not wanted:
        raise UsageError(f"no cell of {op} fits {cell!r}. One is {min(by_key)}.")
    return kept, [Line(key, tuple(points.get(one.id) for one in kept)) for key, points in sorted(wanted.items())]


def to_json(op: str, kept: Sequence[Kept], found: Sequence[Line]) -> dict[str, Any]:
    return {
        "op": op,
        "matrices": [
            {"created": one.created, "version": one.version, "packages": one.packages, "note": one.note} for one in kept
        ],
        "cells": [
            {"cell": line.key, "changed": line.changed, "points": [_point(point) for point in line.points]}
            for line in found
        ],
    }


def _point(point: Point | None) -> dict[str, Any] | None:
    if point is None:
        return None
    return {
        "kernel": point.kernel or None,
        "status": point.status,
        "us": point.us,
        "low": point.low,
        "high": point.high,
    }


def require_plots() -> None:
    """Raise MissingPackage where matplotlib is not there: before anything is read."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingPackage("matplotlib", "plotting", "pip install 'kernelmux[plots]'") from error


def draw(op: str, kept: Sequence[Kept], found: Sequence[Line], path: Path, say: Callable[[str], None]) -> None:
    """Times over the matrices, a line a cell with its interval. Raises UsageError where nothing was timed."""
    require_plots()
    timed = [line for line in found if line.timed]
    if not timed:
        raise UsageError(f"no cell of {op} in the history has a time: only --live matrices have.")
    if len(timed) > 12:
        say(f"{len(timed)} cells have times; the plot shows the first 12. Choose with --cell.")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5), constrained_layout=True)
    for line in timed[:12]:
        places = [i for i, point in enumerate(line.points) if point is not None and point.us is not None]
        points = [line.points[i] for i in places]
        middle = [point.us for point in points if point is not None]
        low = [max(0.0, (p.us or 0.0) - (p.low or p.us or 0.0)) for p in points if p is not None]
        high = [max(0.0, (p.high or p.us or 0.0) - (p.us or 0.0)) for p in points if p is not None]
        label = line.key.replace("$", r"\$")
        axes.errorbar(places, middle, yerr=[low, high], marker="o", capsize=3, label=label)
    axes.set_xticks(range(len(kept)), [f"{one.version}\n{one.created[:10]}" for one in kept])
    axes.set_ylabel("microseconds a call")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{op} over the kept matrices".replace("$", r"\$"))
    axes.legend(fontsize="x-small")
    axes.grid(alpha=0.3)
    try:
        figure.savefig(path)
    except ValueError as error:
        raise UsageError(f"--plot {path}: {error}.") from error
    finally:
        pyplot.close(figure)
