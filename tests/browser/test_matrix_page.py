"""The matrix page in a real browser: clicks, filters, keys, links, colours, hostile text, paper."""

from __future__ import annotations

import base64

import pytest

from tests.unit.reports.matrices import EVIL, TOKENS, large

H100 = "#cell=op_01/fp8_block/silu/bfloat16/H=4096/h100-sxm/64"


def test_the_page_opens_quietly_and_says_how_much_there_is(see):
    see("small")
    assert see.status == "72 cells"
    assert see.rows == ["op_00, bf16", "op_01, fp8_block · silu · bf16", "op_02, nvfp4 · bf16"]
    assert see.columns == ["t4", "h100-sxm", "b200"], "by capability"
    assert see.explanation == ""


def test_a_click_opens_the_explanation(see):
    see("small").click(see.tile("op_01", "h100-sxm"))
    said = see.explanation
    assert "op_01 on h100-sxm" in said
    assert "kernelmux.op[cutlass]" in said, "the chosen kernel"
    assert "it was the fastest at this size where it was measured (2)" in said, "why"
    assert "rule-2" in said
    assert "declared: its library says that it runs here" in said, "the evidence, in words"
    assert "Could run, outranked: 3" in said
    assert "runner-up\nkernelmux.op[cublas]" in said
    assert "Rejected: 2" in said
    assert said.count("it is for capability 10.0, 10.3 (variant 2); h100-sxm has capability 9.0") == 2
    assert said.count("Remedy: choose a backend made for this GPU, or run on one of those") == 2
    links = see.js("return [...document.querySelectorAll('#cell a[target]')].map((a) => [a.href, a.rel])")
    assert links == [[f"https://github.com/owner/library/pull/{i}", "noreferrer noopener"] for i in (1, 0, 1)]
    assert see.js("return document.querySelectorAll('[aria-selected=true]').length") == 1


def test_a_cell_without_a_kernel_says_so_first(see):
    see("small").click(see.tile("op_02", "t4"))
    assert "No kernel can run here" in see.explanation
    assert "Rejected: 2" in see.explanation


def test_the_token_counts_lead_from_cell_to_cell(see):
    see("small", H100).click("#cell nav a", "4096")
    assert "kernelmux.op[cublas]" in see.explanation
    assert see.hash.endswith("/h100-sxm/4096")
    assert see.js("return document.activeElement.getAttribute('aria-label')").startswith("M 4096"), "the focus stays"


def test_each_filter_narrows_and_all_of_them_together(see):
    see("small").click("#word .filter", "compiled")
    assert see.status == "21 of 72 cells"
    see.click("#backend .filter", "torch")
    assert see.status == "6 of 72 cells"
    see.click("#backend .filter", "cublas")
    assert see.status == "6 of 72 cells", "torch or cublas, and compiled"
    see.click("#word .filter", "compiled")
    assert see.status == "25 of 72 cells"
    see.click("#reset")
    assert see.status == "72 cells"
    see.choose("op", "op_02")
    assert see.rows == ["op_02, nvfp4 · bf16"]
    see.choose("arch", "9.0")
    assert see.columns == ["h100-sxm"]
    assert see.status == "8 of 72 cells"
    see.click("#m label", "1024")
    assert see.status == "1 of 72 cells"
    see.click("#reset")
    see.choose("scheme", "fp8_block")
    assert see.rows == ["op_01, fp8_block · silu · bf16"]
    see.choose("show", "none")
    assert see.status == "0 of 72 cells"
    assert see.js("return document.getElementById('nothing').innerText") == "No cell fits these filters."


def test_the_number_on_a_chip_is_what_it_would_show(see):
    see("small").choose("arch", "9.0")
    shown = see.js("return document.querySelector('#backend [data-value=cublas] small').textContent")
    see.click("#backend .filter", "cublas")
    assert see.status == f"{shown} of 72 cells"


