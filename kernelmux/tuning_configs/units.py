"""The tables below a folder as units: an up table with its down table and sidecar, under one place and name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from kernelmux.errors import ConfigFileError
from kernelmux.tuning_configs import check
from kernelmux.tuning_configs import sidecar as sidecars
from kernelmux.tuning_configs.document import FileFault, read_bytes
from kernelmux.tuning_configs.folders import IMPORTED, PREDICTED, version_folder
from kernelmux.tuning_configs.names import TableName
from kernelmux.tuning_configs.sidecar import Sidecar


@dataclass(frozen=True, slots=True)
class Unit:
    """One table's files by their bytes. ``place`` is the folder below the root ("triton_3_6_0", "predicted/...")."""

    root: Path
    place: str
    name: TableName
    files: tuple[tuple[str, bytes], ...]  # (file name, bytes), by name
    sidecar: Sidecar | None

    @property
    def key(self) -> tuple[str, str]:
        return self.place, self.name.format()

    @property
    def path(self) -> Path:
        """The up table, or the down table where it stands alone."""
        return self.root / self.place / self.files[0][0]

    @property
    def canonical(self) -> str:
        """The name without an engine's spelling, to match tables across engines."""
        return replace(self.name, blank=True).format()


def units(root: Path) -> Iterator[Unit]:
    """Every table below a folder, or the one of a file, in name order. What has no table's name is passed over."""
    seen: set[tuple[Path, str]] = set()
    for path in check.table_files([root]):
        if path.name.endswith(".meta.json"):
            continue
        try:
            name = TableName.parse(path.name).side(False)
        except ValueError:
            continue
        if (path.parent, name.format()) in seen:
            continue
        seen.add((path.parent, name.format()))
        unit = _unit(root, path.parent, name)
        if unit is not None:
            yield unit


def _unit(root: Path, folder: Path, name: TableName) -> Unit | None:
    names = (name.format(), name.side(True).format(), name.sidecar)
    files = [(each, data) for each in names if (data := _bytes(folder / each)) is not None]
    if not files:
        return None
    try:
        meta = sidecars.load(folder / name.sidecar)
    except ConfigFileError:
        meta = None
    base, place = _place(root, folder)
    return Unit(base, place, name, tuple(files), meta)


def _bytes(path: Path) -> bytes | None:
    try:
        return read_bytes(path)
    except FileFault:
        return None


def _place(root: Path, folder: Path) -> tuple[Path, str]:
    """The root proper and the place below it; a root that is itself a version folder keeps its name in the place."""
    base = root if root.is_dir() else folder
    if version_folder(base.name):
        base = base.parent
    if base.name in (PREDICTED, IMPORTED):
        base = base.parent
    place = folder.relative_to(base).as_posix()
    return base, "" if place == "." else place
