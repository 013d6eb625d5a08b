"""These tests are skipped where there is no Chromium; see ``tests/browser/sight.py`` for what they need."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelmux.reports.matrix_html import page
from tests.browser.sight import Missing, Sight, start
from tests.unit.reports import matrices


@pytest.fixture(scope="session")
def browser():
    """One Chromium for all tests."""
    try:
        started = start()
    except Missing as missing:
        pytest.skip(str(missing))
    yield started
    started.quit()


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """The pages, as files."""
    folder = tmp_path_factory.mktemp("pages")
    for name in ("small", "evil", "large"):
        (folder / f"{name}.html").write_text(page(getattr(matrices, name)()), encoding="utf-8")
    return folder


@pytest.fixture
def see(browser, files):
    """``see("small", "#m=64")`` opens a page; at the end the console must be empty and nothing have been loaded."""
    sight = Sight(browser, files)
    sight.theme("light")
    yield sight
    assert sight.console() == []
    assert sight.js("return performance.getEntriesByType('resource').length") == 0
