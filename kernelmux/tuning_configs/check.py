"""Judge table files by the rules of whoever reads them: `kernelmux configs check`.

Everything is reported as a value, one list of faults a file; `fix` mends what can be mended.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernelmux.device import by_torch_name
from kernelmux.errors import ConfigFileError
from kernelmux.tuning_configs import sidecar as sidecars
from kernelmux.tuning_configs.document import Fault, capped, read
from kernelmux.tuning_configs.engines import foreign, judge
from kernelmux.tuning_configs.engines.foreign import ForeignTable, Reading
from kernelmux.tuning_configs.folders import IMPORTED, PACKAGED, PREDICTED, roots, spelled, version_folder
from kernelmux.tuning_configs.lookup import verify
from kernelmux.tuning_configs.names import TableName

ENGINES = ("vllm", "sglang", "kernelmux")
_RETUNE = "Tune the shape again."


@dataclass(frozen=True, slots=True)
class FileReport:
    """One file, whose grammar it follows ("kernelmux", "sglang" or "vllm"), and what is wrong with it."""

    path: Path
    format: str
    faults: tuple[Fault, ...]

    @property
    def ok(self) -> bool:
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        faults = [fault.to_json() for fault in self.faults]
        return {"path": str(self.path), "format": self.format, "ok": self.ok, "faults": faults}


def check(paths: Iterable[Path | str], engine: str | None = None) -> list[FileReport]:
    """Judge files, and every table and sidecar below folders, in name order. Never raises for what is in them.

    ``engine`` says whose tables they are; without it each file tells by what only one of the three writes.
    """
    files = table_files(paths)
    chosen = set(files)
    return [_sidecar(file) if file.name.endswith(".meta.json") else _table(file, chosen, engine) for file in files]


def table_files(paths: Iterable[Path | str]) -> list[Path]:
    """The files that ``check`` judges: those named, and every table (and lone sidecar) below the folders named."""
    return list(dict.fromkeys(file for path in paths for file in _files(Path(path))))


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for folder, below, names in os.walk(path):
        below[:] = sorted(name for name in below if not name.startswith("."))
        listed = set(names)
        for name in sorted(listed):
            # A sidecar is judged with its table; alone, it has lost it.
            alone = name.endswith(".meta.json") and name.removesuffix(".meta.json") + ".json" not in listed
            if alone or (name.endswith(".json") and not name.endswith(".meta.json") and _claims(name, Path(folder))):
                yield Path(folder, name)


def _claims(name: str, folder: Path) -> bool:
    """Whether a name in a folder claims to be a MoE table. Engines keep others: those of dense GEMMs have a grammar of
    their own, and SGLang's of other kernels lie beside its version folders.
    """
    if re.match(r"N=\d+,K=\d+,device_name=", name):
        return False
    return "E=" in name or folder.parts[-2:] != ("triton_utils", "configs")


def _sidecar(path: Path) -> FileReport:
    table = path.with_name(path.name.removesuffix(".meta.json") + ".json")
    try:
        sidecars.load(path)
    except ConfigFileError as error:
        return FileReport(path, "kernelmux", (_of(error, "bad_sidecar"),))
    if table.exists():
        return FileReport(path, "kernelmux", tuple(_against_sidecar(table, path, None)))
    fault = Fault("no_table", "", f"its table {table.name} is not beside it.", f"Remove it. {_RETUNE}")
    return FileReport(path, "kernelmux", (fault,))


def _table(path: Path, chosen: set[Path], engine: str | None) -> FileReport:
    reading = foreign.read(path)
    try:
        name = TableName.parse(path.name)
    except ValueError as error:
        form = engine or format_of(path, None, reading)
        fault = Fault("malformed_name", "file name", f"{error}.", "Rename it; no lookup can find it.")
        return FileReport(path, form, (fault, *reading.faults))
    form = engine or format_of(path, name, reading)
    faults = [*judge.of_name(path, name, form), *reading.faults]
    sound = reading.table is not None
    if reading.table is not None:
        faults += judge.of_keys(reading.table, form)
        of_entries = list(judge.of_entries(reading.table, name, form))
        faults += of_entries
        sound = not of_entries and bool(reading.table.entries)
        if sound:
            faults += _of_sound(path, reading.table, name, form)
    other = path.with_name(name.side(not name.down).format())
    last = not name.down or other not in chosen  # a pair is judged once, with its up table
    if form != "vllm" and name.down and not other.exists():
        faults.append(Fault("no_up_table", "", f"its up table {other.name} is not beside it.", _RETUNE))
    elif form != "vllm" and other.exists() and last and sound and reading.table is not None:
        partner = sound_table(other, form)
        if partner is not None:
            up, down = (partner, reading.table) if name.down else (reading.table, partner)
            faults += judge.of_pair(up.entries, down.entries, form)
    side_path = path.with_name(name.sidecar)
    if side_path.exists() and last:
        faults += _against_sidecar(path, side_path, name)
    elif form == "kernelmux" and not side_path.exists() and not name.down:
        message = f"its sidecar {side_path.name} is missing, so nothing says what it was tuned for."
        faults.append(Fault("no_sidecar", "", message, _RETUNE))
    return FileReport(path, form, tuple(capped(faults)))


def _of_sound(path: Path, table: ForeignTable, name: TableName, form: str) -> Iterator[Fault]:
    yield from judge.of_values(table, name, form)
    device = by_torch_name(name.device_name) if name.device_name else None
    if device is not None:
        yield from judge.of_memory(table, name, device, triton_of(path, table))


def sound_table(path: Path, form: str) -> ForeignTable | None:
    """The table of ``path`` when every entry of it can be launched; its other faults are reported where they are."""
    table = foreign.read(path).table
    try:
        name = TableName.parse(path.name)
    except ValueError:
        return None
    if table is None or not table.entries or any(judge.of_entries(table, name, form)):
        return None
    return table


def triton_of(path: Path, table: ForeignTable) -> str:
    """The Triton version that a table was tuned under, from its note or its folder; "" where neither says."""
    if table.triton_version:
        return table.triton_version
    version = version_folder(path.absolute().parent.name)
    return spelled(version) if version else ""


def format_of(path: Path, name: TableName | None, reading: Reading) -> str:
    """Whose table this is, judged by what only one of the three writes."""
    if name is not None and (name.K is not None or path.with_name(name.sidecar).exists()):
        try:
            return sidecars.load(path.with_name(name.sidecar)).reader
        except ConfigFileError:
            return "kernelmux"
    folder = path.absolute().parent
    if any(root in folder.parents for root in (PACKAGED, roots()[0])) or folder.parent.name in (PREDICTED, IMPORTED):
        return "kernelmux"
    if folder.name.startswith("triton_"):
        return "sglang"
    noted = reading.table is not None and reading.table.triton_version is not None
    if noted or (name is not None and not name.blank):
        return "vllm"
    paired = name is not None and (name.down or path.with_name(name.side(True).format()).exists())
    return "sglang" if paired or (name is not None and name.block_shape) else "vllm"


def _against_sidecar(path: Path, side_path: Path, name: TableName | None) -> Iterator[Fault]:
    try:
        meta = sidecars.load(side_path)
    except ConfigFileError as error:
        yield _of(error, "bad_sidecar")
        return
    document = read(path)
    named = name or TableName.parse(document.path.name)
    down = document if named.down else None
    up = read(document.path.with_name(named.side(False).format())) if named.down else document
    if down is None:
        down_path = document.path.with_name(named.side(True).format())
        down = read(down_path) if down_path.exists() else None
    try:
        verify(meta, side_path, up, down)
    except ConfigFileError as error:
        yield _of(error, "edited")
    for axis in ("E", "N", "K", "topk", "activation"):
        said = getattr(named, axis)
        if said is not None and said != getattr(meta.shape, axis):
            message = f"the name says {axis}={said}, the sidecar {getattr(meta.shape, axis)}."
            yield Fault("sidecar_mismatch", f"shape.{axis}", message, f"Rename the file. {_RETUNE}")


def _of(error: ConfigFileError, code: str) -> Fault:
    where = f"{error.path.name} {error.where}".strip()
    return Fault(code, where, error.problem, error.fix)
