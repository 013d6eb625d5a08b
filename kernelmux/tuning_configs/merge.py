"""Put the tables of several folders into one. Where two claim one place, the better measured wins, and it is said."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernelmux.registry import epoch
from kernelmux.store.files import locked, write_whole
from kernelmux.tuning_configs.check import check
from kernelmux.tuning_configs.sidecar import Point, Sidecar
from kernelmux.tuning_configs.units import Unit, units

_RANK = {"measured": 0, "imported": 1, "predicted": 2}
# Two runs of one shape differ by less than this in their gain over the default; below it the newer wins.
_BETTER = 1.01


@dataclass(frozen=True, slots=True)
class Conflict:
    """Several tables for one place: which was kept, which not, and why."""

    place: str
    kept: Path
    dropped: tuple[Path, ...]
    why: str

    def to_json(self) -> dict[str, Any]:
        dropped = [str(path) for path in self.dropped]
        return {"place": self.place, "kept": str(self.kept), "dropped": dropped, "why": self.why}


@dataclass(frozen=True, slots=True)
class Merged:
    """What came of a merge: files written, tables passed over as faulty (with the first fault), conflicts."""

    written: tuple[Path, ...]
    faulty: tuple[tuple[Path, str], ...]
    conflicts: tuple[Conflict, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "written": [str(path) for path in self.written],
            "faulty": [{"path": str(path), "why": why} for path, why in self.faulty],
            "conflicts": [conflict.to_json() for conflict in self.conflicts],
        }


def merge(paths: Iterable[Path | str], out: Path | str) -> Merged:
    """Merge the tables of ``paths`` into the folder ``out``; tables already there take part, and stay on a draw.

    A pair and its sidecar go together: never an up table of one and a down table of another. Raises StoreError.
    """
    out = Path(out)
    found: dict[tuple[str, str], list[Unit]] = {}
    faulty: list[tuple[Path, str]] = []
    for root in (*((out,) if out.is_dir() else ()), *map(Path, paths)):
        for unit in units(root):
            worst = _fault(unit)
            if worst:
                faulty.append((unit.path, worst))
            else:
                found.setdefault(unit.key, []).append(unit)
    written: list[Path] = []
    conflicts: list[Conflict] = []
    for (place, name), claims in sorted(found.items()):
        kept, why = _best(claims)
        others = tuple(each.path for each in claims if each.files != kept.files)
        if others:
            conflicts.append(Conflict(f"{place}/{name}".lstrip("/"), kept.path, others, why))
        if kept.path != out / place / kept.files[0][0]:
            written += _copied(kept, out / place)
    if written:
        epoch.bump()
    return Merged(tuple(written), tuple(faulty), tuple(conflicts))


def _fault(unit: Unit) -> str:
    """The first thing that keeps a table from being read; faults of tuning (a clamped value) do not."""
    mild = {"clamped", "unsorted_keys", "crlf", "dead_dtype", "dead_device", "unreachable", "no_sidecar"}
    files = [unit.root / unit.place / name for name, _ in unit.files if not name.endswith(".meta.json")]
    for report in check(files):
        for fault in report.faults:
            if fault.code not in mild:
                return f"{fault.message} [{fault.code}]"
    return ""


def _best(claims: Sequence[Unit]) -> tuple[Unit, str]:
    best, why = claims[0], "they are the same"
    for other in claims[1:]:
        if other.files == best.files:
            continue
        better, why = _better(other.sidecar, best.sidecar)
        if better:
            best = other
    return best, why


def _better(new: Sidecar | None, old: Sidecar | None) -> tuple[bool, str]:
    """Whether ``new`` should replace ``old``, and the reason for the outcome."""
    ranks = [3 if meta is None else _RANK[meta.source] for meta in (new, old)]
    if ranks[0] != ranks[1]:
        words = [meta.source if meta else "unknown origin" for meta in (new, old)]
        winner, loser = words if ranks[0] < ranks[1] else reversed(words)
        return ranks[0] < ranks[1], f"{winner} outranks {loser}"
    if new is None or old is None:
        return False, "neither says when it was made: the first one named stays"
    if new.kernel.get("source_hash") == old.kernel.get("source_hash"):
        gains = _gain(new, old)
        if gains is not None and max(gains) / min(gains) > _BETTER:
            said = f"{max(gains):.3f} times as fast as the default against {min(gains):.3f}"
            return gains[0] > gains[1], said
    if new.created != old.created:
        return new.created > old.created, f"the newer one: {max(new.created, old.created)}"
    return False, "equally old and equally good: the first one named stays"


def _gain(new: Sidecar, old: Sidecar) -> tuple[float, float] | None:
    """Geometric means of default over tuned time, over the token counts that both measured whole; None if none."""

    def gain(point: Point) -> float | None:
        if not point.up_us or not point.default_us:
            return None
        return point.default_us / (point.up_us + (point.down_us or 0.0))

    pairs = ((gain(new.points[m]), gain(old.points[m])) for m in new.points.keys() & old.points.keys())
    both = [(left, right) for left, right in pairs if left and right]
    if not both:
        return None
    first, second = (math.exp(sum(math.log(pair[i]) for pair in both) / len(both)) for i in (0, 1))
    return first, second


def _copied(unit: Unit, target: Path) -> list[Path]:
    with locked(target / ".kernelmux"):
        for stale in (unit.name.side(True).format(), unit.name.sidecar):
            if stale not in dict(unit.files):
                (target / stale).unlink(missing_ok=True)
        paths = []
        for name, data in unit.files:  # the sidecar sorts last among them: see `units`
            write_whole(target / name, data)
            paths.append(target / name)
    return paths
