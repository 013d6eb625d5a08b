"""A table file of an engine as a value that keeps everything: order, spelling of entries, notes, white space.

``ForeignTable.read(path)`` never raises for what a file holds; an accepted file rendered again has the same bytes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kernelmux.tuning_configs import document
from kernelmux.tuning_configs.document import BOM, Fault, FileFault
from kernelmux.tuning_configs.engines.entry import Entry
from kernelmux.tuning_configs.engines.layout import USUAL, Layout, layout_of

NOTE = document.VLLM_NOTE
_AGAIN = "Copy the file again from where it came, or tune the shape again."
_MEND = "Run `kernelmux configs check --fix`, or save it anew."


@dataclass(frozen=True, slots=True)
class ForeignTable:
    """Top-level (key, value) pairs in the file's order, and the layout. Keys are kept as text."""

    pairs: tuple[tuple[str, Any], ...]
    layout: Layout = USUAL

    @property
    def entries(self) -> Mapping[int, Entry]:
        """Token count -> entry, in the file's order, without keys that are no count and values that are no tile."""
        return MappingProxyType(
            {int(key): value for key, value in self.pairs if is_count(key) and isinstance(value, Mapping)}
        )

    @property
    def triton_version(self) -> str | None:
        """vLLM's note of the Triton version that the table was tuned under."""
        return next((str(value) for key, value in self.pairs if key == NOTE), None)

    def render(self) -> bytes:
        """The file's bytes."""
        text = self.layout.render(self.pairs)
        try:
            return text.encode()
        except UnicodeEncodeError:  # half a surrogate pair in a key: escaped, as it must have been
            return (json.dumps(dict(self.pairs), indent=4) + "\n").encode()

    def with_pairs(self, pairs: Mapping[str, Any]) -> ForeignTable:
        """The same layout with other pairs; white space set by hand gives way to the engines' own where it must."""
        items = tuple(pairs.items())
        if self.layout.gaps and [key for key, _ in items] != [key for key, _ in self.pairs]:
            return ForeignTable(items)
        made = ForeignTable(items, self.layout)
        try:
            made.render()
        except ValueError:
            return ForeignTable(items)
        return made

    @classmethod
    def of(cls, entries: Mapping[int, Entry], triton_version: str | None = None) -> ForeignTable:
        """A table as the engines' tuners write one: ascending, four blanks, vLLM's note first when given."""
        head: list[tuple[str, Any]] = [(NOTE, triton_version)] if triton_version else []
        return cls((*head, *((str(m), dict(entries[m])) for m in sorted(entries))))


@dataclass(frozen=True, slots=True)
class Reading:
    """What came of reading a file: the table, if it could be read at all, and the faults of its text.

    Entries are not judged here, and neither is the name: see `kernelmux.tuning_configs.check`.
    """

    path: Path
    table: ForeignTable | None
    faults: tuple[Fault, ...] = ()
    data: bytes = b""

    @property
    def launchable(self) -> bool:
        """Whether an engine gets past reading it: JSON whose keys are all token counts (vLLM's note aside)."""
        if self.table is None or any(fault.code == "bom" for fault in self.faults):
            return False
        return all(is_count(key) or key == NOTE for key, _ in self.table.pairs)


def read(path: Path | str) -> Reading:
    """Read a table file, bounded in time and memory; see `Reading`."""
    path = Path(path)
    faults = list(_of_link(path))
    try:
        data = document.read_bytes(path)
        text_bytes = data
        if data.startswith(BOM):
            faults.append(Fault("bom", "byte 0", document.BOM_SAYS, _MEND))
            text_bytes = data[len(BOM) :]
        if b"\r" in text_bytes:
            faults.append(Fault("crlf", "", "its lines end in CR LF, which no engine's tuner writes.", _MEND))
        raw, doubles = document.parse_json(text_bytes)
    except FileFault as faulty:
        return Reading(path, None, (*(fault for fault in faults if fault.code == "symlink"), faulty.fault))
    if not isinstance(raw, dict):
        fault = Fault("not_a_table", "", "a table is a JSON object from token counts to tiles.", _AGAIN)
        return Reading(path, None, (*faults, fault), data)
    if len(raw) > document.MAX_KEYS:
        message = f"{len(raw):,} token counts; a table has at most {document.MAX_KEYS}."
        return Reading(path, None, (*faults, Fault("too_many_keys", "", message, _AGAIN)), data)
    if doubles:
        said = ", ".join(repr(key)[:40] for key in dict.fromkeys(doubles[:8]))
        faults.append(Fault("duplicate_key", said, "this key is given twice; readers take the last.", "Keep one."))
    try:
        layout = layout_of(text_bytes.decode(), raw)
    except RecursionError:
        fault = Fault("not_json", "", "its objects are nested too deeply to be a table.", _AGAIN)
        return Reading(path, None, (*faults, fault), data)
    if layout is None and not doubles and "crlf" not in {fault.code for fault in faults}:
        message = "keys or values are spelled in a way no tuner writes (escapes, or numbers like 1e2)."
        faults.append(Fault("odd_spelling", "", message, _MEND))
    if any(fault.code == "crlf" for fault in faults):
        layout = None
    return Reading(path, ForeignTable(tuple(raw.items()), layout or USUAL), tuple(faults), data)


def is_count(key: str) -> bool:
    """Whether a key is a token count: a whole number from 1 that fits int32, without sign or leading zero."""
    return re.fullmatch(r"[1-9]\d{0,9}", key, re.ASCII) is not None and int(key) < document.MAX_M


def sorted_pairs(table: ForeignTable) -> dict[str, Any]:
    """The pairs with notes first and token counts ascending."""
    notes = {key: value for key, value in table.pairs if not is_count(key)}
    counts = {key: value for key, value in table.pairs if is_count(key)}
    return {**notes, **{key: counts[key] for key in sorted(counts, key=int)}}


def relaid(table: ForeignTable) -> ForeignTable:
    """The table in the layout that the engines' tuners write."""
    return replace(table, layout=USUAL)


def _of_link(path: Path) -> list[Fault]:
    """A link out of its folder: editing the table would edit another folder's."""
    try:
        if not path.is_symlink():
            return []
        target = os.path.realpath(path, strict=True)
        outside = os.path.dirname(target) != os.path.realpath(path.parent)
    except OSError:
        return []  # a dangling or circular link: reading says so
    if not outside:
        return []
    message = f"this is a link to {target}, outside its folder."
    return [Fault("symlink", "", message, "Copy the file here instead, so that the two can differ.")]
