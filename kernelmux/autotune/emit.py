"""Write the result: both tables and the sidecar that says where they come from."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kernelmux.autotune.result import Line, TuneResult, rounded
from kernelmux.errors import StoreError
from kernelmux.store.files import store_error
from kernelmux.tuning_configs.engines.writer import write_for
from kernelmux.tuning_configs.folders import PREDICTED
from kernelmux.tuning_configs.names import TableName
from kernelmux.tuning_configs.sidecar import Point, Sidecar
from kernelmux.tuning_configs.write import write_table

if TYPE_CHECKING:
    from kernelmux.device import Device

PROBE_BYTES = 256 * 1024  # three files of a table with their sidecar stay below 64 KiB


def probe(folder: Path) -> None:
    """Make ``folder`` and try to write there, before hours are spent. Raises StoreError with the remedy."""
    path = folder / f".kernelmux-probe-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("wb") as file:
                file.write(b"\0" * PROBE_BYTES)
                file.flush()
                os.fsync(file.fileno())
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
    except FileExistsError as error:
        raise StoreError(f"cannot write to {folder}: it is a file, not a folder. Choose another folder.") from error
    except OSError as error:
        raise store_error(error, "write to", folder) from error


def write(result: TuneResult, folder: Path, versions: Mapping[str, str], source_hash: str) -> TuneResult:
    """Write the table below ``folder``; the result with its paths. Raises StoreError."""
    device = result.device
    sidecar = Sidecar(
        source=result.source,
        shape=result.shape,
        device=describe(device, result.fingerprint),
        versions=dict(versions),
        kernel={"name": result.target.variant.kernel_name, "source_hash": source_hash},
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        effort=result.effort,
        points={line.m: _point(line) for line in result.lines},
        report=result.report(),
        reader=result.target.format,
        quant=result.target.quant,
    )
    if result.target.plain:
        return replace(result, paths=_write_for_engine(result, folder, sidecar))
    written = write_table(folder, device, result.shape, result.table, sidecar)
    return replace(result, paths=(written.up, written.down, written.sidecar))


def _write_for_engine(result: TuneResult, folder: Path, sidecar: Sidecar) -> tuple[Path, ...]:
    """The engine's own files, found when ``folder`` is named to it, and the sidecar beside.

    A prediction goes to ``predicted/`` below, so that no engine takes it unasked.
    """
    base = folder / PREDICTED if result.source == "predicted" else folder
    name = TableName.of(result.device.table_name, result.shape, quant=result.target.quant)
    written = write_for(result.target.format, base, name, result.table, sidecar.versions["triton"], sidecar)
    return tuple(path for path in written if path is not None)


def describe(device: Device, fingerprint: Mapping[str, str]) -> dict[str, object]:
    return {
        "name": device.name,
        "torch_name": device.torch_name,
        "capability": str(device.capability) if device.capability else None,
        "sm_count": device.sm_count,
        "shared_bytes": device.shared_bytes,
        "driver": fingerprint.get("driver", device.driver),
    }


def _point(line: Line) -> Point:
    return Point(
        up_us=rounded(line.up_us),
        down_us=rounded(line.down_us),
        default_us=rounded(line.default_us),
        interval=(round(line.interval.low, 3), round(line.interval.high, 3)) if line.interval else None,
        ties=tuple(f"{c.up.short()} / {c.down.short()}" for c in line.ties if c != line.config)[:12],
    )
