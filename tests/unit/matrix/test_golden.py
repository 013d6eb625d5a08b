"""The golden matrix: every op, scheme and GPU of the catalog, at 1, 64 and 4096 tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelmux.device import catalog
from kernelmux.registry import discovery

from .cells import TOKENS, cases, parse, render

GOLDEN = Path(__file__).parents[2] / "golden" / "matrix"
REMEDY = "If that is meant, run `python tests/golden/matrix/regenerate.py` and read the diff."


@pytest.mark.parametrize("name", discovery.BUILTIN)
def test_the_matrix_is_the_golden_one(name: str) -> None:
    path = GOLDEN / f"{name}.txt"
    assert path.exists(), f"{name} has no golden matrix. {REMEDY}"
    old, new = path.read_text(encoding="utf-8"), render(discovery.registry().op(name))
    if old == new:
        return
    before, after = parse(old), parse(new)
    changed = [cell for cell in {**before, **after} if before.get(cell) != after.get(cell)]
    told: dict[tuple[str, str], list[str]] = {}
    for cell in changed:
        key = (before.get(cell, "no such cell"), after.get(cell, "no such cell"))
        told.setdefault(key, []).append(f"{cell[0]} on {cell[1]}, M={cell[2]}")
    reports = [
        f"{len(cells)} cells, as {cells[0]}:\n--- was\n{was}\n+++ is\n{now}" for (was, now), cells in told.items()
    ]
    pytest.fail("\n\n".join([f"{len(changed)} cells of {name} have changed. {REMEDY}", *reports]))


def test_no_cell_is_missing_and_none_is_without_a_reason() -> None:
    devices = set(catalog())
    for op in discovery.registry().ops():
        cells = parse((GOLDEN / f"{op.name}.txt").read_text(encoding="utf-8"))
        assert {(case.title, name, m) for case in cases(op) for name in devices for m in TOKENS} == set(cells)
        for cell, outcome in cells.items():
            head, *reasons = outcome.splitlines()
            assert reasons, cell
            assert all(reason.split(": ", 1)[1].strip() for reason in reasons), cell
            assert head == "no kernel" or reasons[0].startswith("    policy "), f"{cell}: no rule speaks of it"


def test_every_scheme_of_every_op_is_in_the_matrix() -> None:
    for op in discovery.registry().ops():
        assert {case.scheme for case in cases(op)} == op.schemes
