"""The measurement journal: every sample ever taken, in one sqlite file.

One process writes at a time; any number read. Each record is committed before the call returns, so a killed tuner
loses nothing that was recorded. The same file, replayed, is test data for the search.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from kernelmux.errors import StoreError
from kernelmux.registry import epoch
from kernelmux.registry.measurement import Measurement
from kernelmux.store.files import locked, store_error
from kernelmux.store.records import CompileFact, Row, Run, canonical, run_key

APPLICATION_ID = 0x6B6D7578  # "kmux"; `file` and sqlite tools show it
SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE runs (
  id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE,
  fingerprint TEXT NOT NULL, shape TEXT NOT NULL, space TEXT NOT NULL, created REAL NOT NULL
);
CREATE TABLE rows (
  id INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES runs(id),
  m INTEGER NOT NULL, side TEXT NOT NULL, tile TEXT NOT NULL, rung TEXT NOT NULL,
  status TEXT NOT NULL, reason TEXT NOT NULL, samples_us TEXT NOT NULL, cubin TEXT, extra TEXT NOT NULL,
  created REAL NOT NULL,
  UNIQUE (run, m, side, tile, rung)
);
CREATE TABLE compiled (
  triton TEXT NOT NULL, arch TEXT NOT NULL, source TEXT NOT NULL,
  side TEXT NOT NULL, tile TEXT NOT NULL, variant TEXT NOT NULL,
  status TEXT NOT NULL, reason TEXT NOT NULL, shared_bytes INTEGER NOT NULL, registers INTEGER NOT NULL,
  stack_bytes INTEGER NOT NULL, sha256 TEXT NOT NULL, seconds REAL NOT NULL,
  PRIMARY KEY (triton, arch, source, side, tile, variant)
) WITHOUT ROWID;
CREATE TABLE measurements (
  id INTEGER PRIMARY KEY,
  op TEXT NOT NULL, device TEXT NOT NULL, scheme TEXT NOT NULL, dtype TEXT NOT NULL, shape TEXT NOT NULL,
  activation TEXT NOT NULL, m_lo INTEGER NOT NULL, m_hi INTEGER NOT NULL, kernel TEXT NOT NULL,
  us REAL NOT NULL, versions TEXT NOT NULL, whenever TEXT NOT NULL,
  UNIQUE (op, device, scheme, dtype, shape, activation, m_lo, m_hi, kernel, versions)
);
CREATE INDEX measured_on ON measurements (device, op);
"""

_ROW = "m, side, tile, rung, status, reason, samples_us, cubin, extra, created"
_COMPILED = (
    "triton, arch, source, side, tile, variant, status, reason, shared_bytes, registers, stack_bytes, sha256, seconds"
)
_MEASURED = "op, device, scheme, dtype, shape, activation, m_lo, m_hi, kernel, us, versions, whenever"


