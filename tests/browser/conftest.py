"""A headless Chromium, driven by Selenium. Nothing is downloaded: both must be installed, else these tests are skipped.

On Debian and Ubuntu: ``apt-get install chromium chromium-driver`` and ``pip install selenium``. CHROMIUM and
CHROMEDRIVER name other programs.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from kernelmux.reports.matrix_html import page
from tests.browser.sight import Sight
from tests.unit.reports import matrices


def _program(variable: str, *names: str) -> str:
    found = os.environ.get(variable) or next(filter(None, map(shutil.which, names)), None)
    if not found:
        pytest.skip(f"{names[0]} is not installed (set {variable} to name it)")
    return found


@pytest.fixture(scope="session")
def browser():
    """One Chromium for all tests."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium = _program("CHROMIUM", "chromium", "chromium-browser", "google-chrome")
    driver = _program("CHROMEDRIVER", "chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
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
