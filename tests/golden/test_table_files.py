"""The bytes that kernelmux writes, judged by the readers' own rules.

A change of these files is a change of the format: every table written before must still be read.
Write them anew with ``python tests/golden/test_table_files.py``.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.device import resolve_device
from kernelmux.tuning_configs.check import check
from kernelmux.tuning_configs.lookup import find
from kernelmux.tuning_configs.sidecar import Point, Sidecar
from kernelmux.tuning_configs.table import MoeConfig, MoeTable
from kernelmux.tuning_configs.tile import Tile
from kernelmux.tuning_configs.write import Written, write_table

GOLDEN = Path(__file__).parent / "tables"
SHAPE = MoeShape(128, 384, 2048, 8)
TABLE = MoeTable.of(
    {
        1: MoeConfig(Tile(16, 64, 128, 1, 4, 4), Tile(16, 128, 64, 1, 4, 3)),
        64: MoeConfig(Tile(16, 64, 128, 1, 4, 4), Tile(16, 128, 128, 8, 4, 3, True)),
        4096: MoeConfig(Tile(128, 128, 64, 16, 8, 3, True), Tile(128, 256, 64, 8, 8, 3, True)),
    }
)


def write(folder: Path) -> Written:
    device = resolve_device("h100-sxm")
    sidecar = Sidecar(
        source="measured",
        shape=SHAPE,
        device={"name": "h100-sxm", "torch_name": device.torch_name, "capability": "9.0", "sm_count": 132},
        versions={"triton": "3.6.0", "torch": "2.11.0", "cuda": "13.0", "kernelmux": "0.1.0"},
        kernel={"name": "kernelmux.fused_moe[triton]", "source_hash": "0123456789abcdef"},
        created="2026-11-22T08:00:00Z",
        effort="quick",
        points={1: Point(10.5, 5.25, 17.0, (15.5, 16.0), ("16x64x64 g1 w4 s3 / 16x128x64 g1 w4 s3",))},
        report={"seconds": 183.2},
    )
    return write_table(folder, device, SHAPE, TABLE, sidecar)


def test_the_files_written_today_are_the_golden_ones(tmp_path: Path) -> None:
    for path in write(tmp_path):
        golden = GOLDEN / path.relative_to(tmp_path)
        assert path.read_bytes() == golden.read_bytes()


def test_the_golden_files_are_found_and_sound() -> None:
    choice = find(resolve_device("h100-sxm"), "3.6.0", SHAPE, [GOLDEN])
    assert (choice.source, choice.grade, choice.table) == ("measured", "exact", TABLE)
    assert all(report.ok for report in check([GOLDEN]))


def sglang_name(E: int, N: int, device: str, down: bool) -> str:
    return f"E={E},N={N},device_name={device.replace(' ', '_')}{'_down' if down else ''}.json"


def sglang_reads(text: str) -> dict[int, dict[str, Any]]:
    """SGLang: every key is a number."""
    return {int(key): value for key, value in json.loads(text).items()}


def vllm_reads(text: str) -> dict[int, dict[str, Any]]:
    """vLLM: the same after taking out its one note."""
    raw = json.loads(text)
    raw.pop("triton_version", None)
    return {int(key): value for key, value in raw.items()}


@pytest.mark.parametrize("reads", [sglang_reads, vllm_reads])
@pytest.mark.parametrize("down", [False, True])
def test_an_engine_reads_the_golden_table(reads: Any, down: bool) -> None:
    folder = GOLDEN / "triton_3_6_0"
    table = reads((folder / sglang_name(128, 384, "NVIDIA H100 80GB HBM3", down)).read_text())
    side = TABLE.down if down else TABLE.up
    for m in range(1, 8192, 61):
        nearest = min(table, key=lambda key: abs(key - m))  # both engines' rule, linear
        assert table[nearest] == side[nearest].to_json()
    assert all(math.log2(entry["BLOCK_SIZE_M"]).is_integer() for entry in table.values())


if __name__ == "__main__":
    print(*write(GOLDEN), sep="\n")
