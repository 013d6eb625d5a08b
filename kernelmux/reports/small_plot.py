"""A picture of races: how near each contestant comes to a copy, over M, a panel for each op and H. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kernelmux.errors import MissingPackage, StoreError

_MARKS = "osD^vPX*<>"


def require() -> None:
    """Raise MissingPackage where there is no matplotlib."""
    if find_spec("matplotlib") is None:
        raise MissingPackage("matplotlib", "drawing a plot", "pip install 'kernelmux[plots]'")


def draw(races: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Write the plot; the file's suffix is its format. Raises MissingPackage, or StoreError where it cannot be written.

    ``races`` are what ``Race.to_json`` gives.
    """
    require()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = sorted({(race["op"], race["h"], race["dtype"]) for race in races})
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(5.2 * across, 3.6 * down + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    names = sorted({one["name"] for race in races for one in race["contestants"] if _drawn(one)})
    for i, (op, h, dtype) in enumerate(panels):
        axes = figure.add_subplot(down, across, i + 1)
        for j, name in enumerate(names):
            line = [
                (race["m"], one["percent_of_copy"])
                for race in sorted(races, key=lambda race: race["m"])
                if (race["op"], race["h"], race["dtype"]) == (op, h, dtype)
                for one in race["contestants"]
                if one["name"] == name and _drawn(one)
            ]
            if line:
                xs, ys = zip(*line, strict=True)
                axes.plot(xs, ys, marker=_MARKS[j % len(_MARKS)], markersize=4, linewidth=1.2, label=name)
        axes.axhline(100, color="gray", linewidth=0.8, linestyle="--")
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.set_title(f"{op}, H={h}, {dtype}", fontsize=10)
        axes.set_xlabel("M (rows)")
        axes.set_ylabel("% of the speed of a copy")
        axes.legend(fontsize=6)
    figure.suptitle(title, fontsize=11)
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:  # ValueError: a format matplotlib does not know
        raise StoreError(f"cannot write the plot {path}: {error}. Name a .png, .svg or .pdf you may write.") from error


def _drawn(one: Mapping[str, Any]) -> bool:
    return one["kind"] != "copy" and one.get("percent_of_copy") is not None
