"""A headless Chromium driven by Selenium, and what a test does with a page: open it, look, click, press keys.

Nothing is downloaded; what must be installed, on Debian and Ubuntu: ``apt-get install chromium chromium-driver`` and
``pip install selenium``. CHROMIUM and CHROMEDRIVER name other programs.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

KEYS = {
    "ArrowUp": "\ue013", "ArrowDown": "\ue015", "ArrowLeft": "\ue012", "ArrowRight": "\ue014", "Home": "\ue011",
    "End": "\ue010", "PageDown": "\ue00f", "PageUp": "\ue00e", "Enter": "\ue007", "Escape": "\ue00c", "Tab": "\ue004",
    "Space": " ", "Control": "\ue009",
}  # fmt: skip


class Missing(Exception):
    """Something that a browser test needs is not installed."""


def start() -> Any:
    """A new headless Chromium. Raises Missing."""
    try:
        from selenium import webdriver
    except ImportError as error:
        raise Missing("selenium is not installed: pip install selenium") from error
    options = webdriver.ChromeOptions()
    options.binary_location = _program("CHROMIUM", "chromium", "chromium-browser", "google-chrome")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(_program("CHROMEDRIVER", "chromedriver")))


def _program(variable: str, *names: str) -> str:
    found = os.environ.get(variable) or next(filter(None, map(shutil.which, names)), None)
    if not found:
        raise Missing(f"{names[0]} is not installed; {variable} may name another program")
    return found


class Sight:
    """A page in the browser."""

    def __init__(self, browser: Any, folder: Path) -> None:
        self.browser, self.folder = browser, folder

    def __call__(self, name: str, link: str = "", width: int = 1600, height: int = 1000) -> Sight:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.browser.get("about:blank")
        self.console()
        self.browser.get(f"{(self.folder / name).with_suffix('.html').as_uri()}{link}")
        self.until("document.documentElement.dataset.readyMs")
        return self

    def theme(self, scheme: str, media: str = "screen") -> None:
        """What the system asks for."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})

    def js(self, body: str, *arguments: Any) -> Any:
        return self.browser.execute_script(body, *arguments)

    def until(self, condition: str, seconds: float = 20) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = self.js(f"return {condition}")
            if found:
                return found
            time.sleep(0.02)
        raise AssertionError(f"never came true: {condition}")

    def console(self) -> list[Any]:
        return self.browser.get_log("browser")

    def click(self, selector: str, text: str | None = None) -> None:
        """Click the first such element, or the first one with ``text`` in it."""
        from selenium.webdriver.common.by import By

        found = [e for e in self.browser.find_elements(By.CSS_SELECTOR, selector) if text is None or text in e.text]
        assert found, f"no {selector} with {text}"
        found[0].click()

    def press(self, *keys: str) -> None:
        """Press keys where the focus is; "Control+End" holds one."""
        from selenium.webdriver.common.action_chains import ActionChains

        for key in keys:
            *held, last = key.split("+") if key != "+" else [key]
            chain = ActionChains(self.browser, duration=0)
            for one in held:
                chain.key_down(KEYS[one])
            chain.send_keys(KEYS.get(last, last))
            for one in held:
                chain.key_up(KEYS[one])
            chain.perform()

    def type(self, text: str) -> None:
        """Into the search field."""
        self.js("document.getElementById('q').focus()")
        self.press(*text)
        self.until(f"new URLSearchParams(location.hash.slice(1)).get('q') === {text!r}")

    def choose(self, select: str, value: str) -> None:
        self.js(
            "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event('change', {bubbles: true}))", select, value,
        )  # fmt: skip

    def tile(self, row: str, column: str) -> str:
        """The selector of a tile by the words of its row's and its column's heads."""
        found = self.js(
            """
            const head = (row) => row.querySelector('.head').getAttribute('aria-label');
            const r = [...document.querySelectorAll('#grid .line')].find((e) => head(e).startsWith(arguments[0]));
            const c = [...document.querySelectorAll('#grid .col')].find((e) => e.textContent === arguments[1]);
            const at = (e, name) => `[${name}="${e.getAttribute(name)}"]`;
            return r && c ? `#grid ${at(r, 'aria-rowindex')} [role=gridcell]${at(c, 'aria-colindex')}` : null;
            """,
            row, column,
        )  # fmt: skip
        assert found, f"no tile for {row} and {column}"
        return found

    @property
    def status(self) -> str:
        return self.js("return document.getElementById('status').textContent")

    @property
    def hash(self) -> str:
        return self.js("return decodeURIComponent(location.hash)")

    @property
    def rows(self) -> list[str]:
        """The heads of the rows that are seen."""
        seen = "return [...document.querySelectorAll('#grid .line:not([hidden]) .head')]"
        return self.js(f"{seen}.map((e) => e.getAttribute('aria-label'))")

    @property
    def columns(self) -> list[str]:
        return self.js("return [...document.querySelectorAll('#grid .col:not([hidden])')].map((e) => e.textContent)")

    @property
    def explanation(self) -> str:
        """What the open cell says; empty where none is open."""
        return self.js("const e = document.getElementById('cell'); return e.hidden ? '' : e.innerText")

    @property
    def focus(self) -> dict[str, Any]:
        """Where the focus is: row and column of a tile, else the id."""
        return self.js(
            "const e = document.activeElement, head = e.closest('.line')?.querySelector('.head');"
            "return e.at ? {row: head.getAttribute('aria-label'),"
            "column: document.querySelectorAll('#grid .col')[e.at[1]].textContent} : {id: e.id}"
        )
