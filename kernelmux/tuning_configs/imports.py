"""Make kernelmux tables of an engine's: candidates for a selection with ``config_source`` "imported"."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kernelmux.contracts.moe_quant import MoeQuant
from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.device import Device, by_torch_name
from kernelmux.errors import BadShape, ConfigFileError, UsageError
from kernelmux.tuning_configs import check
from kernelmux.tuning_configs.engines import entry as entries_of
from kernelmux.tuning_configs.engines import foreign, judge
from kernelmux.tuning_configs.engines.entry import extras, tile_of
from kernelmux.tuning_configs.engines.foreign import ForeignTable, Reading
from kernelmux.tuning_configs.names import TableName
from kernelmux.tuning_configs.reconcile import reconciled
from kernelmux.tuning_configs.sidecar import OpenShape, Sidecar
from kernelmux.tuning_configs.table import MoeTable
from kernelmux.tuning_configs.tile import Tile
from kernelmux.tuning_configs.write import Written, digest, write_pair

BLOCK_SIZE_N = (
    "BLOCK_SIZE_N counts columns of the stacked [2N] gate/up weight in both: taken as it stands. kernelmux's fused "
    "up kernel holds BLOCK_SIZE_N/2 gate and BLOCK_SIZE_N/2 up columns in one tile and writes BLOCK_SIZE_N/2 activated "
    "ones; the engine's plain kernel writes all BLOCK_SIZE_N and runs the activation apart."
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user adds to a file name: the axes it lacks, the device it is for, the Triton version."""

    axes: Mapping[str, int] = field(default_factory=dict)  # K, topk; E and N choose among files
    activation: str | None = None
    dtype: str = "bfloat16"
    device_name: str | None = None  # as tables carry it
    triton: str | None = None


@dataclass(frozen=True, slots=True)
class Imported:
    """What came of one table: the files written, or why none were."""

    path: Path
    written: Written | None
    notes: tuple[str, ...] = ()
    refused: str = ""

    def to_json(self) -> dict[str, Any]:
        files = [str(path) for path in self.written] if self.written else []
        return {"path": str(self.path), "written": files, "notes": list(self.notes), "refused": self.refused or None}


@dataclass(frozen=True, slots=True)
class Translated:
    """An engine's table in kernelmux's terms, before it is written."""

    name: TableName
    table: MoeTable
    quant: MoeQuant
    triton: str
    notes: tuple[str, ...]
    sources: Mapping[str, str]  # file name -> sha256


def import_tables(paths: Iterable[Path | str], engine: str, out: Path | str, wanted: Wanted) -> list[Imported]:
    """Import each table of ``paths`` (files and folders) that ``engine`` could launch, to ``<out>/imported``.

    A table that cannot be imported is refused with a sentence; the others are written. Raises StoreError when the
    folder cannot be written, BadShape for axes no shape has.
    """
    done = []
    for path in check.table_files(paths):
        name = _name_of(path)
        if path.name.endswith(".meta.json") or (name is not None and name.down):
            continue
        if name is not None and any(axis in wanted.axes and wanted.axes[axis] != getattr(name, axis) for axis in "EN"):
            continue
        done.append(_import(path, name, engine, Path(out), wanted))
    return done


def _import(path: Path, name: TableName | None, engine: str, out: Path, wanted: Wanted) -> Imported:
    try:
        made = translate(path, name, engine, wanted)
        shape = _shape(made.name, wanted)
    except (ConfigFileError, BadShape) as error:
        return Imported(path, None, refused=str(error))
    sidecar = Sidecar(
        source="imported",
        shape=shape,
        device=_described(made.name.device_name),
        versions={"triton": made.triton} if made.triton else {},
        kernel={"name": f"{engine}.fused_moe_kernel"},
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        quant=made.quant,
        report={
            "from": engine,
            "files": dict(made.sources),
            "block_size_n": BLOCK_SIZE_N,
            "notes": list(made.notes),
        },
    )
    notes = list(made.notes)
    if isinstance(shape, OpenShape):
        notes.append(
            f"{', '.join(shape.unknown)} not given: taken to fit any. Give them with --shape and --activation."
        )
    return Imported(path, write_pair(out, made.name.device_name, made.table, sidecar), tuple(notes))


