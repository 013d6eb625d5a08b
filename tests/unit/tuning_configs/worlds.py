"""Small tables, sidecars and devices that the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.device import Device, resolve_device
from kernelmux.tuning_configs.sidecar import Point, Sidecar
from kernelmux.tuning_configs.table import MoeConfig, MoeTable
from kernelmux.tuning_configs.tile import Tile
from kernelmux.tuning_configs.write import Written, write_table

SHAPE = MoeShape(128, 384, 2048, 8)
SMALL = MoeConfig(Tile(16, 64, 128, 1, 4, 4), Tile(16, 128, 64, 1, 4, 3))
LARGE = MoeConfig(Tile(128, 128, 64, 16, 8, 3), Tile(128, 256, 64, 8, 8, 3, True))
TABLE = MoeTable.of({1: SMALL, 64: SMALL, 4096: LARGE})


def h100() -> Device:
    return resolve_device("h100-sxm")


def sidecar(
    shape: MoeShape = SHAPE, source: str = "measured", triton: str = "3.6.0", device: Device | None = None
) -> Sidecar:
    device = device or h100()
    return Sidecar(
        source=source,
        shape=shape,
        device={"name": device.name, "torch_name": device.torch_name, "sm_count": device.sm_count},
        versions={"triton": triton, "kernelmux": "0.1.0"},
        kernel={"name": "kernelmux.fused_moe[triton]", "source_hash": "abc"},
        created="2026-11-22T08:00:00Z",
        effort="quick",
        points={1: Point(10.5, 5.25, 17.0, (15.5, 16.0), ("16x64x64 g1 w4 s3",)), 64: Point()},
        report={"seconds": 60.5},
    )


def put(
    folder: Path,
    shape: MoeShape = SHAPE,
    table: MoeTable = TABLE,
    source: str = "measured",
    triton: str = "3.6.0",
    device: Device | None = None,
) -> Written:
    device = device or h100()
    return write_table(folder, device, shape, table, sidecar(shape, source, triton, device))
