"""Make an engine's tables of kernelmux's, and say what the engine's format cannot hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernelmux.errors import ConfigFileError, StoreError
from kernelmux.tuning_configs import check
from kernelmux.tuning_configs import sidecar as sidecars
from kernelmux.tuning_configs.document import read
from kernelmux.tuning_configs.engines.entry import ENGINE_TITLES
from kernelmux.tuning_configs.engines.writer import EngineFiles, engine_name, write_for
from kernelmux.tuning_configs.folders import UNKNOWN, spelled, version_folder
from kernelmux.tuning_configs.names import TableName
from kernelmux.tuning_configs.reconcile import reconciled
from kernelmux.tuning_configs.sidecar import Sidecar
from kernelmux.tuning_configs.table import MoeTable


@dataclass(frozen=True, slots=True)
class Exported:
    """What came of one table: the files written, or why none were."""

    path: Path
    written: EngineFiles | None
    notes: tuple[str, ...] = ()
    refused: str = ""

    def to_json(self) -> dict[str, Any]:
        files = [str(path) for path in self.written or () if path is not None]
        return {"path": str(self.path), "written": files, "notes": list(self.notes), "refused": self.refused or None}


def export_tables(
    paths: Iterable[Path | str], engine: str, out: Path | str, triton: str | None = None
) -> list[Exported]:
    """Write each kernelmux table of ``paths`` for ``engine``, below ``out``: the folder to point the engine at.

    A table is refused when another of this export has its engine name (K, topk and activation are not in it), or
    when its Triton version is not known and not given. Raises StoreError when the folder cannot be written.
    """
    done: list[Exported] = []
    taken: dict[str, Path] = {}
    for path in check.table_files(paths):
        if path.name.endswith(".meta.json"):
            continue
        try:
            name = TableName.parse(path.name)
            if name.down:
                continue
            table, meta, notes = load(path, name)
            version = triton or _triton(path, meta)
            asked = engine_name(engine, name).format()
            if not version:
                raise ConfigFileError(
                    path, "", "nothing says under which Triton it was tuned.", "Give --triton-version."
                )
            if (earlier := taken.setdefault(f"{version} {asked}", path)) != path:
                problem = f"{ENGINE_TITLES[engine]} asks for it as {asked}, which is {earlier} already."
                raise ConfigFileError(path, "file name", problem, "Export the two to different folders.")
            written = write_for(engine, out, name, table, version)
            done.append(Exported(path, written, (*notes, *_lost(engine, table, meta))))
        except ValueError as error:
            done.append(Exported(path, None, refused=f"{path.name}: {error}."))
        except ConfigFileError as error:
            done.append(Exported(path, None, refused=str(error)))
        except StoreError as error:
            if "cannot find" not in str(error):
                raise
            done.append(Exported(path, None, refused=str(error)))
    return done


def load(path: Path, name: TableName) -> tuple[MoeTable, Sidecar | None, tuple[str, ...]]:
    """A kernelmux pair with its sidecar, reconciled; a missing down table is up's. Raises ConfigFileError."""
    up = read(path).checked()
    down_path, side_path = path.with_name(name.side(True).format()), path.with_name(name.sidecar)
    down = read(down_path).checked() if down_path.exists() else up
    meta = sidecars.load(side_path) if side_path.exists() else None
    table, notes = reconciled(up.tiles, down.tiles, path)
    return table, meta, notes


def _triton(path: Path, meta: Sidecar | None) -> str:
    said = meta.versions.get("triton", "") if meta is not None else ""
    if said:
        return said
    version = version_folder(path.absolute().parent.name)
    return spelled(version) if version and version != UNKNOWN else ""


def _lost(engine: str, table: MoeTable, meta: Sidecar | None) -> list[str]:
    """What the engine's file cannot say of this table."""
    notes = []
    if engine == "vllm":
        other = [m for m in table.keys if table.up[m] != table.down[m]]
        if other:
            listed = ", ".join(map(str, other))
            notes.append(f"vLLM runs one tile for both GEMMs: up's; down's own at M={listed} is left out.")
        if any(tile.use_tma for tile in table.up.values()):
            notes.append("vLLM has no USE_TMA: left out.")
    if meta is not None and meta.source == "measured" and meta.reader == "kernelmux":
        title = ENGINE_TITLES[engine]
        notes.append(
            f"measured on kernelmux's fused kernel, not on {title}'s: `tune --format {engine}` measures there."
        )
    if meta is not None and meta.source == "predicted":
        notes.append("predicted, not measured.")
    return notes
