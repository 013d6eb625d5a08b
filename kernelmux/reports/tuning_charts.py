"""The plots of a tuning report: time over M, gain over the default, BLOCK_SIZE_M over M."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kernelmux.reports import svg
from kernelmux.reports.svg import Axis, Point, Series
from kernelmux.reports.words import number, percent, signed

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot: what it is called, what it shows in words, and the drawing."""

    name: str  # part of ids and file names
    title: str
    caption: str
    x: Axis
    y: Axis
    series: Sequence[Series]

    def inline(self, width: int = svg.WIDTH) -> str:
        """For a page."""
        return svg.chart(f"plot-{self.name}", self.title, self.caption, self.x, self.y, self.series, width)

    def file(self) -> str:
        """For a file of its own."""
        return svg.standalone(f"plot-{self.name}", self.title, self.caption, self.x, self.y, self.series)


def plots(report: Mapping[str, Any]) -> list[Plot]:
    """What can be drawn of ``report``: a predicted table has no times, only its tiles."""
    rows: Sequence[Row] = report["rows"]
    made = (_time(rows, report), _gain(rows), _block_m(rows, report)) if rows else ()
    return [plot for plot in made if plot is not None]


def _time(rows: Sequence[Row], report: Mapping[str, Any]) -> Plot | None:
    if not any(row["us"] for row in rows):
        return None
    chosen = _points(rows, "us", lambda row: f"M={row['m']}: {number(row['us'])} µs chosen")
    default = _points(rows, "default_us", lambda row: f"M={row['m']}: {number(row['default_us'])} µs default")
    floor = _points(rows, "floor_us", lambda row: "")
    series = [
        Series("floor", "floor", floor, marks=False),
        Series("default", "default", default),
        Series("chosen", "chosen", chosen),
    ]
    values = [point.y for one in series for point in one.points]
    caption = "Microseconds of up + down over M, both axes logarithmic: the chosen pair and the default."
    if floor:
        measured = report["ceilings"]["source"] == "measured"
        caption += f" The floor is the roofline at {'measured ceilings' if measured else 'data sheet rates'}."
    return Plot("time", "Time over M", caption, _m_axis(rows), svg.log_axis("µs (up + down)", values), series)


def _gain(rows: Sequence[Row]) -> Plot | None:
    compared = [row for row in rows if row["gain"] is not None]
    if not compared:
        return None
    looks = (
        ("faster", "chosen", ("faster",)), ("tie, or the default itself", "equal", ("tie", "same")),
        ("slower", "worse", ("slower",)),
    )  # fmt: skip
    series = [
        Series(name, look, [_gain_point(row) for row in compared if row["verdict"] in verdicts], line=False, stems=True)
        for name, look, verdicts in looks
    ]
    values = [v for one in series for p in one.points for v in (p.y, p.low, p.high) if v is not None]
    axis = svg.linear_axis("less time than the default", values, lambda v: percent(v, 0 if max(values) > 0.03 else 1))
    caption = (
        "How much less time than the default the chosen pair takes, with the 95% interval of its time. Hollow: a tie."
    )
    return Plot("gain", "Gain over the default", caption, _m_axis(compared), axis, series)


def _gain_point(row: Row) -> Point:
    low = high = None
    if row["interval_us"] and row["verdict"] != "same":
        low, high = (1 - end / row["default_us"] for end in reversed(row["interval_us"]))
    hollow = row["verdict"] in ("tie", "same")
    return Point(row["m"], row["gain"], f"M={row['m']}: {signed(row['gain'])} {row['verdict']}", low, high, hollow)


def _block_m(rows: Sequence[Row], report: Mapping[str, Any]) -> Plot:
    series = [Series("default", "default", list(_sizes(rows, "default")))]
    if report["shipped"]:
        series.append(Series(report["shipped"]["engine"], "shipped", list(_sizes(rows, "shipped"))))
    series.append(Series("chosen", "chosen", [_size(row["m"], row["up"], "chosen") for row in rows]))
    values = [point.y for one in series for point in one.points]
    caption = "BLOCK_SIZE_M over M; both projections share it, as they walk one order of tokens."
    return Plot(
        "block-m", "BLOCK_SIZE_M over M", caption, _m_axis(rows), svg.doubling_axis("BLOCK_SIZE_M", values, 1.3), series
    )


def _sizes(rows: Sequence[Row], key: str) -> Iterator[Point]:
    for row in rows:
        if row[key]:
            yield _size(row["m"], row[key]["up"], key)


def _size(m: int, tile: Mapping[str, Any], who: str) -> Point:
    return Point(m, tile["BLOCK_SIZE_M"], f"M={m}: {tile['BLOCK_SIZE_M']} {who}")


def _points(rows: Sequence[Row], key: str, said: Callable[[Row], str]) -> list[Point]:
    return [Point(row["m"], row[key], said(row)) for row in rows if row[key]]


def _m_axis(rows: Sequence[Row]) -> Axis:
    return svg.doubling_axis("M (tokens)", [row["m"] for row in rows], 1.15)
