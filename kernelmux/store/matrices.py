"""The history of matrices, in one sqlite file: each whole, and what a plot of one cell over time needs.

A matrix is kept once, by the hash of its content. What is in it is the business of who keeps it: here it is bytes and
rows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from kernelmux.errors import StoreError
from kernelmux.store.files import locked, store_error
from kernelmux.store.paths import cache_dir

APPLICATION_ID = 0x6B6D6D78  # "kmmx"
SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE matrices (
  id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, created TEXT NOT NULL, version TEXT NOT NULL,
  packages TEXT NOT NULL, note TEXT NOT NULL, body BLOB NOT NULL
);
CREATE TABLE cells (
  id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, op TEXT NOT NULL
);
CREATE INDEX of_op ON cells (op);
CREATE TABLE words (id INTEGER PRIMARY KEY, word TEXT NOT NULL UNIQUE);
CREATE TABLE points (
  matrix INTEGER NOT NULL REFERENCES matrices(id), cell INTEGER NOT NULL REFERENCES cells(id),
  kernel INTEGER NOT NULL, status INTEGER NOT NULL, us REAL, low REAL, high REAL,
  PRIMARY KEY (cell, matrix)
) WITHOUT ROWID;
"""


def history_path() -> Path:
    """The default file."""
    return cache_dir() / "matrices.sqlite"


@dataclass(frozen=True, slots=True)
class Point:
    """One cell in one matrix. ``status`` is what is known there: a result's status, or the evidence. Microseconds."""

    key: str
    op: str
    kernel: str
    status: str
    us: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """A matrix in the history, oldest first by ``created`` (ISO 8601)."""

    id: int
    created: str
    version: str
    packages: str
    note: str


class History:
    """The open file; a context manager. Raises StoreError for a foreign or damaged file, or one nobody may write."""

    def __init__(self, path: Path | str, *, read_only: bool = False):
        self.path, self._read_only = Path(path), read_only
        if read_only:
            if not self.path.is_file():
                raise StoreError(f"{self.path}: there is no history yet. `kernelmux matrix --record` starts it.")
            self._db = self._connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True)
            self._look()
            return
        with locked(self.path):
            fresh = not self.path.exists() or self.path.stat().st_size == 0
            self._db = self._connect(str(self.path))
            if fresh:
                with self._errors("make"), self._db as db:
                    db.executescript(
                        f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; {_SCHEMA}"
                    )
            self._look()

    def add(
        self,
        digest: str,
        created: str,
        version: str,
        packages: str,
        body: bytes,
        points: Iterable[Point],
        note: str = "",
    ) -> bool:
        """Keep a matrix, whole or not at all; False where it is there already."""
        with locked(self.path), self._errors("write"), self._db as db:
            row = (digest, created, version, packages, note, body)
            made = db.execute(
                "INSERT OR IGNORE INTO matrices (digest, created, version, packages, note, body) VALUES (?,?,?,?,?,?)",
                row,
            )
            if made.rowcount == 0:
                return False
            known = dict(db.execute("SELECT key, id FROM cells"))
            words = dict(db.execute("SELECT word, id FROM words"))
            rows = []
            for point in points:
                if point.key not in known:
                    added = db.execute("INSERT INTO cells (key, op) VALUES (?, ?)", (point.key, point.op))
                    known[point.key] = added.lastrowid
                for word in (point.kernel, point.status):
                    if word not in words:
                        words[word] = db.execute("INSERT INTO words (word) VALUES (?)", (word,)).lastrowid
                rows.append(
                    (made.lastrowid, known[point.key], words[point.kernel], words[point.status],
                     point.us, point.low, point.high)
                )  # fmt: skip
            db.executemany("INSERT INTO points VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        return True

    def matrices(self) -> list[Kept]:
        """Every matrix, oldest first."""
        with self._errors("read"):
            rows = self._db.execute("SELECT id, created, version, packages, note FROM matrices ORDER BY created, id")
            return [Kept(*row) for row in rows]

    def body(self, matrix: int) -> bytes:
        """What was kept of a matrix."""
        with self._errors("read"):
            row = self._db.execute("SELECT body FROM matrices WHERE id = ?", (matrix,)).fetchone()
        if row is None:
            raise StoreError(f"{self.path} has no matrix {matrix}.")
        return bytes(row[0])

    def ops(self) -> list[str]:
        """Ops that have a cell in the history."""
        with self._errors("read"):
            return [op for (op,) in self._db.execute("SELECT DISTINCT op FROM cells ORDER BY op")]

    def keys(self, op: str) -> list[str]:
        """Cells of an op in the history."""
        with self._errors("read"):
            return [key for (key,) in self._db.execute("SELECT key FROM cells WHERE op = ? ORDER BY key", (op,))]

    def points(self, op: str) -> dict[int, list[Point]]:
        """Matrix -> its cells of the op."""
        found: dict[int, list[Point]] = {}
        with self._errors("read"):
            rows: Sequence[tuple[int, str, str, str, float | None, float | None, float | None]] = self._db.execute(
                "SELECT p.matrix, c.key, k.word, s.word, p.us, p.low, p.high FROM points p "
                "JOIN cells c ON c.id = p.cell "
                "JOIN words k ON k.id = p.kernel JOIN words s ON s.id = p.status WHERE c.op = ? ORDER BY c.key",
                (op,),
            ).fetchall()
        for matrix, key, kernel, status, us, low, high in rows:
            found.setdefault(matrix, []).append(Point(key, op, kernel, status, us, low, high))
        return found

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> History:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connect(self, path: str, uri: bool = False) -> sqlite3.Connection:
        with self._errors("open"):
            return sqlite3.connect(path, uri=uri, timeout=10.0)

    def _look(self) -> None:
        try:
            with self._errors("read"):
                (mark,) = self._db.execute("PRAGMA application_id").fetchone()
                (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if mark != APPLICATION_ID:
                raise StoreError(f"{self.path} is no history of matrices. Choose another file.")
            if version != SCHEMA_VERSION:
                raise StoreError(
                    f"{self.path} has schema {version}, this kernelmux reads {SCHEMA_VERSION}. Use the newer one, or "
                    "another file."
                )
        except BaseException:
            self._db.close()
            raise

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"cannot {doing} {self.path}: {error}. Is it a history of matrices, and writable?"
            ) from error
        except OSError as error:
            raise store_error(error, doing, self.path) from error
