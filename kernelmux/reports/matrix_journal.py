"""Results as they come, a line a cell, so that a run that was stopped can go on."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import IO

import msgspec

from kernelmux.errors import UsageError
from kernelmux.reports.matrix import Result
from kernelmux.store.files import store_error
from kernelmux.store.paths import cache_dir


class _Line(msgspec.Struct):
    key: str
    result: Result


def folder() -> Path:
    return cache_dir() / "matrix"


class Journal:
    """The file of one plan and shard. ``found``: results of an earlier run, by the cell's key; empty without resume."""

    def __init__(self, plan: str, shard: tuple[int, int] | None, resume: bool):
        part = "" if shard is None else f"-{shard[0]}-of-{shard[1]}"
        self.path = folder() / f"{plan}{part}.jsonl"
        self.found: dict[str, Result] = {}
        self._done = False
        if resume:
            self.found = self._read()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = self.path.open("ab" if resume else "wb")
        except OSError as error:
            raise store_error(error, "write", self.path) from error

    def keep(self, key: str, result: Result) -> None:
        """Write one result and see it to the disk."""
        self._file.write(msgspec.json.encode(_Line(key, result)) + b"\n")
        self._file.flush()

    def done(self) -> None:
        """All is answered: nothing is left to resume."""
        self._done = True

    def _read(self) -> dict[str, Result]:
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            raise UsageError(
                f"there is nothing to resume: no run of this plan was stopped here ({self.path.parent}). Leave "
                "--resume out, and give the same options as then."
            ) from None
        found = {}
        for line in lines:
            try:
                kept = msgspec.json.decode(line, type=_Line)
            except msgspec.MsgspecError:
                continue  # cut by a crash: measured again
            found[kept.key] = kept.result
        return found

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._done:
            self.path.unlink(missing_ok=True)