@pytest.mark.parametrize(
    "words, cells",
    [("op_01", 24), ("b200", 24), ("blackwell", 0), ("rule-3 h100", 8), ('"variant 3)" B200', 8), ("signal", 0)],
)
def test_text_is_searched_in_all_a_cell_says(see, words, cells):
    see("small").type(words)
    assert see.status == f"{cells} of 72 cells"


def test_where_m_changes_the_choice(see):
    see("small").choose("show", "changes")
    assert "op_02" in " ".join(see.rows)
    assert see.status == "64 of 72 cells", "all but the GPU that has no kernel at any M"
    mixed = see.js("return document.querySelectorAll('#grid .mixed').length")
    assert mixed == 8


def test_the_keyboard_goes_everywhere(see):
    see("small")
    see.js("document.querySelector('#grid [tabindex=\"0\"]').focus()")
    assert see.focus == {"row": "op_00, bf16", "column": "t4"}
    see.press("ArrowRight", "ArrowDown")
    assert see.focus == {"row": "op_01, fp8_block · silu · bf16", "column": "h100-sxm"}
    see.press("End")
    assert see.focus["column"] == "b200"
    see.press("Control+End")
    assert see.focus == {"row": "op_02, nvfp4 · bf16", "column": "b200"}
    see.press("ArrowDown", "ArrowRight")
    assert see.focus == {"row": "op_02, nvfp4 · bf16", "column": "b200"}, "the end is the end"
    see.press("Control+Home", "PageDown", "ArrowUp", "Home")
    assert see.focus == {"row": "op_01, fp8_block · silu · bf16", "column": "t4"}
    assert see.js("return document.querySelectorAll('#grid [tabindex=\"0\"]').length") == 1, "one stop for Tab"


def test_a_cell_opens_and_closes_by_keyboard_and_the_focus_comes_back(see):
    see("small")
    see.js("document.querySelector('#grid [tabindex=\"0\"]').focus()")
    see.press("ArrowDown", "Enter")
    assert see.focus == {"id": "cell-title"}
    assert "op_01 on t4" in see.explanation
    see.press("Escape")
    assert see.explanation == ""
    assert see.focus == {"row": "op_01, fp8_block · silu · bf16", "column": "t4"}
    see.press("Space")
    assert "op_01 on t4" in see.explanation


def test_an_open_explanation_follows_the_arrows(see):
    see("small").click(see.tile("op_01", "t4"))
    see.press("ArrowRight")
    assert "op_01 on h100-sxm" in see.explanation
    assert see.focus["column"] == "h100-sxm"


def test_a_slash_leads_to_the_search(see):
    see("small").press("/")
    assert see.focus == {"id": "q"}
    assert see.js("return document.getElementById('q').value") == ""


def test_a_link_restores_filters_and_cell(see):
    see("small").choose("scheme", "fp8_block")
    see.click("#backend .filter", "cutlass")
    see.click("#backend .filter", "cublas")
    see.click("#by label", "Evidence")
    see.click("#m label", "64")
    see.type("op_01 fast")
    see.click(see.tile("op_01", "h100-sxm"))
    link, status, said = see.js("return location.hash"), see.status, see.explanation
    assert "cell=op_01/fp8_block/silu/bfloat16/H=4096/h100-sxm/64" in link
    see("small", link)
    assert (see.status, see.explanation, see.js("return location.hash")) == (status, said, link)
    pressed = see.js("return [...document.querySelectorAll('[aria-pressed=true]')].map((e) => e.dataset.value).sort()")
    assert pressed == ["cublas", "cutlass"]
    assert see.js("return document.querySelector('#by input:checked').value") == "evidence"
    assert see.js("return document.getElementById('q').value") == "op_01 fast"


def test_the_back_key_closes_and_the_forward_key_opens(see):
    see("small").click(see.tile("op_01", "h100-sxm"))
    see.browser.back()
    see.until("document.getElementById('cell').hidden")
    see.browser.forward()
    see.until("!document.getElementById('cell').hidden")
    assert "op_01 on h100-sxm" in see.explanation


