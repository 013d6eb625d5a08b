"""Changes that are meant: a YAML file of entries, each with its reason."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from kernelmux.errors import ConfigFileError
from kernelmux.reports.matrix_cases import fits
from kernelmux.reports.matrix_diff import CODES, Change

_PLACES = ("op", "scheme", "variant", "dtype", "device", "m", "kind", "kernel")
_KEYS = ("change", "reason", "until", "cell", *_PLACES)
FORM = """It must read like
allow:
  - change: chosen            # or a list; '*' for any: see `kernelmux matrix --help`
    op: rms_norm              # globs: op, scheme, variant, dtype, device, m, kind, kernel, or the whole cell
    device: [h100-sxm, h200]
    reason: why this change is meant
    until: 2027-01-31         # optional"""


@dataclass(frozen=True, slots=True)
class Allowed:
    """One entry: these changes, in cells that every glob fits, for this reason."""

    changes: tuple[str, ...]
    reason: str
    places: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    until: datetime.date | None = None
    where: str = ""

    def covers(self, change: Change, today: datetime.date) -> bool:
        if not any(fnmatchcase(change.code, glob) for glob in self.changes):
            return False
        if self.until is not None and today > self.until:
            return False
        values = _values(change)
        return all(any(fits(values.get(name, ""), glob) for glob in globs) for name, globs in self.places.items())


def _values(change: Change) -> dict[str, str]:
    cell = change.cell
    if cell is None:
        return {"cell": change.key, "op": change.op}
    case = cell.case
    return {
        "cell": change.key, "op": case.op, "scheme": case.scheme, "variant": case.variant, "dtype": case.dtype or "",
        "device": cell.device, "m": str(cell.m), "kind": cell.kind, "kernel": cell.outcome.kernel or "",
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """Changes that count, those that an entry allows, those for the better, and entries that allow nothing."""

    against: tuple[Change, ...]
    allowed: tuple[tuple[Change, Allowed], ...] = ()
    better: tuple[Change, ...] = ()
    idle: tuple[Allowed, ...] = ()

    @property
    def failed(self) -> bool:
        return bool(self.against)


def sort_out(changes: Sequence[Change], entries: Sequence[Allowed], today: datetime.date | None = None) -> Verdict:
    """Which changes count."""
    today = today or datetime.date.today()
    against, allowed, used = [], [], set()
    for change in changes:
        if change.better:
            continue
        entry = next((one for one in entries if one.covers(change, today)), None)
        if entry is None:
            against.append(change)
        else:
            allowed.append((change, entry))
            used.add(id(entry))
    return Verdict(
        tuple(against), tuple(allowed), tuple(change for change in changes if change.better),
        tuple(entry for entry in entries if id(entry) not in used),
    )  # fmt: skip


def read_allowed(path: Path | str) -> tuple[Allowed, ...]:
    """The entries of a file. Raises ConfigFileError naming file, line and key."""
    from kernelmux.policies.strict_yaml import read_yaml

    path = Path(path)
    if not path.is_file():
        raise ConfigFileError(path, "", "is no file.", FORM)
    data = read_yaml(path)
    entries = data.get("allow") if isinstance(data, dict) else None
    if not isinstance(data, dict) or set(data) != {"allow"} or not isinstance(entries, list):
        raise ConfigFileError(path, "", "holds no list of allowed changes.", FORM)
    return tuple(_entry(entry, index, path) for index, entry in enumerate(entries))


def _entry(raw: Any, index: int, path: Path) -> Allowed:
    from kernelmux.policies.strict_yaml import line_of

    def fault(key: str, problem: str) -> ConfigFileError:
        line = line_of(path, ("allow", index, key) if key else ("allow", index))
        place = ", ".join(word for word in (f"line {line}" if line else "", f"entry {index + 1}", key) if word)
        return ConfigFileError(path, place, problem, FORM)

    if not isinstance(raw, dict):
        raise fault("", "is not a set of keys.")
    unknown = sorted(str(key) for key in raw if key not in _KEYS)
    if unknown:
        raise fault(unknown[0], f"there is no key {unknown[0]!r}; there are {', '.join(_KEYS)}.")
    reason = raw.get("reason")
    if not isinstance(reason, str) or len(reason.split()) < 2:
        raise fault("reason", "every allowed change needs a reason, in words.")
    changes = _words(raw.get("change"), "change", fault)
    for word in changes:
        if not any(fnmatchcase(code, word) for code in CODES):
            raise fault("change", f"there is no change {word!r}; there are {', '.join(CODES)}.")
    places = {name: _words(raw[name], name, fault) for name in ("cell", *_PLACES) if name in raw}
    if not places:
        raise fault("", "it does not say where: give op, device, kernel, or cell.")
    until = raw.get("until")
    if isinstance(until, str):
        try:
            until = datetime.date.fromisoformat(until)
        except ValueError:
            raise fault("until", f"{until!r} is no date like 2027-01-31.") from None
    if until is not None and not isinstance(until, datetime.date):
        raise fault("until", f"{until!r} is no date like 2027-01-31.")
    return Allowed(changes, reason, places, until, f"{path}, entry {index + 1}")


def _words(value: Any, key: str, fault: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(one, (str, int)) and not isinstance(one, bool) and str(one) for one in values):
        raise fault(key, f"{value!r} is no word and no list of words.")
    return tuple(map(str, values))
