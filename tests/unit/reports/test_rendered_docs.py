"""docs/benchmarks.md and docs/reports quote the data: they are what the script renders from it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "render_benchmarks.py"


@pytest.fixture(scope="module")
def rendered():
    spec = importlib.util.spec_from_file_location("render_benchmarks", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.outputs()


def test_the_committed_pages_are_what_the_script_renders(rendered):
    stale = [
        path.name for path, text in rendered.items() if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    assert not stale, "run `python scripts/render_benchmarks.py`"


def test_nothing_else_lies_among_the_rendered_reports(rendered):
    folders = {path.parent for path in rendered if path.parent.name == "reports"}
    assert {path for folder in folders for path in folder.glob("tuning-h200-*")} <= set(rendered)


def test_the_benchmarks_say_on_what_they_were_measured_and_against_what(rendered):
    text = next(text for path, text in rendered.items() if path.name == "benchmarks.md")
    assert "NVIDIA H200 (132 SMs, capability 9.0)" in text
    assert "No H100 was at hand" in text
    assert "has no table for this GPU: the one of `NVIDIA_H100_80GB_HBM3` was used" in text
    assert "vLLM's activation was replaced" in text
    assert "Worst loss **+0.76%**" in text
