#!/usr/bin/env python3
"""Write docs/images/matrix-light.png and matrix-dark.png: the page of a matrix in a headless Chromium.

python scripts/matrix_screenshots.py MATRIX.json [--link '#cell=...']

Needs what tests/browser/sight.py says. The pictures are looked at by people: no test compares them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
LINK = "#cell=nvfp4_gemm/nvfp4/-/bfloat16/N=4096,K=4096/b200/64"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("matrix", type=Path, help="JSON of kernelmux matrix")
    parser.add_argument("--link", default=LINK, help="filters and an open cell, as in the page's address")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--size", default="1600x1000")
    given = parser.parse_args()

    from kernelmux.reports import matrix_files
    from kernelmux.reports.matrix_html import page
    from tests.browser.sight import Sight, start

    width, height = map(int, given.size.split("x"))
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "matrix.html").write_text(page(matrix_files.read(given.matrix)), encoding="utf-8")
        browser = start()
        try:
            sight = Sight(browser, Path(folder))
            for scheme in ("light", "dark"):
                sight.theme(scheme)
                sight("matrix", given.link, width, height)
                picture = given.out / f"matrix-{scheme}.png"
                browser.save_screenshot(str(picture))
                print(f"wrote {picture} ({picture.stat().st_size:,} bytes)")
        finally:
            browser.quit()


if __name__ == "__main__":
    main()
