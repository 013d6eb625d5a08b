from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmux.device import resolve_device
from kernelmux.reports import markdown, page, svg
from kernelmux.reports.tuning import Provenance, Shipped, build
from kernelmux.reports.tuning_charts import plots
from kernelmux.reports.tuning_output import render
from tests.unit.reports.small import OTHER, TILE, line, measured, predicted

H200 = resolve_device("h200")
EVIL = "<img src=x onerror=alert(1)>|`*\"'&[x](javascript:1)</script>"
VOID = {"meta", "link", "br", "hr", "img", "input"}


def report(tuned, device=H200, **more):
    made = Provenance(driver="580.1", versions={"triton": "3.6.0"}, kernel={"name": "k", "source_hash": "caf4"})
    return build(tuned, device=device, provenance=more.pop("provenance", made), **more)


class Page(HTMLParser):
    """Elements with their attributes; fails on one that is closed wrongly."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def evil():
    tuned = measured()
    tuned |= {"notes": [EVIL], "failures": [EVIL], "device": EVIL}
    tuned["discards"] = {"up": {EVIL: 1}, "down": {}}
    tuned["seconds"] = {EVIL: 1.0, "total": 1.0}
    tuned["conditions"] = {EVIL: {EVIL: EVIL}}
    made = Provenance(driver=EVIL, versions={EVIL: EVIL}, kernel={"name": EVIL, "source_hash": EVIL}, created=EVIL,
                      command=EVIL, host=EVIL, files=[EVIL])  # fmt: skip
    shipped = Shipped(EVIL, EVIL, {1: {"up": OTHER, "down": OTHER}})
    return report(tuned, device=None, provenance=made, shipped=shipped, model=EVIL)


@pytest.mark.parametrize("value", [report(measured()), report(predicted()), report(measured(), device=None), evil()])
def test_the_page_is_well_formed_and_refers_to_nothing_outside(value):
    text = render(value, "html")
    seen = Page(text)
    ids = [attrs["id"] for _, attrs in seen.elements if attrs.get("id")]
    assert len(ids) == len(set(ids))
    for tag, attrs in seen.elements:
        assert tag not in {"img", "link", "iframe", "object", "embed", "base", "form"}
        assert not any(name.startswith("on") or name in ("src", "srcset", "action") for name in attrs)
        if "href" in attrs:
            assert attrs["href"].startswith("#")
            assert attrs["href"][1:] in ids
        if tag == "script":
            assert attrs["type"] == "application/json"
        for name in ("aria-labelledby",):
            assert set((attrs.get(name) or "").split()) <= set(ids)
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


@pytest.mark.parametrize("value", [report(measured()), report(predicted()), evil()])
def test_the_page_carries_its_data(value):
    found = re.search(r'<script type="application/json" id="report">(.*?)</script>', render(value, "html"), re.DOTALL)
    assert json.loads(found[1]) == json.loads(json.dumps(value))
    assert json.loads(render(value, "json")) == json.loads(json.dumps(value))


def test_hostile_text_stays_text_on_the_page():
    seen = Page(render(evil(), "html"))
    assert not [tag for tag, _ in seen.elements if tag == "img"]
    assert "".join(seen.texts).count("<img src=x onerror=alert(1)>") > 10


def test_hostile_text_stays_text_in_markdown():
    text = render(evil(), "md")
    outside = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", text)
    assert "<img" not in outside
    assert "](javascript" not in outside.replace("\\[", "").replace("\\]", "")
    tables = [row for row in text.splitlines() if row.startswith("|")]
    assert all(row.endswith("|") for row in tables)


def test_markdown_rows_have_as_many_cells_as_their_head():
    for value in (report(measured()), report(predicted()), evil()):
        width = 0
        for row in render(value, "md").splitlines():
            cells = len(re.findall(r"(?<!\\)\|", row))
            if not row.startswith("|"):
                width = 0
            elif width == 0:
                width = cells
            else:
                assert cells == width, row


def test_the_times_in_markdown_are_the_golden_ones():
    text = render(report(measured()), "md")
    assert (
        "| M | up µs | down µs | up + down µs | 95% | default µs | gain | sort µs | tied | % of roofline | bound by |"
        in text
    )
    assert "| 1 | 12.00 | 8.00 | 20.00 | ±0.50 | 25.00 | +20.0% | 2.50 | 2 | 38% | memory |" in text
    assert "| 8 | 36.00 | 24.00 | 60.00 | ±0.50 | 60.50 | tie (+0.8%) | 2.50 | 2 | 83% | memory |" in text
    assert "| 64 | 84.00 | 56.00 | 140.0 | ±0.50 | 140.0 | the default | 2.50 | 2 | 88% | memory |" in text
    assert "| 1024 | 120.0 | 80.00 | 200.0 | ±0.50 | 190.0 | −5.3% | 2.50 | 2 | 64% | memory |" in text
    assert "- Faster than the default: **1 of 4 M** (1 tie, 1 slower, 1 time the default itself)" in text
    assert "| behind the first 128 of the order | 43 | 1,112 | 64, 1024 |" in text
    assert "| throttled by | none | power cap, temperature |" in text
    assert "| Kernel source hash | `caf4` |" in text


def test_the_tiles_in_markdown_are_the_golden_ones():
    shipped = Shipped("vllm 0.33.0", "NVIDIA_H200", {1: {"up": OTHER, "down": TILE}})
    text = render(report(measured(), shipped=shipped), "md")
    chosen, default = "`16x64x128 g8 w4 s3`", "`16x64x128 g1 w4 s4`"
    assert f"| 1 | {chosen} | {chosen} | {default} | {chosen} / {default} |" in text
    assert "| 1024 | `64x256x128 g1 w8 s4 tma` | `64x256x128 g1 w8 s4 tma` | `16x64x128 g1 w4 s4` | – |" in text


def test_a_predicted_report_shows_no_times():
    for form in ("md", "html"):
        text = render(report(predicted()), form)
        assert "nothing was timed" in text
        assert "up + down" not in text
        assert "% of" not in text
    assert [plot.name for plot in plots(report(predicted()))] == ["block-m"]


def test_a_tie_is_called_a_tie_on_the_page():
    assert '<span class="tie">tie (+0.8%)</span>' in render(report(measured()), "html")


def test_a_missing_default_is_a_dash():
    tuned = measured()
    tuned["table"] = [{**line(8, OTHER, 60.0, None), "default": None}]
    value = report(tuned)
    assert "| 8 | 36.00 | 24.00 | 60.00 | ±0.50 | – | – |" in render(value, "md")
    assert Page(render(value, "html"))
    assert "gain" not in [plot.name for plot in plots(value)]


def test_a_plot_file_is_xml_and_has_its_own_colours():
    for plot in plots(report(measured())):
        root = ET.fromstring(plot.file())
        assert root.tag.endswith("svg")
        assert "prefers-color-scheme: dark" in plot.file()
        assert "http" not in plot.file().replace('xmlns="http://www.w3.org/2000/svg"', "")


@given(st.lists(st.floats(0.01, 1e7), min_size=1, max_size=30))
def test_every_value_lies_inside_its_logarithmic_axis(values):
    axis = svg.log_axis("x", values)
    assert all(-1e-6 <= axis.place(v) <= 1 + 1e-6 for v in values)
    assert axis.low < axis.high


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30))
def test_every_value_and_zero_lie_inside_their_linear_axis(values):
    axis = svg.linear_axis("x", values, str)
    assert all(-1e-6 <= axis.place(v) <= 1 + 1e-6 for v in (*values, 0.0))
    assert 2 <= len(axis.ticks) <= 9


@given(st.text(max_size=60))
def test_any_text_survives_the_page(words):
    seen = Page(page.element("p", page.text(words), title=words))
    assert len(seen.elements) == 1


@given(st.text(alphabet="`|a\\ ", min_size=1, max_size=20).filter(lambda t: t.strip()))
def test_a_code_span_is_longer_fenced_than_its_text(words):
    made = markdown.code(words)
    fence = re.match(r"`+", made)[0]
    assert made.endswith(fence)
    assert fence not in re.findall(r"`+", made[len(fence) : -len(fence)])
