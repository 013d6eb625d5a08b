"""A tuning report as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kernelmux.reports import tuning_words as say
from kernelmux.reports.markdown import code, table, text
from kernelmux.reports.words import NONE, listed, number, percent, seconds


def render(report: Mapping[str, Any], images: Sequence[tuple[str, str]] = ()) -> str:
    """The whole document. ``images``: (title, file name) of plots that lie beside it."""
    parts = [f"# Tuned tiles: {text(say.title(report))}", text(say.kind(report))]
    parts.append(
        "\n".join(f"- {text(name)}: **{text(figure)}** ({text(said)})" for name, figure, said in say.cards(report))
    )
    parts += [f"![{text(title)}]({file})" for title, file in images]
    if report["summary"]["timed"]:
        parts += ["## Times", _times(report)]
    parts += ["## Tiles", _tiles(report)]
    parts += ["## How to read this", "\n".join(f"- {text(line)}" for line in say.reading(report))]
    if report["notes"]:
        parts += ["## Notes", "\n".join(f"- {text(line)}" for line in report["notes"])]
    parts += ["## Discarded", _discards(report)]
    failures = report["failures"]
    parts += ["## Failed", "\n".join(f"- {text(f)}" for f in failures) if failures else "No tile failed."]
    if report["seconds"]:
        parts += ["## Time by stage", _stages(report)]
    if report["conditions"]:
        parts += ["## Conditions", _conditions(report)]
    rows = [[text(name), code(value) if is_code else text(value)] for name, value, is_code in say.provenance(report)]
    parts += ["## Provenance", table(["", ""], rows)]
    return "\n\n".join(parts) + "\n"


def _times(report: Mapping[str, Any]) -> str:
    roofline = report["ceilings"] is not None
    head = ["M", "up µs", "down µs", "up + down µs", "95%", "default µs", "gain", "sort µs", "tied"]
    head += ["% of roofline", "bound by"] if roofline else []
    rows = []
    for row in report["rows"]:
        us = number(row["us"]) if row["us"] is not None else say.time_note(row)
        cells = [
            str(row["m"]), number(row["up_us"]), number(row["down_us"]), us, say.half(row), number(row["default_us"]),
            say.gain(row), number(row["sort_us"]), say.ties(row),
        ]  # fmt: skip
        cells += [percent(row["roofline"], 0), row["bound"] or NONE] if roofline else []
        rows.append([text(cell) for cell in cells])
    return table(head, rows, right=range(10))


def _tiles(report: Mapping[str, Any]) -> str:
    shipped = report["shipped"]
    head = ["M", "up", "down", "default"] + ([f"{text(shipped['engine'])}"] if shipped else [])
    rows = []
    for row in report["rows"]:
        cells = [str(row["m"]), *(code(say.tile(row[side])) for side in ("up", "down"))]
        cells += [_pair(row[key]) for key in ("default", *(("shipped",) if shipped else ()))]
        rows.append(cells)
    return table(head, rows, right=[0])


def _pair(pair: Mapping[str, Any] | None) -> str:
    if not pair:
        return NONE
    up, down = say.tile(pair["up"]), say.tile(pair["down"])
    return code(up) if up == down else f"{code(up)} / {code(down)}"


def _discards(report: Mapping[str, Any]) -> str:
    if not report["discards"]:
        return "No tile was discarded."
    rows = [
        [text(d["reason"]), f"{d['up']:,}", f"{d['down']:,}", listed(d["ms"]) if d["ms"] else "every M"]
        for d in report["discards"]
    ]
    return table(["reason", "up", "down", "at M"], rows, right=[1, 2])


def _stages(report: Mapping[str, Any]) -> str:
    rows = [[text(s["stage"]), seconds(s["seconds"])] for s in report["seconds"]]
    rows.append(["**total**", seconds(report["total_seconds"])])
    return table(["stage", "time"], rows, right=[1])


def _conditions(report: Mapping[str, Any]) -> str:
    whens = list(report["conditions"])
    keys = list(dict.fromkeys(key for seen in report["conditions"].values() for key in seen))
    rows = [
        [text(say.CONDITIONS.get(key, key)), *(text(report["conditions"][when].get(key, NONE)) for when in whens)]
        for key in keys
    ]
    return table(["", *map(text, whens)], rows, right=range(1, len(whens) + 1))
