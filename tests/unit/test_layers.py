"""The walls: who may import whom, and what importing kernelmux must not pull in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = [
    "torch",
    "triton",
    "yaml",
    "msgspec",
    "numpy",
    "click",
    "rich",
    "filelock",
    "platformdirs",
    "packaging",
    "sqlite3",
]
LIGHT_ROOMS = ["kernelmux", "kernelmux.errors", "kernelmux.device", "kernelmux.quant", "kernelmux.registry"]


def imported_after(statement: str) -> set[str]:
    code = f"{statement}\nimport json, sys\nprint(json.dumps([m.split('.')[0] for m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(done.stdout))


def test_a_room_imports_only_from_the_rooms_below_it() -> None:
    pytest.importorskip("importlinter", reason="import-linter is not installed: pip install 'kernelmux[dev]'")
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run([sys.executable, "-c", code, "--no-cache"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("room", LIGHT_ROOMS)
def test_importing_a_room_that_decides_pulls_in_nothing_heavy(room: str) -> None:
    assert not imported_after(f"import {room}") & set(HEAVY)


def test_the_command_line_starts_without_torch_triton_and_rich() -> None:
    assert not imported_after("import kernelmux.cli.app") & {"torch", "triton", "rich", "yaml", "msgspec", "numpy"}


def test_describing_a_device_needs_yaml_only() -> None:
    found = imported_after("from kernelmux.device import resolve_device\nresolve_device('h100-sxm')")
    assert not found & (set(HEAVY) - {"yaml"})


def test_no_module_is_longer_than_its_noun_needs() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in (ROOT / "kernelmux").rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 450
    }
    assert not long
