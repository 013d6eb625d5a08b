"""Judge table files by the rules of whoever reads them: `kernelmux configs check`.

Everything is reported as a value, one list of faults a file; nothing is repaired here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernelmux.device import Device, by_torch_name
from kernelmux.errors import ConfigFileError
from kernelmux.tuning_configs import sidecar as sidecars
from kernelmux.tuning_configs.document import Document, Fault, read
from kernelmux.tuning_configs.folders import PACKAGED, PREDICTED, roots
from kernelmux.tuning_configs.lookup import verify
from kernelmux.tuning_configs.names import TableName
from kernelmux.tuning_configs.shared_law import lower_bound, predicted_shared
from kernelmux.tuning_configs.tile import Tile

# Bytes per element of (activations, weights) by the name's dtype; a dtype not listed is not judged.
_BYTES: dict[str | None, tuple[float, float]] = {
    None: (2, 2),
    "float32": (4, 4),
    "fp8_w8a8": (1, 1),
    "int8_w8a8": (1, 1),
    "int8_w8a16": (2, 1),
    "fp8_w8a16": (2, 1),
    "int4_w4a16": (2, 0.5),
}
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


def check(paths: Iterable[Path | str]) -> list[FileReport]:
    """Judge files, and every table and sidecar below folders, in name order. Never raises for what is in them."""
    files = list(dict.fromkeys(file for path in paths for file in _files(Path(path))))
    chosen = set(files)
    return [_sidecar(file) if file.name.endswith(".meta.json") else _table(file, chosen) for file in files]


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
            if (name.endswith(".json") and not name.endswith(".meta.json")) or alone:
                yield Path(folder, name)


def _sidecar(path: Path) -> FileReport:
    table = path.with_name(path.name.removesuffix(".meta.json") + ".json")
    try:
        sidecars.load(path)
    except ConfigFileError as error:
        return FileReport(path, "kernelmux", (_of(error, "bad_sidecar"),))
    if table.exists():
        return FileReport(path, "kernelmux", tuple(_against_sidecar(read(table), path, None)))
    fault = Fault("no_table", "", f"its table {table.name} is not beside it.", f"Remove it. {_RETUNE}")
    return FileReport(path, "kernelmux", (fault,))


def _table(path: Path, chosen: set[Path]) -> FileReport:
    document = read(path)
    try:
        name: TableName | None = TableName.parse(path.name)
    except ValueError as error:
        reason = str(error)
        form = _format(path, None, document)
        fault = Fault("malformed_name", "file name", f"{reason}.", "Rename it; no lookup can find it.")
        return FileReport(path, form, (fault, *document.faults))
    assert name is not None
    form = _format(path, name, document)
    faults = [*_of_name(path, name), *document.faults, *_of_order(document)]
    if document.notes and form != "vllm":
        message = f"{document.notes[0]} beside the token counts: SGLang reads every key as a number and fails."
        faults.append(Fault("note_key", document.notes[0], message, "Remove the key."))
    device = by_torch_name(name.device_name) if name.device_name else None
    if device is not None:
        faults += _of_memory(document, name, device)
    other = path.with_name(name.side(not name.down).format())
    if name.down and not other.exists():
        faults.append(Fault("no_up_table", "", f"its up table {other.name} is not beside it.", _RETUNE))
    elif other.exists() and (not name.down or other not in chosen) and not document.faults:
        partner = read(other)
        faults += _of_pair(*((partner, document) if name.down else (document, partner)))
    side_path = path.with_name(name.sidecar)
    if side_path.exists() and (not name.down or other not in chosen):
        faults += _against_sidecar(document, side_path, name)
    elif form == "kernelmux" and not side_path.exists() and not name.down:
        message = f"its sidecar {side_path.name} is missing, so nothing says what it was tuned for."
        faults.append(Fault("no_sidecar", "", message, _RETUNE))
    return FileReport(path, form, tuple(faults))


def _format(path: Path, name: TableName | None, document: Document) -> str:
    """Whose table this is, judged by what only one of the three writes."""
    if name is not None and (name.K is not None or path.with_name(name.sidecar).exists()):
        return "kernelmux"
    folder = path.absolute().parent
    if any(root in folder.parents for root in (PACKAGED, roots()[0])) or folder.parent.name == PREDICTED:
        return "kernelmux"
    if document.notes or (name is not None and not name.blank):
        return "vllm"
    if folder.name.startswith("triton_") or (name is not None and (name.down or name.block_shape)):
        return "sglang"
    return "vllm"


def _of_name(path: Path, name: TableName) -> Iterator[Fault]:
    if not name.device_name:
        fix = "Write the name torch reports, with _ for blanks."
        yield Fault("empty_device", "device_name", "the name carries no device, so no lookup can find it.", fix)
    folder = path.absolute().parent.name
    if folder.startswith("triton_") and not re.fullmatch(r"triton_\d+_\d+_\d+", folder):
        fix = "Name the folder after the release, like triton_3_6_0."
        yield Fault("odd_folder", "folder", f"SGLang fails on the folder name {folder!r}.", fix)


def _of_order(document: Document) -> Iterator[Fault]:
    for before, after in zip(document.order, document.order[1:], strict=False):
        if after < before:
            message = f"M={after} follows M={before}; engines break ties by the order in the file."
            yield Fault("unsorted_keys", str(after), message, "Sort the keys by their number.")
            return


def _of_memory(document: Document, name: TableName, device: Device) -> Iterator[Fault]:
    sizes = _BYTES.get(name.dtype)
    if sizes is None or device.shared_bytes <= 0:
        return
    for m, tile in document.tiles.items():
        # Engines clamp BLOCK_SIZE_K to the quantization block before the launch.
        block_k = min(tile.block_k, *name.block_shape) if name.block_shape else tile.block_k
        need = _least(Tile(tile.block_m, tile.block_n, block_k, 1, tile.warps, tile.stages), device, *sizes)
        if need > device.shared_bytes:
            message = (
                f"{tile.short()} needs {need:,} bytes of shared memory; {device.name} has {device.shared_bytes:,}."
            )
            yield Fault("shared_memory", str(m), message, f"Lower num_stages or a block size. {_RETUNE}")


def _least(tile: Tile, device: Device, a_bytes: float, b_bytes: float) -> int:
    predicted, exact = predicted_shared(tile, device.capability, a_bytes, b_bytes)
    return predicted if exact else lower_bound(tile, device.capability, a_bytes, b_bytes)


def _of_pair(up: Document, down: Document) -> Iterator[Fault]:
    if up.faults or down.faults:
        return  # reported where they are
    odd = sorted(up.tiles.keys() ^ down.tiles.keys())
    if odd:
        message = f"only one of up and down has M={', '.join(map(str, odd[:8]))}{', ...' if len(odd) > 8 else ''}."
        yield Fault("pair_keys", str(odd[0]), message, _RETUNE)
    for m in sorted(up.tiles.keys() & down.tiles.keys()):
        left, right = up.tiles[m].block_m, down.tiles[m].block_m
        if left != right:
            message = f"BLOCK_SIZE_M is {left} for up and {right} for down; both GEMMs share one token order."
            yield Fault("pair_block_m", str(m), message, f"Write {left} for both, or better: tune the shape again.")


def _against_sidecar(document: Document, side_path: Path, name: TableName | None) -> Iterator[Fault]:
    try:
        meta = sidecars.load(side_path)
    except ConfigFileError as error:
        yield _of(error, "bad_sidecar")
        return
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