class Journal:
    """An open journal file. Close it, or use it as a context manager; threads may share it.

    Opening for writing makes the file where there is none and waits up to ``wait_s`` seconds for another writer.
    Raises StoreError: another program's or a damaged file, a newer schema, no permission, a full disk, a writer
    that does not end. ``read_only`` never locks, makes or changes anything.
    """

    def __init__(self, path: Path | str, *, read_only: bool = False, wait_s: float = 10.0) -> None:
        self.path = Path(path)
        self.read_only = read_only
        self._thread_lock = threading.RLock()
        self._run_ids: dict[str, int] = {}
        self._stack = ExitStack()
        try:
            if read_only:
                self._db = self._open_for_reading()
            else:
                self._stack.enter_context(locked(self.path, wait_s))
                self._db = self._open_for_writing()
        except BaseException:
            self._stack.close()
            raise

    # -- runs

    def start_run(self, fingerprint: Mapping[str, Any], shape: Mapping[str, Any], space: object) -> str:
        """Register a tuning run, or find it again; the key that its rows carry."""
        key = run_key(fingerprint, shape, space)
        with self._writing() as db:
            db.execute(
                "INSERT OR IGNORE INTO runs (key, fingerprint, shape, space, created) VALUES (?, ?, ?, ?, ?)",
                (key, canonical(dict(fingerprint)), canonical(dict(shape)), canonical(space), time.time()),
            )
        return key

    def runs(self) -> list[Run]:
        """Every run, oldest first."""
        with self._reading() as db:
            found = db.execute("SELECT key, fingerprint, shape, space, created FROM runs ORDER BY id").fetchall()
            return [Run(key, json.loads(f), json.loads(s), json.loads(sp), at) for key, f, s, sp, at in found]

    # -- rows: the steps of a race

    def record(self, *rows: Row) -> None:
        """Keep rows, all or none, on disk before this returns. A row of the same identity is replaced."""
        with self._writing() as db:
            db.executemany(
                f"INSERT OR REPLACE INTO rows (run, {_ROW}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        self._run_id(row.run), row.m, row.side, row.tile, row.rung, row.status, row.reason,
                        canonical(row.samples_us), row.cubin, canonical(dict(row.extra)), row.created or time.time(),
                    )
                    for row in rows
                ],
            )  # fmt: skip

    def find(self, run: str, m: int, side: str, tile: str, rung: str | int) -> Row | None:
        """The row of exactly this step, or None: what a resumed race asks before it measures."""
        found = self._rows(run, "AND m = ? AND side = ? AND tile = ? AND rung = ?", (m, side, tile, str(rung)))
        return found[0] if found else None

    def has(self, run: str, m: int, side: str, tile: str, rung: str | int) -> bool:
        """Whether exactly this step was recorded, whatever its status."""
        return self.find(run, m, side, tile, rung) is not None

    def rows(
        self, run: str, *, m: int | None = None, side: str | None = None, rung: str | int | None = None
    ) -> list[Row]:
        """The rows of a run in the order recorded, narrowed by what is given; empty for a run nobody started."""
        where, values = "", []
        for column, value in (("m", m), ("side", side), ("rung", None if rung is None else str(rung))):
            if value is not None:
                where += f" AND {column} = ?"
                values.append(value)
        return self._rows(run, where, tuple(values))

    def _rows(self, run: str, where: str, values: tuple[object, ...]) -> list[Row]:
        with self._reading() as db:
            found = db.execute(
                f"SELECT {_ROW} FROM rows WHERE run = (SELECT id FROM runs WHERE key = ?) {where} ORDER BY id",
                (run, *values),
            ).fetchall()
            return [
                Row(run, m, side, tile, rung, status, reason, tuple(json.loads(us)), cubin, json.loads(extra), at)
                for m, side, tile, rung, status, reason, us, cubin, extra, at in found
            ]

    def _run_id(self, key: str) -> int:
        if key not in self._run_ids:
            found = self._db.execute("SELECT id FROM runs WHERE key = ?", (key,)).fetchone()
            if found is None:
                raise ValueError(f"run {key!r} was never started; call start_run first")
            self._run_ids[key] = found[0]
        return self._run_ids[key]

    # -- compile facts

    def record_compiled(self, *facts: CompileFact) -> None:
        """Keep what compiling gave; a fact of the same identity is replaced."""
        with self._writing() as db:
            db.executemany(
                f"INSERT OR REPLACE INTO compiled ({_COMPILED}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        f.triton, f.arch, f.source, f.side, f.tile, f.variant, f.status, f.reason, f.shared_bytes,
                        f.registers, f.stack_bytes, f.sha256, f.seconds,
                    )
                    for f in facts
                ],
            )  # fmt: skip

    def compiled(
        self, *, triton: str, arch: str, source: str, side: str | None = None, variant: str | None = None
    ) -> list[CompileFact]:
        """Compile facts of one (Triton version, architecture, kernel source), narrowed by what is given."""
        where, values = "triton = ? AND arch = ? AND source = ?", [triton, arch, source]
        for column, value in (("side", side), ("variant", variant)):
            if value is not None:
                where += f" AND {column} = ?"
                values.append(value)
        with self._reading() as db:
            found = db.execute(f"SELECT {_COMPILED} FROM compiled WHERE {where}", values).fetchall()
            return [CompileFact(*row) for row in found]

    # -- whole kernels

    def record_measurement(self, *measurements: Measurement) -> None:
        """Keep how fast kernels ran; cached selections are made anew.

        One of the same problem, kernel, device and versions is replaced.
        """
        with self._writing() as db:
            db.executemany(
                f"INSERT OR REPLACE INTO measurements ({_MEASURED}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        x.op, x.device, x.scheme, x.dtype, canonical(x.shape), x.activation or "", x.m_lo, x.m_hi,
                        x.kernel, x.us, canonical(dict(x.versions)), x.when,
                    )
                    for x in measurements
                ],
            )  # fmt: skip
        epoch.bump()

    def measurements(self, op: str | None = None, device: str | None = None) -> list[Measurement]:
        """Measurements of whole kernels, last recorded last, for one op and one device (its table name) if given."""
        where, values = "1", []
        for column, value in (("op", op), ("device", device)):
            if value is not None:
                where += f" AND {column} = ?"
                values.append(value)
        with self._reading() as db:
            found = db.execute(f"SELECT {_MEASURED} FROM measurements WHERE {where} ORDER BY id", values).fetchall()
        return [
            Measurement(
                op=op, device=device, scheme=scheme, dtype=dtype,
                shape=tuple((str(axis), int(size)) for axis, size in json.loads(shape)), activation=activation or None,
                m_lo=m_lo, m_hi=m_hi, kernel=kernel, us=us, versions=json.loads(versions), when=when,
            )
            for op, device, scheme, dtype, shape, activation, m_lo, m_hi, kernel, us, versions, when in found
        ]  # fmt: skip

    # -- open and close

    def close(self) -> None:
        """Close the file and let the next writer in. Closing twice is fine."""
        with self._thread_lock, self._stack, suppress(sqlite3.Error):
            self._db.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_for_writing(self) -> sqlite3.Connection:
        _judge_path(self.path)
        with self._reported():
            db = sqlite3.connect(self.path, timeout=5.0, isolation_level=None, check_same_thread=False)
            try:
                fresh = _identify(db, self.path)
                self._set_modes(db)
                if fresh:
                    # A header without tables would look foreign, so both go in one transaction.
                    pragmas = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"
                    db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} {pragmas} COMMIT;")
                elif (verdict := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                    raise sqlite3.DatabaseError(f"malformed: {verdict}")
            except BaseException:
                db.close()
                with suppress(OSError):
                    if self.path.stat().st_size == 0:
                        self.path.unlink()  # nothing came to stand in it: no later reader should wonder
                raise
        return db

    def _set_modes(self, db: sqlite3.Connection) -> None:
        try:
            mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            if _is_full(error) or "readonly" in str(error) or "I/O" in str(error):
                raise
            mode = ""  # file systems without shared memory maps refuse WAL, some with an error
        if mode != "wal":
            db.execute("PRAGMA journal_mode = DELETE")
            warnings.warn(
                f"{self.path} is on a file system without shared memory (a network share?), so each record is "
                "slower to keep. Set KERNELMUX_CACHE_DIR to a local folder.",
                stacklevel=4,
            )
        # WAL with NORMAL: a killed process loses nothing; a power cut may lose the last records, never the file.
        db.execute(f"PRAGMA synchronous = {'NORMAL' if mode == 'wal' else 'FULL'}")
        db.execute("PRAGMA foreign_keys = ON")

    def _open_for_reading(self) -> sqlite3.Connection:
        _judge_path(self.path)
        if not self.path.exists():
            raise StoreError(f"there is no journal at {self.path}. Tune something first, or name another file.")
        uri = self.path.resolve().as_uri() + "?mode=ro"
        with self._reported():
            try:
                db = sqlite3.connect(uri, uri=True, timeout=5.0, check_same_thread=False)
                fresh = _identify(db, self.path)
            except sqlite3.OperationalError:
                if Path(f"{self.path}-wal").exists():
                    raise
                # A WAL file in a read-only folder opens only as immutable; with no -wal beside it nobody writes it.
                db = sqlite3.connect(f"{uri}&immutable=1", uri=True, check_same_thread=False)
                fresh = _identify(db, self.path)
        if fresh:
            db.close()
            raise StoreError(f"{self.path} is an empty file, not a journal. Name another file.")
        return db

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        if self.read_only:
            raise StoreError(f"{self.path} was opened for reading only. Open it with Journal(path) to record.")
        with self._thread_lock, self._reported():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._thread_lock, self._reported():
            yield self._db

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _explained(error, self.path) from error
        except json.JSONDecodeError as error:
            raise _explained(sqlite3.DatabaseError(f"malformed record: {error}"), self.path) from error


def _judge_path(path: Path) -> None:
    """Say what sqlite does not: its "unable to open database file" has a dozen causes."""
    try:
        if path.is_dir():
            raise StoreError(f"{path} is a folder, not a journal file. Name a file.")
    except OSError as error:
        raise store_error(error, "open", path) from error


def _identify(db: sqlite3.Connection, path: Path) -> bool:
    """True for a file with nothing in it; raises StoreError for a file that is another program's or too new."""
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if tables == 0 and application in (0, APPLICATION_ID):
        return True
    if application != APPLICATION_ID:
        raise StoreError(f"{path} is another program's database. Name another file, or move that one away.")
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{path} was written by a newer kernelmux (schema {version}, this one knows {SCHEMA_VERSION}). "
            "Upgrade kernelmux, or set KERNELMUX_CACHE_DIR to another folder."
        )
    return False


