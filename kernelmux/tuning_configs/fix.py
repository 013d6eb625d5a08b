"""Mend what ``configs check`` finds, where the mend is certain: ``configs check --fix``.

Every file changed is written whole, and its bytes from before stay beside it as ``<name>.bak``. What cannot be mended
(values no launch takes, dead names, files that are no table) is left as it is. Tables with a sidecar are not touched:
they are what was measured.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelmux.device import by_torch_name
from kernelmux.registry import epoch
from kernelmux.store.files import locked, store_error, write_whole
from kernelmux.tuning_configs import check
from kernelmux.tuning_configs.engines import entry as entries_of
from kernelmux.tuning_configs.engines import foreign, judge, vllm
from kernelmux.tuning_configs.engines.entry import tile_of, with_tile
from kernelmux.tuning_configs.engines.foreign import NOTE, ForeignTable, is_count
from kernelmux.tuning_configs.engines.question import nearest
from kernelmux.tuning_configs.names import TableName
from kernelmux.tuning_configs.reconcile import reconciled
from kernelmux.tuning_configs.shared_law import LAW_TRITON, shrunk
from kernelmux.tuning_configs.tile import JSON_KEYS

if TYPE_CHECKING:
    from kernelmux.device import Device

_TEXT = ("bom", "crlf", "odd_spelling", "duplicate_key")


@dataclass(frozen=True, slots=True)
class Mended:
    """One file that was changed: where its old bytes are, its name now, and which faults are gone."""

    path: Path
    backup: Path
    now: Path
    codes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "backup": str(self.backup),
            "now": str(self.now),
            "mended": list(self.codes),
        }


@dataclass(slots=True)
class _Work:
    """A table on its way: what it is now, and which faults it has lost."""

    path: Path
    name: TableName
    form: str
    data: bytes
    table: ForeignTable
    codes: list[str]

    @property
    def device(self) -> Device | None:
        return by_torch_name(self.name.device_name) if self.name.device_name else None

    @property
    def sizes(self) -> tuple[float, float] | None:
        return judge.BYTES.get(self.name.dtype)

    def becomes(self, pairs: Mapping[str, Any], code: str) -> None:
        """Take other pairs; note the fault as gone if they differ, in what they hold or in their order."""
        if tuple(pairs.items()) != self.table.pairs:
            self.table = self.table.with_pairs(pairs)
            self.codes.append(code)


def mend(paths: Iterable[Path | str], engine: str | None = None) -> list[Mended]:
    """Mend the tables that ``check`` of the same arguments would judge; what was changed. Raises StoreError."""
    done: list[Mended] = []
    files = [file for file in check.table_files(paths) if not file.name.endswith(".meta.json")]
    works: dict[Path, _Work] = {}
    for path in files:
        work = _started(path, engine)
        if work is not None:
            works[path] = work
    for path, work in list(works.items()):
        _of_text(work)
        _of_entries(work)
        other = path.with_name(work.name.side(not work.name.down).format())
        if other not in works and work.form != "vllm":
            partner = _started(other, work.form) if other.exists() else None
            if partner is not None:
                works[other] = partner
    for path, work in works.items():
        if not work.name.down:
            _of_pair(work, works.get(path.with_name(work.name.side(True).format())))
    for work in works.values():
        now = _renamed(work)
        if work.codes:
            done.append(_written(work, now))
    if done:
        epoch.bump()
    return done


def _started(path: Path, engine: str | None) -> _Work | None:
    reading = foreign.read(path)
    if reading.table is None or any(fault.code == "symlink" for fault in reading.faults):
        return None
    try:
        name = TableName.parse(path.name)
    except ValueError:
        return None
    form = engine or check.format_of(path, name, reading)
    if path.with_name(name.sidecar).exists():
        return None
    codes = [fault.code for fault in reading.faults if fault.code in _TEXT]
    return _Work(path, name, form, reading.data, reading.table, codes)


def _of_text(work: _Work) -> None:
    """Keys beside the token counts go, counts ascend. Byte order mark, CR LF and odd spelling went in reading."""

    def kept(key: str) -> bool:
        return is_count(key) or (key == NOTE and work.form != "sglang")

    pairs = dict(work.table.pairs)
    work.becomes({key: value for key, value in pairs.items() if kept(key)}, "key_not_integer")
    work.becomes(foreign.sorted_pairs(work.table), "unsorted_keys")


def _of_entries(work: _Work) -> None:
    """Keys on which the launch fails go; values that the launcher replaces become what it runs; tiles fit."""
    vendor = entries_of.vendor_of(work.name.device_name)

    def without_foreign(entry: Mapping[str, Any]) -> dict[str, Any]:
        bad = {"unknown_key", "foreign_key"}
        return {
            key: value
            for key, value in entry.items()
            if not any(
                fault.code in bad for fault in entries_of.faults("", {key: value}, work.form, vendor, work.name.backend)
            )
            and (work.form != "kernelmux" or key in JSON_KEYS)
        }

    _each(work, without_foreign, "unknown_key")
    if any(judge.of_entries(work.table, work.name, work.form)):
        return  # values that no launch takes: nobody knows what was meant
    if work.name.backend:
        _each(work, judge.flydsl_snapped, "clamped")
        return
    _each(work, lambda entry: {**entry, "SPLIT_K": 1} if "SPLIT_K" in entry else dict(entry), "clamped")
    if any(judge.of_values(work.table, work.name, work.form)):
        code = "wrong_scale" if work.form == "sglang" else "clamped"
        _each(work, lambda entry: with_tile(entry, judge.clamped(tile_of(entry), work.name)), code)
    device, sizes = work.device, work.sizes
    if device is None or sizes is None:
        return
    triton = check.triton_of(work.path, work.table)
    over = {fault.where for fault in judge.of_memory(work.table, work.name, device, triton)}
    pairs = {
        key: with_tile(entry, shrunk(tile_of(entry), device, *sizes, triton or LAW_TRITON)) if key in over else entry
        for key, entry in work.table.pairs
    }
    work.becomes(pairs, "shared_memory")


def _each(work: _Work, change: Callable[[Mapping[str, Any]], Mapping[str, Any]], code: str) -> None:
    pairs = {
        key: change(entry) if is_count(key) and isinstance(entry, Mapping) else entry for key, entry in work.table.pairs
    }
    work.becomes(pairs, code)


def _of_pair(up: _Work, down: _Work | None) -> None:
    """Where the two disagree, `reconciled` chooses BLOCK_SIZE_M and fetches measured tiles for the side that moves."""
    if down is None or up.form == "vllm":
        return
    works = (up, down)
    if any(not w.table.entries or any(judge.of_entries(w.table, w.name, w.form)) for w in works):
        return
    if not any(judge.of_pair(up.table.entries, down.table.entries, up.form)):
        return
    sides = [{m: tile_of(entry) for m, entry in w.table.entries.items()} for w in works]
    table, _ = reconciled(sides[0], sides[1], up.path, up.device, *(up.sizes or (2, 2)))
    for work, tiles in ((up, table.up), (down, table.down)):
        theirs = work.table.entries
        notes = {key: value for key, value in work.table.pairs if not is_count(key)}
        found = {str(m): with_tile(theirs[nearest(theirs, m)], tile) for m, tile in tiles.items()}
        work.becomes({**notes, **found}, "pair_block_m")


def _renamed(work: _Work) -> Path:
    """The path under which the engine asks for the table, where only the spelling was off and the name is free."""
    name = work.name
    if work.form == "vllm" and not name.backend and not name.down:
        device = vllm.device_name(name.device_name) if name.device_name else ""
        name = replace(name, blank=False, device_name=device)
    elif work.form == "sglang":
        name = replace(name, blank=True)
    now = work.path.with_name(name.format())
    if now == work.path or now.exists():
        return work.path
    work.codes.append("unreachable")
    return now


def _written(work: _Work, now: Path) -> Mended:
    folder = work.path.parent
    with locked(folder / ".kernelmux"):
        backup = _free_backup(work.path)
        write_whole(backup, work.data)
        write_whole(now, work.table.render())
        if now != work.path:
            try:
                os.unlink(work.path)
            except OSError as error:
                raise store_error(error, "rename", work.path) from error
    return Mended(work.path, backup, now, tuple(dict.fromkeys(work.codes)))


def _free_backup(path: Path) -> Path:
    """``<name>.bak``, or with a number where earlier backups stand: the first one is never lost."""
    number = 1
    while True:
        backup = path.with_name(f"{path.name}.bak{'' if number == 1 else number}")
        if not os.path.lexists(backup):
            return backup
        number += 1
