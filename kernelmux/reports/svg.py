"""Small plots as inline SVG, written by hand: colours come from ``chart.css``, which knows light, dark and paper.

A mark has its value as a tooltip; series differ by shape and dash as well as by colour. The numbers behind a plot
belong into a table beside it: to a screen reader the plot is one image with a description.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kernelmux.reports.page import element, style, text

WIDTH, HEIGHT = 640, 340
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 40, 48
MARK = 4.2


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: what it counts, its ends, its ticks and how they are written."""

    label: str
    low: float
    high: float
    ticks: Sequence[float]
    log: bool = False
    form: Callable[[float], str] = field(default=lambda value: f"{value:g}")

    def place(self, value: float) -> float:
        """Where ``value`` lies: 0 at the low end, 1 at the high one."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return (value - low) / (high - low) if high > low else 0.5


@dataclass(frozen=True, slots=True)
class Point:
    """One mark: its place, what the tooltip says, and the ends of its interval."""

    x: float
    y: float
    said: str = ""
    low: float | None = None
    high: float | None = None
    hollow: bool = False


@dataclass(frozen=True, slots=True)
class Series:
    """Points under one name. ``look`` is a class of chart.css: chosen, default, shipped or floor."""

    name: str
    look: str
    points: Sequence[Point]
    marks: bool = True
    line: bool = True
    stems: bool = False  # a line from each mark down to zero


def log_axis(label: str, values: Sequence[float], form: Callable[[float], str] = "{:,g}".format) -> Axis:
    """Decades with 1, 2 and 5; ends on ticks."""
    low, high = min(values), max(values)
    steps = [
        f * 10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for f in (1, 2, 5)
    ]
    first = max((s for s in steps if s <= low * 1.0001), default=low)
    last = min((s for s in steps if s >= high * 0.9999), default=high)
    ticks = [s for s in steps if first <= s <= last]
    if last <= first:
        first, last = first / 2, last * 2
    return Axis(label, first, last, ticks, log=True, form=form)


def doubling_axis(label: str, values: Sequence[float], pad: float = 1.0) -> Axis:
    """Powers of two, as token counts and tile sizes go; ``pad`` widens both ends by this factor."""
    low, high = min(values), max(values)
    ticks = [2.0**e for e in range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)]
    ticks = [t for t in ticks if low / pad <= t <= high * pad]
    while len(ticks) > 14:
        ticks = ticks[::2]
    wide = pad if high > low else 2 * pad
    return Axis(label, low / wide, high * wide, ticks, log=True)


def linear_axis(label: str, values: Sequence[float], form: Callable[[float], str]) -> Axis:
    """Round steps around ``values`` and zero."""
    low, high = min(0.0, *values), max(0.0, *values)
    if high - low < 1e-6:
        high = low + 0.01
    span = high - low
    unit = 10.0 ** math.floor(math.log10(span / 4))
    step = next(unit * f for f in (1, 2, 5, 10) if span / (unit * f) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Axis(label, first * step, last * step, [i * step for i in range(first, last + 1)], form=form)


def chart(
    name: str, title: str, description: str, x: Axis, y: Axis, series: Sequence[Series], width: int = WIDTH
) -> str:
    """An ``<svg>`` element for a page. ``name`` makes its ids unique there."""
    return _svg(name, title, description, x, y, series, width, "")


def standalone(name: str, title: str, description: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """The same as a file of its own, with its colours inside."""
    return _svg(name, title, description, x, y, series, WIDTH, f"<style>{style('chart.css')}</style>") + "\n"


def _svg(
    name: str, title: str, description: str, x: Axis, y: Axis, series: Sequence[Series], width: int, sheet: str
) -> str:
    inner = [
        sheet,
        element("title", text(title), id=f"{name}-title"),
        element("desc", text(description), id=f"{name}-desc"),
        f'<rect class="paper" width="{width}" height="{HEIGHT}"/>',
        _axes(x, y, width),
        *(_draw(one, x, y, width) for one in series if one.points),
        _legend([one for one in series if one.points]),
    ]
    return element(
        "svg", "\n".join(part for part in inner if part), xmlns="http://www.w3.org/2000/svg", class_="chart",
        viewBox=f"0 0 {width} {HEIGHT}", role="img", aria_labelledby=f"{name}-title {name}-desc",
    )  # fmt: skip


def _x(axis: Axis, value: float, width: int) -> float:
    return LEFT + axis.place(value) * (width - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.place(value) * (HEIGHT - TOP - BOTTOM)


def _axes(x: Axis, y: Axis, width: int) -> str:
    parts = []
    bottom, right = HEIGHT - BOTTOM, width - RIGHT
    for tick in y.ticks:
        at = _y(y, tick)
        kind = "zero" if tick == 0 and not y.log else "grid"
        parts.append(f'<line class="{kind}" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{text(y.form(tick))}</text>'
        )
    for tick in x.ticks:
        at = _x(x, tick, width)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{text(x.form(tick))}</text>'
        )
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    middle = (LEFT + right) / 2
    parts.append(f'<text class="label" x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{text(x.label)}</text>')
    turned = f"translate(14 {(TOP + bottom) / 2:.0f}) rotate(-90)"
    parts.append(f'<text class="label" transform="{turned}" text-anchor="middle">{text(y.label)}</text>')
    return "\n".join(parts)


def _draw(series: Series, x: Axis, y: Axis, width: int) -> str:
    parts = []
    places = [(_x(x, p.x, width), _y(y, p.y)) for p in series.points]
    if series.line and len(places) > 1:
        way = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        parts.append(f'<polyline class="line" points="{way}"/>')
    for point, (a, b) in zip(series.points, places, strict=True):
        if series.stems:
            parts.append(f'<line class="stem" x1="{a:.1f}" x2="{a:.1f}" y1="{_y(y, 0):.1f}" y2="{b:.1f}"/>')
        if point.low is not None and point.high is not None:
            parts.append(_whisker(a, _y(y, point.low), _y(y, point.high)))
        if series.marks:
            parts.append(_mark(series.look, a, b, point.said, hollow=point.hollow))
    return element("g", "\n".join(parts), class_=f"series {series.look}")


def _whisker(a: float, low: float, high: float) -> str:
    return f'<path class="whisker" d="M{a - 3:.1f},{low:.1f}h6m-3,0V{high:.1f}m-3,0h6"/>'


def _mark(look: str, a: float, b: float, said: str, *, hollow: bool = False) -> str:
    kind = "mark hollow" if hollow else "mark"
    tip = f"<title>{text(said)}</title>" if said else ""
    if look == "default":
        side = 2 * MARK
        return f'<rect class="{kind}" x="{a - MARK:.1f}" y="{b - MARK:.1f}" width="{side}" height="{side}">{tip}</rect>'
    if look == "shipped":
        reach = MARK + 1.3
        way = f"M{a:.1f},{b - reach:.1f}l{reach},{reach}l{-reach},{reach}l{-reach},{-reach}z"
        return f'<path class="{kind}" d="{way}">{tip}</path>'
    return f'<circle class="{kind}" cx="{a:.1f}" cy="{b:.1f}" r="{MARK}">{tip}</circle>'


def _legend(series: Sequence[Series]) -> str:
    parts, at = [], float(LEFT)
    for one in series:
        line = f'<line class="line" x1="{at:.0f}" x2="{at + 24:.0f}" y1="18" y2="18"/>' if one.line else ""
        hollow = all(point.hollow for point in one.points)
        mark = _mark(one.look, at + 12, 18, "", hollow=hollow) if one.marks else ""
        parts.append(element("g", line + mark, class_=f"series {one.look}"))
        parts.append(f'<text class="legend" x="{at + 30:.0f}" y="22">{text(one.name)}</text>')
        at += 30 + 6.6 * len(one.name) + 18
    return "\n".join(parts)
