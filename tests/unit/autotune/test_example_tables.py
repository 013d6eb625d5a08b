"""The predicted tables under examples/tables: sound, marked, and every tile compiles for their GPU and fits it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kernelmux.device import resolve_device
from kernelmux.tuning_configs import check, sidecar

pytest.importorskip("triton", reason="Triton compiles the tiles")

FOLDER = Path(__file__).parents[3] / "examples" / "tables" / "sglang-rtx-pro-6000-server"
SIDECARS = sorted(FOLDER.rglob("*.meta.json"))

# In a process of its own: compiling replaces Triton's driver.
SCRIPT = """
import json, sys
from kernelmux.backends.triton.moe_compile import compile_tile
from kernelmux.backends.triton.moe_variant import MoeVariant
from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.device import Capability
from kernelmux.tuning_configs import sidecar
from kernelmux.tuning_configs.tile import Tile
from pathlib import Path
meta = Path(sys.argv[1])
kept = sidecar.load(meta)
variant = MoeVariant(kept.reader, kept.quant)
base = meta.name.removesuffix(".meta.json")
for side, name in (("up", base + ".json"), ("down", base + "_down.json")):
    entries = json.loads(meta.with_name(name).read_text())
    for tile in sorted({Tile.from_json(entry) for entry in entries.values()}):
        found = compile_tile(kept.shape, side, tile, Capability(12, 0), False, variant)
        print(json.dumps([side, tile.short(), found.shared_bytes, found.stack_bytes]))
"""


def test_the_folder_holds_four_marked_and_sound_pairs():
    assert len(SIDECARS) == 4
    for path in SIDECARS:
        kept = sidecar.load(path)
        assert (kept.source, kept.reader, kept.device["name"]) == ("predicted", "sglang", "rtx-pro-6000-server")
    reports = check.check([FOLDER])
    assert len(reports) == 8
    assert all(report.ok for report in reports), [report.faults for report in reports]


@pytest.mark.parametrize("path", SIDECARS, ids=lambda path: path.name.partition(",device")[0])
def test_every_tile_compiles_for_the_gpu_and_fits_its_shared_memory(path):
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row[0] for row in rows} == {"up", "down"}
    limit = resolve_device("rtx-pro-6000-server").shared_bytes
    assert limit == 101376
    assert all(shared <= limit and stack < 256 for _, _, shared, stack in rows), rows
