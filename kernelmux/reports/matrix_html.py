"""A matrix as one HTML page: a heat map of op by GPU whose cells explain themselves.

The page loads nothing and works from a file. Its script and its style are allowed by their hashes alone, so whatever
text comes with a device, a package or an error stays text; the script makes elements and never reads markup.
"""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from pathlib import Path

from kernelmux.reports.matrix import KINDS, Matrix
from kernelmux.reports.matrix_columns import columns
from kernelmux.reports.page import element, embedded, style, text
from kernelmux.reports.words import count

ASSETS = Path(__file__).parent / "matrix_page"
SCRIPTS = ("data.js", "dom.js", "plots.js", "grid.js", "cell.js", "app.js")
DATA_ID = "matrix"
_SKELETON = "page.html"


def page(matrix: Matrix) -> str:
    """The whole document, with the matrix inside it (see ``matrix_columns``)."""
    sheet, program = _sheet(), script()
    policy = (
        f"default-src 'none'; script-src '{_hash(program)}'; style-src '{_hash(sheet)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    title = f"kernelmux matrix: {_counted(matrix)}"
    return (
        '<!DOCTYPE html>\n<html lang="en" data-theme="auto">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)}</title>\n<style>{sheet}</style>\n</head>\n<body>\n"
        f"{_body(matrix)}\n{embedded(columns(matrix), DATA_ID)}\n<script>{program}</script>\n</body>\n</html>\n"
    )


@lru_cache
def script() -> str:
    """The page's program: the parts share one scope and leave nothing outside it."""
    parts = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return f'"use strict";\n(() => {{\n{parts}}})();\n'


@lru_cache
def _sheet() -> str:
    return f"\n{style('chart.css')}{(ASSETS / 'matrix.css').read_text(encoding='utf-8')}"


def _hash(source: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"


def _body(matrix: Matrix) -> str:
    """What does not depend on the script: the head, and the places it fills."""
    skeleton = (ASSETS / _SKELETON).read_text(encoding="utf-8")
    for place, markup in (("<!--facts-->", _facts(matrix)), ("<!--foot-->", _foot(matrix))):
        skeleton = skeleton.replace(place, markup, 1)
    return skeleton


def _counted(matrix: Matrix) -> str:
    ops, devices = {cell.case.op for cell in matrix.cells}, {cell.device for cell in matrix.cells}
    return f"{count(len(ops), 'op')}, {count(len(devices), 'GPU')}"


def _facts(matrix: Matrix) -> str:
    head = matrix.header
    made = f"kernelmux {head.kernelmux}, {head.created.replace('T', ' ').replace('Z', ' UTC')}"
    words = [_counted(matrix), f"packages: {head.packages.title}", made]
    words += [f"part {head.shard.index} of {head.shard.of}"] if head.shard else []
    words += [f"filtered by {', '.join(head.filters)}"] if head.filters else []
    return "".join(element("span", text(word)) for word in words)


def _foot(matrix: Matrix) -> str:
    kinds = {kind: sum(cell.kind == kind for cell in matrix.cells) for kind in KINDS}
    counted = ", ".join(f"{kind} {n:,}" for kind, n in kinds.items() if n)
    compilers = "".join(f"; {name} {version}" for name, version in sorted(matrix.header.compilers.items()))
    return text(f"Cells: {counted or 'none'}{compilers}.")
