"""Read one table file, whatever is in it: the tiles that can be used, and a fault for each thing that cannot."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernelmux.errors import ConfigFileError
from kernelmux.store.files import sha256, store_error
from kernelmux.tuning_configs.tile import Tile

MAX_BYTES = 4 << 20  # public tables take 1 to 8 KB
MAX_KEYS = 4096  # the longest public table has 37
MAX_M = 1 << 31  # Triton indexes rows with int32
_MAX_FAULTS = 50
VLLM_NOTE = "triton_version"  # the one key beside token counts that vLLM takes out before it reads a table

BOM = b"\xef\xbb\xbf"
BOM_SAYS = "the file begins with a byte order mark, on which every engine's JSON reader fails."
BOM_FIX = "Save it as UTF-8 without one, or run `kernelmux configs check --fix`."
_AGAIN = "Copy the file again from where it came, or tune the shape again."


class KernelmuxConfigWarning(UserWarning):
    """A tuned table was repaired, reconciled or passed over; the message names the file."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a table file: a stable code, the place inside the file, what, and the mend."""

    code: str
    where: str
    message: str
    fix: str

    def to_json(self) -> dict[str, str]:
        return {"code": self.code, "where": self.where, "message": self.message, "fix": self.fix}


@dataclass(frozen=True, slots=True)
class Document:
    """A table file as read. With ``faults`` it must not be launched from; ``tiles`` holds what could be read.

    ``order`` lists the token counts as they stand in the file; ``notes`` are keys beside them that a reader takes.
    """

    path: Path
    tiles: dict[int, Tile]
    faults: tuple[Fault, ...] = ()
    order: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    data: bytes = b""

    @property
    def sha256(self) -> str:
        """Hash of the file's bytes."""
        return sha256(self.data)

    def checked(self) -> Document:
        """This document; raises ConfigFileError for its first fault."""
        if self.faults:
            fault = self.faults[0]
            raise ConfigFileError(self.path, fault.where, fault.message, fault.fix)
        return self


class FileFault(Exception):
    """A file that cannot be read as JSON at all; carries the one fault to report."""

    def __init__(self, code: str, where: str, message: str, fix: str = _AGAIN):
        self.fault = Fault(code, where, message, fix)


def read(path: Path | str) -> Document:
    """Read a table file. Never raises for what is in it or for a file that cannot be read: that is a fault."""
    path = Path(path)
    try:
        data = read_bytes(path)
        raw, doubles = parse_json(data)
    except FileFault as faulty:
        return Document(path, {}, (faulty.fault,))
    return _judge(path, data, raw, doubles)


def read_bytes(path: Path) -> bytes:
    """The bytes of a small regular file. Raises FileFault, also for a device, a pipe or a huge file."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise FileFault("not_a_file", "", "this is no regular file.", "Name a table file.")
            if status.st_size > MAX_BYTES:
                size = f"{status.st_size:,} bytes; a table takes a few thousand."
                raise FileFault("too_large", "", size, "Name a table file.")
            parts = []
            while part := os.read(handle, MAX_BYTES):
                parts.append(part)
            return b"".join(parts)
        finally:
            os.close(handle)
    except OSError as error:
        said = str(store_error(error, "read", path.name)).partition(": ")[2]
        raise FileFault(
            "unreadable", "", said.partition(". ")[0] + ".", "Check that it exists and may be read."
        ) from error


def parse_json(data: bytes) -> tuple[Any, list[str]]:
    """(value, keys given twice) of strict JSON text. Raises FileFault."""
    doubles: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            seen: set[str] = set()
            doubles.extend(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        return made

    def no_number(word: str) -> Any:
        raise FileFault("not_json", "", f"{word} is no JSON number.")

    if data.startswith(BOM):
        raise FileFault("bom", "byte 0", BOM_SAYS, BOM_FIX)
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=no_number), doubles
    except UnicodeDecodeError as error:
        raise FileFault("not_json", f"byte {error.start}", "this is no UTF-8 text.") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        if not data.strip():
            raise FileFault("not_json", "", "the file is empty.") from error
        if error.pos >= len(data.decode("utf-8").rstrip()) or error.msg.startswith("Unterminated"):
            raise FileFault("truncated", where, "the file ends in the middle of the table.") from error
        raise FileFault("not_json", where, f"this is not JSON ({error.msg}).") from error
    except RecursionError as error:
        raise FileFault("not_json", "", "its objects are nested too deeply to be a table.") from error
    except ValueError as error:  # an integer of thousands of digits
        raise FileFault("not_json", "", f"this is not JSON ({str(error)[:80]}).") from error


def _judge(path: Path, data: bytes, raw: Any, doubles: list[str]) -> Document:
    if not isinstance(raw, dict):
        fault = Fault("not_a_table", "", "a table is a JSON object from token counts to tiles.", _AGAIN)
        return Document(path, {}, (fault,), data=data)
    if len(raw) > MAX_KEYS:
        fault = Fault("too_many_keys", "", f"{len(raw):,} token counts; a table has at most {MAX_KEYS}.", _AGAIN)
        return Document(path, {}, (fault,), data=data)
    tiles: dict[int, Tile] = {}
    faults = [Fault("duplicate_key", _brief(key), "this key is given twice.", "Keep one.") for key in doubles]
    notes = []
    for key, entry in raw.items():
        if key == VLLM_NOTE:
            notes.append(key)
        elif not re.fullmatch(r"[1-9]\d*", key, re.ASCII) or len(key) > 10 or int(key) >= MAX_M:
            message = "a key of a table is a token count, a whole number from 1."
            faults.append(Fault("key_not_integer", _brief(key), message, "Remove it; notes belong into the sidecar."))
        else:
            try:
                tiles[int(key)] = Tile.from_json(entry, key, path)
            except ConfigFileError as error:
                faults.append(Fault(_code(error), error.where, error.problem, error.fix))
    if not tiles and not faults:
        faults.append(Fault("no_entries", "", "the table has no token counts.", "Tune the shape again."))
    return Document(path, tiles, tuple(capped(faults)), tuple(tiles), tuple(notes), data)


def _code(error: ConfigFileError) -> str:
    if error.problem.startswith("unknown key"):
        return "unknown_key"
    if error.problem.startswith("no "):
        return "missing_key"
    return "bad_value" if "." in error.where else "not_a_tile"


def capped(faults: list[Fault]) -> Iterable[Fault]:
    """The first faults, and one that counts the rest."""
    if len(faults) <= _MAX_FAULTS:
        return faults
    rest = Fault("more_faults", "", f"{len(faults) - _MAX_FAULTS} more faults are not listed.", _AGAIN)
    return [*faults[:_MAX_FAULTS], rest]


def _brief(key: str) -> str:
    text = repr(key)[1:-1]
    return text if len(text) <= 40 else text[:37] + "..."
