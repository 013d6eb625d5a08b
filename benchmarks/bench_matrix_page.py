"""How soon the matrix page can be used: 50,000 cells in a headless Chromium.

    python benchmarks/bench_matrix_page.py --out benchmarks/results/matrix-page.json
    python benchmarks/bench_matrix_page.py --matrix matrix.json      # a matrix of your own beside the made-up one

``ready`` is the time from the start of the navigation until the second frame after the script has drawn the map and
takes keys and clicks: the first opening of a new browser process (``cold``), and others after it (``warm``).
``filter``, ``colour`` and ``open`` are from the event until the second frame after it. A cell is opened in the last
column of the map. Needs what tests/browser/sight.py says.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
TARGETS = {"ready_ms": 1000.0, "bytes": 3_000_000}

ACT = """
const [what, done] = arguments, begun = performance.now();
const pick = (name, i) => document.querySelectorAll(`#${name} input`)[i].click();
({filter: () => document.querySelector('#backend button').click(), colour: () => pick('by', 1),
  open: () => [...document.querySelectorAll('#grid .tile')].at(-1).click()})[what]();
requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - begun)));
"""


def measured(files: dict[str, Path], processes: int, warm: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of each kind, by page."""
    from tests.browser.sight import Sight, start

    found: dict[str, dict[str, list[float]]] = {name: {} for name in files}
    for _ in range(processes):
        for name, path in files.items():
            browser = start()
            try:
                sight = Sight(browser, path.parent)
                for i in range(1 + warm):
                    sight(path.stem)
                    ready = float(sight.js("return document.documentElement.dataset.readyMs"))
                    found[name].setdefault("warm" if i else "cold", []).append(ready)
                    for what in ("filter", "colour", "open"):
                        took = browser.execute_async_script(ACT, what)
                        found[name].setdefault(what, []).append(round(float(took), 1))
                chromium = browser.capabilities["browserVersion"]
            finally:
                browser.quit()
    found["chromium"] = chromium
    return found


def summary(samples: list[float]) -> dict[str, Any]:
    return {
        "median_ms": round(statistics.median(samples), 1), "min_ms": min(samples), "max_ms": max(samples),
        "samples_ms": samples,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=5, help="browser processes a page (default 5)")
    parser.add_argument("--warm", type=int, default=2, help="more openings in each (default 2)")
    parser.add_argument("--matrix", type=Path, help="JSON of kernelmux matrix to open as well")
    parser.add_argument("--out", type=Path, help="write the result here")
    given = parser.parse_args()

    from kernelmux import __version__
    from kernelmux.reports import matrix_files
    from kernelmux.reports.matrix_html import page
    from tests.unit.reports.matrices import large

    load = os.getloadavg()[0]
    made = {"made-up": large()} | ({"given": matrix_files.read(given.matrix)} if given.matrix else {})
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for name, matrix in made.items():
            files[name] = Path(folder, f"{name}.html")
            files[name].write_text(page(matrix), encoding="utf-8")
        times = measured(files, given.processes, given.warm)
        sizes = {name: path.stat().st_size for name, path in files.items()}
    result = {
        "what": "the HTML page of a matrix, from a file, in a headless Chromium without a GPU",
        "cores": os.cpu_count(),
        "load_average_before": round(load, 2),
        "versions": {"kernelmux": __version__, "chromium": times.pop("chromium"), "python": platform.python_version()},
        "date": datetime.date.today().isoformat(),
        "command": f"python {' '.join(['benchmarks/bench_matrix_page.py', *sys.argv[1:]])}",
        "targets": TARGETS,
        "pages": {
            name: {
                "cells": len(matrix.cells), "bytes": sizes[name],
                **{kind: summary(samples) for kind, samples in times[name].items()},
            }
            for name, matrix in made.items()
        },
    }  # fmt: skip
    for name, one in result["pages"].items():
        figures = ", ".join(
            f"{kind} {one[kind]['median_ms']:.0f} ms" for kind in ("cold", "warm", "filter", "colour", "open")
        )
        print(f"{name}: {one['cells']:,} cells, {one['bytes']:,} bytes; {figures}")
    if given.out:
        given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