def translate(path: Path, name: TableName | None, engine: str, wanted: Wanted | None = None) -> Translated:
    """Read an engine's table (and SGLang's down table beside it). Raises ConfigFileError saying why it cannot be."""
    wanted = wanted or Wanted()
    reading = foreign.read(path)
    if name is None or reading.table is None:
        raise _faulty(path, reading, "its name is no table's." if name is None else "it cannot be read.")
    device_name = wanted.device_name or name.device_name
    if not device_name:
        raise ConfigFileError(path, "device_name", "the name carries no device.", "Say it with --device.")
    quant = _quant(path, name)
    up = _tiles(path, reading.table, name, engine)
    notes, sources = _extras(reading.table), {path.name: digest(reading.data)}
    down_path = path.with_name(name.side(True).format())
    if engine == "sglang" and down_path.exists():
        below = foreign.read(down_path)
        if below.table is None:
            raise _faulty(down_path, below, "it cannot be read.")
        down = _tiles(down_path, below.table, name.side(True), engine)
        sources[down_path.name] = digest(below.data)
        notes += _extras(below.table)
    else:
        down = {m: replace(tile, use_tma=False) for m, tile in up.items()}
    device = by_torch_name(device_name)
    sizes = judge.BYTES.get(name.dtype) or (2, 2)
    table, changes = reconciled(up, down, path, device, *sizes)
    triton = wanted.triton or check.triton_of(path, reading.table)
    asked = replace(name, device_name=device_name)
    return Translated(asked, table, quant, triton, (*notes, *changes), sources)


def _tiles(path: Path, table: ForeignTable, name: TableName, engine: str) -> dict[int, Tile]:
    faults = [*judge.of_keys(table, engine), *judge.of_entries(table, name, engine)]
    worst = [fault for fault in faults if fault.code != "unsorted_keys"]
    if worst:
        raise ConfigFileError(path, worst[0].where, worst[0].message, worst[0].fix)
    return {m: judge.clamped(tile_of(entry), name) for m, entry in table.entries.items()}


def _extras(table: ForeignTable) -> list[str]:
    """A note for what a Tile cannot hold: AMD's and Intel's compiler options."""
    words = sorted({key for entry in table.entries.values() for key in extras(entry)} & entries_of.KEYS.keys())
    return [f"{', '.join(words)} left out: kernelmux's tiles have none."] if words else []


def _quant(path: Path, name: TableName) -> MoeQuant:
    if name.backend:
        problem = f"it is a table of the {name.backend} kernel, not of Triton's."
        raise ConfigFileError(path, "file name", problem, "No kernel of kernelmux reads it.")
    if name.dtype in (None, "float32"):
        return MoeQuant()
    try:
        int8 = str(name.dtype).startswith("int8")
        return MoeQuant(name.dtype, name.block_shape, name.per_channel_quant or int8)
    except UsageError as error:
        problem = f"no kernel of kernelmux has this form ({str(error).rstrip('.')})."
        raise ConfigFileError(path, "file name", problem, "Keep the file for the engine.") from error


def _shape(name: TableName, wanted: Wanted) -> MoeShape | OpenShape:
    K, topk = wanted.axes.get("K"), wanted.axes.get("topk")
    dtype = "float32" if name.dtype == "float32" else wanted.dtype
    if K is not None and topk is not None and wanted.activation is not None:
        return MoeShape(name.E, name.N, K, topk, wanted.activation, dtype)
    # Judged by the same rules; an axis that nobody said stands as 1.
    MoeShape(name.E, name.N, K or 1, topk or 1, wanted.activation or "silu", dtype)
    return OpenShape(name.E, name.N, K, topk, wanted.activation, dtype)


def _described(device_name: str) -> dict[str, Any]:
    device: Device | None = by_torch_name(device_name)
    return {
        "name": device.name if device else None,
        "torch_name": device.torch_name if device else None,
        "table_name": device_name,
    }


def _name_of(path: Path) -> TableName | None:
    try:
        return TableName.parse(path.name)
    except ValueError:
        return None


def _faulty(path: Path, reading: Reading, otherwise: str) -> ConfigFileError:
    if reading.table is None and reading.faults:
        fault = reading.faults[-1]
        return ConfigFileError(path, fault.where, fault.message, fault.fix)
    return ConfigFileError(path, "file name", otherwise, "Run `kernelmux configs check` on it.")
