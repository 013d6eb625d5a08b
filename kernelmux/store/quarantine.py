"""What the trust gate found out: one JSON file of verdicts beside the journal, whole or not at all.

A verdict is about a kernel in one form (scheme, dtype, activation) under one fingerprint: GPU, driver, versions of the
packages it needs, its code. Under another fingerprint nobody has looked yet. Nothing here decides what is chosen.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kernelmux.errors import StoreError
from kernelmux.registry import epoch
from kernelmux.registry.value import Value
from kernelmux.store.files import locked, store_error, write_whole
from kernelmux.store.paths import cache_dir

SCHEMA = 1
TRUSTED, QUARANTINED, UNCHECKED = STATUSES = ("trusted", "quarantined", "unchecked")
_MOST = 1000  # verdicts in a file, 1 KB each; the oldest that are no quarantine go first
_TEXTS = ("kernel", "op", "scheme", "dtype", "status", "reason", "when")
_WAIT_S = 2.0  # for another writer; what cannot be written is kept in memory


class Verdict(Value):
    """One outcome. ``unchecked``: no check fits the kernel, so that nothing is known against it.

    ``fingerprint`` holds device, capability, driver, kernelmux, the packages' versions and the source's identity;
    ``evidence`` the numbers. ``when`` is an ISO 8601 time in UTC.
    """

    kernel: str
    op: str
    scheme: str
    dtype: str
    activation: str | None
    fingerprint: Mapping[str, str]
    status: str
    reason: str = ""
    when: str = ""
    evidence: Mapping[str, Any] = MappingProxyType({})

    @property
    def key(self) -> tuple[str, ...]:
        return key_of(self.kernel, self.scheme, self.dtype, self.activation, self.fingerprint)

    def to_json(self) -> dict[str, Any]:
        return {
            name: dict(value) if isinstance(value := getattr(self, name), Mapping) else value for name in self._fields
        }


def key_of(
    kernel: str, scheme: str, dtype: str, activation: str | None, fingerprint: Mapping[str, str]
) -> tuple[str, ...]:
    """What a verdict is about."""
    return (kernel, scheme, dtype, activation or "", *(f"{k}={v}" for k, v in sorted(fingerprint.items())))


def quarantine_path() -> Path:
    """The default file of verdicts."""
    return cache_dir() / "quarantine.json"


class Book:
    """The verdicts of one file, as read once, and those of this process, which hold even where nothing can be written.

    A damaged file costs its verdicts and one warning; the next write moves it aside.
    """

    def __init__(self, path: Path | str, *, read: bool = True) -> None:
        self.path = Path(path)
        self._found: dict[tuple[str, ...], Verdict] = {}
        self._own: dict[tuple[str, ...], Verdict] = {}
        self._names: frozenset[str] = frozenset()
        self._warned = False
        if read:
            self.reload()

    def reload(self) -> None:
        """Read the file again: another process may have checked since."""
        try:
            self._found = _read(self.path)
        except StoreError as error:
            self._found = {}
            self._warn(f"{error} Kernels are checked anew.")
        self._index()

    def speaks_of(self, kernel: str) -> bool:
        """Whether there is any verdict on this kernel; costs no fingerprint."""
        return kernel in self._names

    def find(self, key: tuple[str, ...]) -> Verdict | None:
        return self._own.get(key) or self._found.get(key)

    def __iter__(self) -> Iterator[Verdict]:
        return iter({**self._found, **self._own}.values())

    def __len__(self) -> int:
        return len({**self._found, **self._own})

    def record(self, verdict: Verdict) -> bool:
        """Keep a verdict, on disk where that can be; whether it was written. Selections are made anew where need be."""
        self._own[verdict.key] = verdict
        written = self._write(lambda known: {**known, verdict.key: verdict})
        self._index()
        if verdict.status == QUARANTINED:
            epoch.bump_op(verdict.op)
        return written

    def forget(self, kernel: str, *, only_quarantined: bool = True) -> list[Verdict]:
        """Drop the verdicts on a kernel, so that it is checked again; those that were dropped. Raises StoreError."""

        def goes(verdict: Verdict) -> bool:
            return verdict.kernel == kernel and (not only_quarantined or verdict.status == QUARANTINED)

        self.reload()
        gone = [verdict for verdict in self if goes(verdict)]
        self._own = {key: verdict for key, verdict in self._own.items() if not goes(verdict)}
        if any(goes(verdict) for verdict in self._found.values()):
            self._rewrite(lambda known: {key: verdict for key, verdict in known.items() if not goes(verdict)})
        self._index()
        for op in {verdict.op for verdict in gone}:
            epoch.bump_op(op)
        return gone

    def _write(self, change: Any) -> bool:
        try:
            self._rewrite(change)
        except StoreError as error:
            self._warn(f"{error} What the check of kernels found out holds in this process only.")
            return False
        return True

    def _rewrite(self, change: Any) -> None:
        with locked(self.path, _WAIT_S):
            try:
                known = _read(self.path)
            except _Damaged:
                known = {}
                with suppress(OSError):
                    os.replace(self.path, f"{self.path}.damaged")
            self._found = _limited(change(known))
            verdicts = [verdict.to_json() for verdict in self._found.values()]
            data = {"schema": SCHEMA, "format": "kernelmux-quarantine", "verdicts": verdicts}
            write_whole(self.path, json.dumps(data, indent=1, ensure_ascii=False, default=str) + "\n")

    def _index(self) -> None:
        self._names = frozenset(verdict.kernel for verdict in self)

    def _warn(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(text, RuntimeWarning, stacklevel=4)


class _Damaged(StoreError):
    """Not a file of ours, or only a part of one."""


def _read(path: Path) -> dict[tuple[str, ...], Verdict]:
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except UnicodeDecodeError as error:
        raise _Damaged(f"{path} is damaged (no UTF-8): its verdicts on kernels are lost.") from error
    except OSError as error:
        raise store_error(error, "read", path) from error
    try:
        data = json.loads(text)
        schema = data["schema"]
        if isinstance(schema, int) and schema > SCHEMA:
            raise StoreError(
                f"{path} was written by a newer kernelmux (schema {schema}, this one knows {SCHEMA}). "
                "Upgrade kernelmux, or set KERNELMUX_CACHE_DIR to another folder."
            )
        verdicts = [_verdict(entry) for entry in data["verdicts"]]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _Damaged(f"{path} is damaged ({error}): its verdicts on kernels are lost.") from error
    return {verdict.key: verdict for verdict in verdicts}


def _verdict(entry: Mapping[str, Any]) -> Verdict:
    texts = {name: entry[name] for name in _TEXTS}
    if not all(isinstance(text, str) for text in texts.values()) or texts["status"] not in STATUSES:
        raise ValueError(f"no verdict: {str(entry)[:80]}")
    fingerprint = {str(name): str(value) for name, value in entry["fingerprint"].items()}
    return Verdict(
        **texts, activation=entry.get("activation"), fingerprint=fingerprint, evidence=entry.get("evidence") or {}
    )


def _limited(known: dict[tuple[str, ...], Verdict]) -> dict[tuple[str, ...], Verdict]:
    if len(known) <= _MOST:
        return known
    by_age = sorted(known.values(), key=lambda verdict: (verdict.status == QUARANTINED, verdict.when))
    return {verdict.key: verdict for verdict in by_age[-_MOST:]}


_book: Book | None = None


def book(*, read: bool = True) -> Book:
    """The verdicts of this process's cache folder, read once. ``read=False`` touches no file: it may be empty."""
    global _book
    path = quarantine_path()
    if _book is None or _book.path != path:
        if not read:
            return Book(path, read=False)
        _book = Book(path)
    return _book


def refresh() -> None:
    """Read the file again, if it was read."""
    if _book is not None:
        _book.reload()
