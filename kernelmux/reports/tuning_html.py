"""A tuning report as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernelmux.reports import svg
from kernelmux.reports import tuning_words as say
from kernelmux.reports.page import bullets, element, facts, page, section, table, text
from kernelmux.reports.tuning import brief
from kernelmux.reports.tuning_charts import Plot, plots
from kernelmux.reports.words import NONE, listed, number, percent, seconds

WIDE = 1180  # the first plot has the page to itself


def render(report: Mapping[str, Any]) -> str:
    """The whole document, with the report's own value inside it."""
    title = f"Tuned tiles: {say.title(report)}"
    timed = bool(report["summary"]["timed"])
    sections = [
        ("plots", "Plots", _plots(report)),
        ("times", "Times and tiles" if timed else "Tiles", _rows(report)),
        ("reading", "How to read this", bullets(say.reading(report))),
        ("notes", "Notes", bullets(report["notes"]) if report["notes"] else ""),
        ("discards", "Discarded", _discards(report)),
        ("failures", "Failed", bullets(report["failures"]) if report["failures"] else "<p>No tile failed.</p>"),
        ("stages", "Time by stage", _stages(report) if report["seconds"] else ""),
        ("conditions", "Conditions", _conditions(report) if report["conditions"] else ""),
        ("provenance", "Provenance", _provenance(report)),
    ]
    shown = [(anchor, name, markup) for anchor, name, markup in sections if markup]
    links = "".join(element("li", element("a", text(name), href=f"#{anchor}")) for anchor, name, _ in shown)
    body = "".join(section(name, markup, anchor) for anchor, name, markup in shown)
    made = report["provenance"]
    foot = f"kernelmux {made['versions'].get('kernelmux', '')}".strip()
    return page(
        title,
        f'<a class="skip" href="#main">Skip to the report</a>\n<header>{_head(report)}\n'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>{_cards(report)}</header>\n'
        f'<main id="main">\n{body}</main>\n<footer>Tuning report of {text(foot)}. The data of this page is inside it, '
        "as JSON in the element <code>report</code>.</footer>",
        report,
    )


def _head(report: Mapping[str, Any]) -> str:
    tag = element("span", text(report["source"]), class_=f"tag {_word(report['source'])}")
    made = report["provenance"]["created"]
    about = [f"<code>{text(brief(report))}</code>", *([text(made)] if made else [])]
    return (
        f'<p class="eyebrow">kernelmux tuning report {tag}</p>\n<h1>{text(say.title(report))}</h1>\n'
        f'<p class="lead">{text(say.kind(report))}</p>\n<p class="lead">{" · ".join(about)}</p>'
    )


def _cards(report: Mapping[str, Any]) -> str:
    cards = (
        element(
            "div",
            f'<span class="name">{text(name)}</span><b>{text(figure)}</b><span>{text(said)}</span>',
            class_="card",
        )
        for name, figure, said in say.cards(report)
    )
    return element("div", "".join(cards), class_="cards")


def _plots(report: Mapping[str, Any]) -> str:
    figures = [_figure(plot, wide=i == 0) for i, plot in enumerate(plots(report))]
    return element("div", "\n".join(figures), class_="charts") if figures else ""


def _figure(plot: Plot, *, wide: bool) -> str:
    heading, caption = element("h3", text(plot.title)), element("figcaption", text(plot.caption))
    drawn = plot.inline(WIDE if wide else svg.WIDTH)
    return element("figure", f"{heading}\n{drawn}\n{caption}", class_="wide" if wide else None)


def _rows(report: Mapping[str, Any]) -> str:
    timed, roofline = bool(report["summary"]["timed"]), report["ceilings"] is not None
    shipped = report["shipped"]
    head = ["M", "chosen (up, down)", "default"] + ([shipped["engine"]] if shipped else [])
    numbers = ["µs each", "up + down", "95%", "default µs", "gain", "sort µs", "tied"] if timed else []
    numbers += ["% of roofline"] if timed and roofline else []
    rows = []
    for row in report["rows"]:
        cells = [str(row["m"]), _pair(row), _pair(row["default"], row)]
        cells += [_pair(row["shipped"], row)] if shipped else []
        cells += _times(row, roofline=roofline) if timed else []
        rows.append(cells)
    right = [0, *range(len(head), len(head) + len(numbers))]
    return table([*head, *numbers], rows, "Chosen and default tiles at each M, with their times", right)


def _times(row: Mapping[str, Any], *, roofline: bool) -> list[str]:
    us = element("b", number(row["us"])) if row["us"] is not None else text(say.time_note(row))
    gain = say.gain(row)
    shown = element("span", text(gain), class_=_word(row["verdict"])) if row["verdict"] else text(gain)
    each = "".join(element("span", number(row[key])) for key in ("up_us", "down_us")) if row["us"] is not None else NONE
    cells = [
        element("span", each, class_="pair"), us, say.half(row), number(row["default_us"]), shown,
        number(row["sort_us"]), say.ties(row),
    ]  # fmt: skip
    if not roofline:
        return cells
    bound = element("small", text(row["bound"] or "")) if row["roofline"] else ""
    return [*cells, f"{percent(row['roofline'], 0)} {bound}"]


def _word(value: object) -> str:
    """A class name: one of the words the style sheet knows."""
    return str(value) if value in ("faster", "slower", "tie", "same", "measured", "predicted") else ""


def _pair(pair: Mapping[str, Any] | None, chosen: Mapping[str, Any] | None = None) -> str:
    """Both tiles, one below the other; those equal to the chosen one stand back."""
    if not pair:
        return NONE
    lines = []
    for side in ("up", "down"):
        same = chosen is not None and pair[side] == chosen[side]
        lines.append(element("span", text(say.tile(pair[side])), class_="same" if same else None))
    return element("span", "".join(lines), class_="tile")


def _discards(report: Mapping[str, Any]) -> str:
    if not report["discards"]:
        return "<p>No tile was discarded.</p>"
    rows = [
        [text(d["reason"]), f"{d['up']:,}", f"{d['down']:,}", listed(d["ms"]) if d["ms"] else "every M"]
        for d in report["discards"]
    ]
    return table(["reason", "up", "down", "at M"], rows, "Tiles discarded before timing, by reason", [1, 2])


def _stages(report: Mapping[str, Any]) -> str:
    bars = "".join(f'<i style="flex: {s["seconds"]:.2f}"></i>' for s in report["seconds"])
    rows = [[text(s["stage"]), seconds(s["seconds"])] for s in report["seconds"]]
    rows.append(["total", element("b", seconds(report["total_seconds"]))])
    bar = element("div", bars, class_="bars", aria_hidden="true")
    return bar + table(["stage", "time"], rows, "Time by stage", [1])


def _conditions(report: Mapping[str, Any]) -> str:
    whens = list(report["conditions"])
    keys = list(dict.fromkeys(key for seen in report["conditions"].values() for key in seen))
    rows = [
        [text(say.CONDITIONS.get(key, key)), *(text(report["conditions"][when].get(key, NONE)) for when in whens)]
        for key in keys
    ]
    return table(["of the GPU", *whens], rows, "State of the GPU before and after", range(1, len(whens) + 1))


def _provenance(report: Mapping[str, Any]) -> str:
    return facts(
        (name, element("code", text(value)) if is_code else text(value))
        for name, value, is_code in say.provenance(report)
    )
