from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmux.reports import matrix_html
from kernelmux.reports.matrix import Matrix
from kernelmux.reports.matrix_columns import LETTERS, LOOKS, backends, column
from kernelmux.reports.matrix_packed import CELL_FIELDS, pack
from tests.unit.reports.matrices import EVIL, evil, header, large, small
from tests.unit.reports.test_tuning_rendering import Page


def embedded(document: str) -> dict:
    found = re.findall(r'<script type="application/json" id="matrix">(.*?)</script>', document, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


def cells_of(data: dict) -> list[list[int]]:
    """The rows of packed JSON again."""

    def values(found: dict) -> list[int]:
        if "values" in found:
            return found["values"]
        runs = found["runs"]
        return [value for value, n in zip(runs[::2], runs[1::2], strict=True) for _ in range(n)]

    named = {name: values(found) for name, found in data["columns"].items()}
    return [list(row) for row in zip(*(named[name] for name in CELL_FIELDS), strict=True)]


@pytest.mark.parametrize("matrix", [small(), evil(), Matrix(header(()), ())], ids=["small", "evil", "empty"])
def test_it_is_one_well_formed_document_that_loads_nothing(matrix):
    document = matrix_html.page(matrix)
    page = Page(document)
    tags = [tag for tag, _ in page.elements]
    assert tags[:2] == ["html", "head"]
    assert not {"link", "img", "iframe", "object", "embed", "base", "audio", "video", "source"} & set(tags)
    given = [pair for _, attributes in page.elements for pair in attributes.items()]
    loads = [value for name, value in given if name in ("src", "srcset", "href", "action")]
    assert loads == ["#grid"], "the link that skips to the map"
    assert not [name for name, _ in given if name.startswith("on") or name == "style"]


def test_neither_script_nor_style_asks_for_anything():
    code = matrix_html.script() + matrix_html._sheet()
    assert not re.search(r"url\(|@import|fetch\(|import\(|XMLHttpRequest|WebSocket|EventSource|Worker|sendBeacon", code)


def test_only_its_own_script_and_style_may_run():
    document = matrix_html.page(evil())
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', document)[1]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for kind, source in (
        ("script", document.rsplit("<script>", 1)[1].split("</script>")[0]),
        ("style", re.search(r"<style>(.*?)</style>", document, re.DOTALL)[1]),
    ):
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert document.count("<script") == 2, "the data and the program"


def test_hostile_text_is_escaped_in_markup_and_in_the_data():
    document = matrix_html.page(evil())
    assert "<img" not in document
    assert document.count("</script>") == 2
    assert EVIL in embedded(document)["texts"], "and comes back as it was"
    assert EVIL in " ".join(Page(document).texts)


def test_the_script_never_reads_markup():
    code = matrix_html.script()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\(|DOMParser", code)
    assert "</script" not in matrix_html.script()
    assert "<!--" not in matrix_html.script()


def _flat(result: dict) -> list[tuple[str, object]]:
    times = result.get("time_us") or {}
    notes = [("note", note) for note in result.get("notes", ())]
    return [(key, one) for key, one in result.items() if key not in ("time_us", "notes")] + [*times.items(), *notes]


@pytest.mark.parametrize("matrix", [small(), evil(), large(5_000)], ids=["small", "evil", "large"])
def test_the_page_holds_all_that_packed_json_holds(matrix):
    packed, data = pack(matrix), embedded(matrix_html.page(matrix))
    assert cells_of(data) == packed["cells"]
    for name in ("header", "texts", "reasons", "cases"):
        assert data[name] == json.loads(json.dumps(packed[name])), name
    flat = [(key, one) for result in packed["results"] for key, one in _flat(result)]
    assert [(key, one) for result in data["results"] for key, one in _flat(result)] == [
        (key, pytest.approx(one, rel=1e-5) if isinstance(one, float) else one) for key, one in flat
    ]
    for found, row in zip(data["outcomes"], packed["outcomes"], strict=True):
        *words, conditions, outranked, rejected = found
        assert words == row[:10]
        assert data["lists"][conditions] == row[10]
        assert [data["others"][i] for i in data["lists"][outranked]] == row[11]
        assert data["lists"][rejected] == row[12]


@given(st.lists(st.integers(-1, 3), max_size=40))
def test_a_column_is_the_shorter_of_two_forms_and_loses_nothing(values):
    found = column(values)
    (form,) = found.values()
    assert len(form) <= len(values)
    data = {"columns": dict.fromkeys(CELL_FIELDS, found)}
    assert [row[0] for row in cells_of(data)] == values


def test_fifty_thousand_cells_are_under_three_megabytes():
    matrix = large()
    assert len(matrix.cells) >= 50_000
    assert len(matrix_html.page(matrix).encode()) < 3_000_000


@given(st.sets(st.text(min_size=1, max_size=6), max_size=30))
def test_no_two_backends_share_their_letters(strange):
    found = backends([*LETTERS, *strange])
    letters = [code for _, code, _ in found]
    assert len(set(letters)) == len(letters)
    assert {name: code for name, code, _ in found if name in LETTERS} == LETTERS
    assert all(look in {f"b{i}" for i in range(LOOKS)} for _, _, look in found)


def test_every_look_has_its_colour_in_light_and_dark():
    sheet = (matrix_html.ASSETS / "matrix.css").read_text(encoding="utf-8")
    for i in range(LOOKS):
        assert re.search(rf"--b{i}: light-dark\([^;]*;", sheet)
        assert f".b{i} {{ --fill: var(--b{i}); }}" in sheet


def test_controls_have_names():
    page = Page(matrix_html.page(small()))
    by_id = {given.get("id"): (tag, given) for tag, given in page.elements}
    assert by_id["grid"][1]["role"] == "grid"
    assert by_id["grid"][1]["aria-label"]
    assert by_id["status"][1]["aria-live"] == "polite"
    for name in by_id["grid"][1]["aria-describedby"].split():
        assert name in by_id


def test_the_assets_are_packaged():
    text = (matrix_html.ASSETS.parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    patterns = re.search(r'^kernelmux = \["py\.typed"(.*)\]', text, re.MULTILINE)[1]
    for asset in matrix_html.ASSETS.iterdir():
        assert f'"**/*{asset.suffix}"' in patterns