def test_a_link_to_a_cell_that_is_gone_says_so(see):
    see("small", "#cell=op_77/none/-/bfloat16/H=1/h100-sxm/64&op=op_77&m=5&backend=nobody&by=magic&show=x")
    assert see.js("return document.querySelectorAll('#grid .line:not([hidden])').length") == 3, (
        "what is not offered is dropped"
    )
    assert see.status == "The linked cell is not in this matrix."
    assert see.js("return document.getElementById('op').value") == "", "a choice that is not offered is dropped"


def test_what_was_measured_is_plotted_and_tabled(see):
    see("small", H100)
    assert "Measured on h100-sxm" in see.explanation
    plots = see.js(
        "return [...document.querySelectorAll('#cell figure')].map((f) => [f.querySelector('h4').innerText,"
        "f.querySelector('[role=img]').getAttribute('aria-label'), f.querySelectorAll('[role=img] .mark').length])"
    )
    assert [name for name, _, _ in plots] == ["Latency over M", "Roofline"]
    assert all("kernelmux.op[triton]" in label for _, label, _ in plots)
    assert all(marks >= 3 * len(TOKENS) - 1 for _, _, marks in plots)
    assert "crash" in see.explanation, "in the table of the numbers"
    see.click("#cell table a", "crash")
    assert "the process died of signal 11 in the third call" in see.explanation
    assert see.js("return document.querySelector('#view input:checked').value") == "live"


def test_the_other_views_show_kernels(see):
    see("small").click("#view label", "Measured")
    assert see.status == "72 cells"
    assert see.columns == [f"M {m}" for m in TOKENS]
    assert "op_01, fp8_block · silu · bf16, kernelmux.op[triton]" in see.rows
    picked = see.js("return [...document.querySelectorAll('#grid .pick')].map((e) => e.getAttribute('aria-label'))")
    assert len(picked) == 3 * len(TOKENS), "the chosen kernel of each op, underlined"
    assert picked[0] == "M 1: triton, ok, 87% of the roofline, chosen here"
    see.choose("show", "failed")
    assert see.status == "1 of 72 cells"
    see.click("#view label", "Compiled")
    assert see.status == "18 cells"
    see.choose("show", "spills")
    assert see.status == "12 of 18 cells"
    assert see.js("return document.querySelector('#by input:checked').value") == "registers"
    assert see.js("return document.querySelector('#grid .line:not([hidden]) .tile').textContent") == "40"


def test_a_chosen_kernel_that_failed_here_is_marked_in_the_heat_map(see):
    see("small")
    assert see.js("return document.querySelectorAll('#grid .red').length") == 0, "none of the chosen ones failed"
    see.click("#view label", "Measured")
    assert see.js("return [...document.querySelectorAll('#grid .red')].map((e) => e.textContent)") == ["K"]


def test_dark_and_light_by_system_and_by_hand(see):
    see("small")
    paper = "return getComputedStyle(document.documentElement).backgroundColor"
    light = see.js(paper)
    see.theme("dark")
    dark = see.js(paper)
    assert (light, dark) == ("rgb(255, 255, 255)", "rgb(16, 20, 27)")
    see.click("#theme")
    assert see.js(paper) == light
    see.click("#theme")
    see.theme("light")
    assert see.js(paper) == dark
    see.click("#theme")
    assert see.js(paper) == light, "the system again"
    see.theme("dark", "print")
    assert see.js(paper) == light, "paper is white"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_letter_can_be_read_on_its_colour(see, scheme):
    see.theme(scheme)
    see("small")
    ratios = see.js(
        """
        const looks = [...Array(20).keys()].map((i) => `b${i}`).concat([...Array(10).keys()].map((i) => `q${i}`),
          ['measured', 'compiled', 'declared', 'ok', 'spills', 'unknown', 'wrong'].map((word) => `w-${word}`));
        const pen = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
        const light = (colour) => {
          pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1);
          const straight = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
          const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].map((v) => straight(v / 255));
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const tile = document.createElement('i'); document.body.append(tile);
        return Object.fromEntries(looks.map((look) => {
          tile.className = `tile ${look}`;
          const style = getComputedStyle(tile), [a, b] = [light(style.color), light(style.backgroundColor)];
          return [look, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
        }));
        """
    )
    assert {look: ratio for look, ratio in ratios.items() if ratio < 4.5} == {}


