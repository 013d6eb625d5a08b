"""Write a tuned pair of tables and its sidecar, so that a reader finds all three or notices."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.errors import ConfigFileError, StoreError
from kernelmux.registry import epoch
from kernelmux.store.files import locked, sweep, write_whole
from kernelmux.tuning_configs import sidecar as sidecars
from kernelmux.tuning_configs.folders import IMPORTED, PREDICTED, folder_name, spelled_unknown
from kernelmux.tuning_configs.names import TableName
from kernelmux.tuning_configs.sidecar import OpenShape, Sidecar
from kernelmux.tuning_configs.table import MoeTable
from kernelmux.tuning_configs.tile import Tile

if TYPE_CHECKING:
    from kernelmux.device import Device


class Written(NamedTuple):
    """The three files of one table."""

    up: Path
    down: Path
    sidecar: Path


def render(tiles: Mapping[int, Tile]) -> str:
    """A table file's text: keys ascending, four blanks of indent, as SGLang's and vLLM's own tuners write."""
    return json.dumps({str(m): tiles[m].to_json() for m in sorted(tiles)}, indent=4) + "\n"


def write_table(folder: Path | str, device: Device, shape: MoeShape, table: MoeTable, sidecar: Sidecar) -> Written:
    """Write ``table`` below ``folder``, in the sub-folder of ``sidecar.versions["triton"]`` (``predicted/...`` for a
    prediction), replacing an earlier table of the same shape.

    Whole files under one lock a folder; the sidecar goes last and carries the hashes of the other two, so a pair
    that was cut short is noticed when read. Where the plain name belongs to another K, topk or activation, or to a
    table from elsewhere, the name gets them as a qualifier. Cached selections are made anew. Raises StoreError.
    """
    if not sidecar.versions.get("triton"):
        raise ValueError("the sidecar's versions must name triton")
    return write_pair(folder, device.table_name, table, replace(sidecar, shape=shape))


def write_pair(folder: Path | str, device_name: str, table: MoeTable, sidecar: Sidecar) -> Written:
    """`write_table` for a device by the name that tables carry; ``sidecar.shape`` may be open (imported tables)."""
    shape = sidecar.shape
    version = sidecar.versions.get("triton") or spelled_unknown()
    base = Path(folder) / {"predicted": PREDICTED, "imported": IMPORTED}.get(sidecar.source, "")
    target = base / folder_name(version)
    texts = {"up": render(table.up), "down": render(table.down)}
    final = replace(sidecar, sha256={side: digest(text) for side, text in texts.items()})
    try:
        plain = TableName.of(device_name, shape, quant=sidecar.quant)
    except ValueError as error:
        raise StoreError(f"no table file can be named after {device_name!r}: {error}.") from error
    with locked(target / ".kernelmux"):
        sweep(target)
        name = _name(target, plain, shape)
        written = Written(target / name.format(), target / name.side(True).format(), target / name.sidecar)
        write_whole(written.up, texts["up"])
        write_whole(written.down, texts["down"])
        write_whole(written.sidecar, final.text())
    epoch.bump()
    return written


def digest(text: str | bytes) -> str:
    """The hash that sidecars keep of a file."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def _name(folder: Path, plain: TableName, shape: MoeShape | OpenShape) -> TableName:
    """The name under which this shape is in the folder already, else the plain one if free, else the qualified.

    A shape that is not wholly known has the plain name only, and takes it.
    """
    if isinstance(shape, OpenShape):
        return plain
    qualified = plain.qualified(shape)
    for name in (plain, qualified):
        if same_problem(folder / name.sidecar, shape):
            return name
    taken = any((folder / part).exists() for part in (plain.format(), plain.side(True).format(), plain.sidecar))
    return qualified if taken else plain


def same_problem(path: Path, shape: MoeShape | OpenShape) -> bool:
    """Whether the sidecar there is of this shape; bf16 and fp16 count as one."""
    if not path.exists():
        return False
    try:
        there = sidecars.load(path).shape
    except ConfigFileError:
        return False
    return replace(there, dtype=shape.dtype) == shape