def _is_full(error: sqlite3.Error) -> bool:
    return "full" in str(error) and "disk" in str(error)


def _explained(error: sqlite3.Error, path: Path) -> StoreError:
    said = " ".join(str(error).replace("*** in database main ***", "").split())
    if _is_full(error):
        return StoreError(f"cannot write {path}: the disk is full. Free some space, or set KERNELMUX_CACHE_DIR.")
    if "not a database" in said or "malformed" in said or "corrupt" in said:
        return StoreError(
            f"{path} is not a kernelmux journal or is damaged ({said}). "
            "Move it away; the next run starts a new one and measures again."
        )
    if "no such table" in said or "no such column" in said:
        return StoreError(f"{path} lacks a part of the journal ({said}). Move it away; the next run starts a new one.")
    if "readonly" in said or "unable to open" in said:
        return StoreError(
            f"cannot open {path} for writing ({said}). Check its permissions, or set KERNELMUX_CACHE_DIR."
        )
    if "locked" in said or "busy" in said:
        return StoreError(f"{path} is in use by another program ({said}). Let it finish and try again.")
    if "closed database" in said:
        return StoreError(f"{path} was closed already.")
    return StoreError(f"{path} cannot be used: {said}. Check the disk and `ulimit -f`, or set KERNELMUX_CACHE_DIR.")


def read_rows(path: Path | str, keys: Iterable[str] | None = None) -> dict[str, list[Row]]:
    """The rows of some or all runs of a journal file, by run key: one call for replay and reports."""
    with Journal(path, read_only=True) as journal:
        wanted = [run.key for run in journal.runs()] if keys is None else list(keys)
        return {key: journal.rows(key) for key in wanted}