def test_no_tile_is_told_by_its_colour_alone(see):
    see("small")
    every = "return [...document.querySelectorAll('#grid .tile')]"
    tiles = see.js(f"{every}.map((e) => [e.textContent, e.getAttribute('aria-label')])")
    assert all(letters for letters, _ in tiles)
    assert tiles[3] == ["Cl", "M 1 to 256: cutlass, declared; M 1024 to 16384: cublas, measured"]


def test_a_screen_reader_finds_a_grid_with_heads_and_names(see):
    see("small", H100)
    nodes = see.browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    seen = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n["ignored"]]
    assert ("grid", "Kernel by op and GPU") in seen
    assert ("columnheader", "h100-sxm") in seen
    assert ("rowheader", "op_01, fp8_block · silu · bf16") in seen
    assert sum(role == "gridcell" for role, _ in seen) == 9
    assert ("complementary", "op_01 on h100-sxm") in seen
    asking = set("gridcell button combobox searchbox link radio image region columnheader rowheader".split())
    assert [role for role, name in seen if role in asking and not name.strip()] == []


@pytest.mark.parametrize("view", ["", "#view=live", "#view=compiled"])
def test_hostile_text_stays_text(see, view):
    see("evil", view)
    see.js(
        "const tile = document.querySelector('#grid .tile'); tile.click();"
        "tile.dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))"
    )
    assert EVIL in see.explanation
    assert "owned" not in see.js("return document.title")
    assert see.js("return [document.images.length, document.scripts.length]") == [0, 2]
    assert see.js("return [...document.querySelectorAll('a')].filter((a) => a.protocol === 'javascript:').length") == 0
    see("evil", see.js("return location.hash"))
    assert EVIL in see.explanation, "its link works too"
    see.click("#backend .filter")
    assert see.status == "1 cell"


def test_fifty_thousand_cells_can_be_filtered_opened_and_walked(see):
    see("large")
    cells = len(large().cells)
    assert cells > 50_000
    assert see.status == f"{cells:,} cells"
    see.type("op_17 h200-nvl")
    assert see.status == f"{6 * len(TOKENS)} of {cells:,} cells"
    assert len(see.rows) == 6
    see.click(see.tile("op_17, nvfp4", "h200-nvl"))
    assert "op_17 on h200-nvl" in see.explanation
    see.click("#reset")
    see.js("document.querySelector('#grid [aria-selected=true]').focus()")
    see.press("Control+ArrowDown")
    assert see.focus["row"] == "op_23, mxfp4 · bf16"
    assert "op_23 on h200-nvl" in see.explanation
    see.until("[...document.querySelectorAll('#grid .line')].every((row) => row.children.length === 46)")


def test_paper_gets_the_map_and_the_open_cell_without_the_controls(see):
    see("small", H100)
    see.theme("light", "print")
    controls = ["q", "theme", "close", "m", "view"]
    drawn = "return arguments[0].filter((name) => document.getElementById(name).getClientRects().length)"
    assert see.js(drawn, controls) == []
    assert see.js("return document.getElementById('cell').getClientRects().length") == 1
    assert see.js("return document.getElementById('grid').scrollWidth <= document.documentElement.clientWidth")
    see.theme("light")
    options = {"preferCSSPageSize": True, "printBackground": True}
    made = see.browser.execute_cdp_cmd("Page.printToPDF", options)
    assert base64.b64decode(made["data"]).startswith(b"%PDF")


def test_a_narrow_window_scrolls_only_the_map(see):
    see("small", H100, width=420, height=900)
    assert see.js("return document.documentElement.scrollWidth") <= 420
