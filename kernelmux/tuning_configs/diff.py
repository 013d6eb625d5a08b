"""What differs between two tables, or between the tables of two folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernelmux.errors import ConfigFileError
from kernelmux.tuning_configs.engines import foreign
from kernelmux.tuning_configs.engines.entry import Entry
from kernelmux.tuning_configs.engines.foreign import ForeignTable
from kernelmux.tuning_configs.units import Unit, units


@dataclass(frozen=True, slots=True)
class Change:
    """The entries of one token count in both tables; None where a table has none."""

    m: int
    a: Entry | None
    b: Entry | None

    @property
    def words(self) -> str:
        """``BLOCK_SIZE_K 64 -> 128, num_stages 4 -> 3``."""
        if self.a is None or self.b is None:
            return "only in the second" if self.a is None else "only in the first"
        keys = [*self.a, *(key for key in self.b if key not in self.a)]
        return ", ".join(
            f"{key} {self.a.get(key, '-')} -> {self.b.get(key, '-')}"
            for key in keys
            if self.a.get(key) != self.b.get(key)
        )

    def to_json(self) -> dict[str, Any]:
        return {"m": self.m, "a": dict(self.a) if self.a else None, "b": dict(self.b) if self.b else None}


@dataclass(frozen=True, slots=True)
class TableDiff:
    """Two files of one table (or side of it). ``text_only``: other bytes, the same entries."""

    a: Path
    b: Path
    changes: tuple[Change, ...]
    text_only: bool

    @property
    def same(self) -> bool:
        return not self.changes and not self.text_only

    def to_json(self) -> dict[str, Any]:
        changes = [change.to_json() for change in self.changes]
        return {"a": str(self.a), "b": str(self.b), "text_only": self.text_only, "changes": changes}


@dataclass(frozen=True, slots=True)
class Diff:
    """Two sets of tables: files of one only, and each pair that differs. ``same`` counts the pairs that do not."""

    only_a: tuple[Path, ...]
    only_b: tuple[Path, ...]
    differing: tuple[TableDiff, ...]
    same: int

    @property
    def equal(self) -> bool:
        return not (self.only_a or self.only_b or self.differing)

    def to_json(self) -> dict[str, Any]:
        return {
            "same": self.same,
            "only_a": [str(path) for path in self.only_a],
            "only_b": [str(path) for path in self.only_b],
            "differing": [each.to_json() for each in self.differing],
        }


def diff(a: Path | str, b: Path | str) -> Diff:
    """Compare two table files, or the tables of two folders by place and name (an engine's spelling of a name aside).

    Where only one of two folders sorts by Triton version, places are left out of account. Raises ConfigFileError for a
    file that cannot be read.
    """
    a, b = Path(a), Path(b)
    if not a.is_dir() and not b.is_dir():
        found = table_diff(a, b)
        return Diff((), (), () if found.same else (found,), int(found.same))
    sides = [list(units(root)) for root in (a, b)]
    placed = all(any(unit.place for unit in side) for side in sides)
    first, second = (_files(side, placed) for side in sides)
    pairs = [table_diff(first[key], second[key]) for key in sorted(first.keys() & second.keys())]
    differing = tuple(pair for pair in pairs if not pair.same)
    return Diff(
        tuple(first[key] for key in sorted(first.keys() - second.keys())),
        tuple(second[key] for key in sorted(second.keys() - first.keys())),
        differing,
        len(pairs) - len(differing),
    )


def _files(side: list[Unit], placed: bool) -> dict[tuple[str, str, bool], Path]:
    """(place, name, whether down) -> file."""
    return {
        (unit.place if placed else "", unit.canonical, name.endswith("_down.json")): unit.root / unit.place / name
        for unit in side
        for name, _ in unit.files
        if not name.endswith(".meta.json")
    }


def table_diff(a: Path, b: Path) -> TableDiff:
    """Compare two files entry by entry. Raises ConfigFileError for one that cannot be read."""
    first, second = _table(a), _table(b)
    left, right = first.entries, second.entries
    changes = tuple(
        Change(m, left.get(m), right.get(m))
        for m in sorted(left.keys() | right.keys())
        if _plain(left.get(m)) != _plain(right.get(m))
    )
    return TableDiff(a, b, changes, not changes and first.render() != second.render())


def _plain(entry: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if entry is None else dict(entry)


def _table(path: Path) -> ForeignTable:
    reading = foreign.read(path)
    if reading.table is None:
        fault = reading.faults[-1]
        raise ConfigFileError(path, fault.where, fault.message, fault.fix)
    return reading.table
