"""Packages: which distributions are installed, in which version, as a value that can also be assumed.

Importing importlib.metadata costs more than the rest of a first selection, so the names are read off the folders of
``sys.path`` (``triton-3.6.0.dist-info``); where a path entry is no folder, importlib.metadata is asked after all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping

ASSUMED = "any"  # the version of a package that is assumed to be installed


class Packages(Mapping[str, str]):
    """Installed versions by normalized distribution name. ``everything``: a package not listed counts as there."""

    __slots__ = ("_everything", "_hash", "_versions")

    def __init__(self, versions: Mapping[str, str] | None = None, *, everything: bool = False):
        self._versions = {normalize(name): version for name, version in (versions or {}).items()}
        self._everything = everything
        self._hash: int | None = None

    @classmethod
    def installed(cls) -> Packages:
        """What is installed here, read once a process."""
        global _installed
        if _installed is None:
            _installed = cls({name: version for name, (version, _) in distributions().items()})
        return _installed

    @classmethod
    def assume_all(cls, known: Packages | None = None) -> Packages:
        """As if every optional package were installed: those of ``known`` as they are, the others in a fitting version.

        Keeping what is known matters: tuned tables are looked up by Triton's version.
        """
        return cls(known._versions if known is not None else None, everything=True)

    @property
    def everything(self) -> bool:
        return self._everything

    def __getitem__(self, name: str) -> str:
        key = normalize(name)
        if self._everything:
            return self._versions.get(key, ASSUMED)
        return self._versions[key]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and normalize(name) in self._versions  # an assumed version is in no known window

    def __iter__(self) -> Iterator[str]:
        return iter(self._versions)

    def __len__(self) -> int:
        return len(self._versions)

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash((frozenset(self._versions.items()), self._everything))
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Packages):
            return NotImplemented
        return self is other or (self._everything == other._everything and self._versions == other._versions)

    def has(self, name: str, spec: str = "") -> bool:
        """Whether the package is there in a version inside ``spec`` (PEP 440, pre-releases count)."""
        version = self._versions.get(normalize(name))
        if version is None:
            return self._everything
        return satisfies(version, spec)


def normalize(name: str) -> str:
    """The name by which an index knows a distribution (PEP 503)."""
    return name.lower().replace("_", "-").replace(".", "-")


_OPERATORS = (">=", "<=", "!=", "==", ">", "<")


def satisfies(version: str, spec: str) -> bool:
    """Whether a version lies inside a PEP 440 range, as ``packaging`` decides with pre-releases allowed.

    Plain numbers on both sides are compared here; anything else (``~=``, ``==2.*``, ``rc1``, ``.post1``) goes to
    ``packaging``, whose import costs about 10 ms.
    """
    if not spec:
        return True
    numbers = _numbers(version.partition("+")[0])
    if numbers is not None:
        for clause in spec.split(","):
            text = clause.strip()
            operator = next((sign for sign in _OPERATORS if text.startswith(sign)), "")
            bound = _numbers(text[len(operator) :].strip()) if operator and not text.startswith("===") else None
            if bound is None:
                break
            if not _compare(numbers, operator, bound):
                return False
        else:
            return True
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(spec).contains(version, prereleases=True)


def _numbers(text: str) -> tuple[int, ...] | None:
    parts = text.split(".")
    if not all(part.isascii() and part.isdigit() for part in parts):
        return None
    numbers = [int(part) for part in parts]
    while len(numbers) > 1 and numbers[-1] == 0:  # 3.6 and 3.6.0 are one version
        numbers.pop()
    return tuple(numbers)


def _compare(left: tuple[int, ...], operator: str, right: tuple[int, ...]) -> bool:
    if operator in ("==", "!="):
        return (left == right) is (operator == "==")
    if operator == ">=":
        return left >= right
    if operator == "<=":
        return left <= right
    return left > right if operator == ">" else left < right


_installed: Packages | None = None
_distributions: dict[str, tuple[str, str]] | None = None


def distributions() -> dict[str, tuple[str, str]]:
    """Normalized name -> (version, metadata folder) of every installed distribution; the first on sys.path wins."""
    global _distributions
    if _distributions is None:
        found: dict[str, tuple[str, str]] = {}
        for entry in sys.path:
            _scan(entry or os.curdir, found)
        if any(hasattr(finder, "find_distributions") for finder in sys.meta_path if not _is_path_finder(finder)):
            _ask_importlib(found)
        _distributions = found
    return _distributions


def forget() -> None:
    """Read what is installed anew at the next question."""
    global _distributions, _installed
    _distributions = _installed = None


def _is_path_finder(finder: object) -> bool:
    return (
        getattr(finder, "__module__", "") == "_frozen_importlib_external"
        or getattr(finder, "__name__", "") == "PathFinder"
    )


def _scan(folder: str, found: dict[str, tuple[str, str]]) -> None:
    try:
        names = os.listdir(folder)
    except NotADirectoryError:
        _ask_importlib(found, folder)  # a zip on sys.path
        return
    except OSError:
        return
    for name in names:
        stem, extension = os.path.splitext(name)
        if extension not in (".dist-info", ".egg-info"):
            continue
        project, _, version = stem.partition("-")
        if extension == ".egg-info":
            version = version.partition("-")[0]  # name-1.0-py3.11.egg-info
        path = os.path.join(folder, name)
        if not version:
            project, version = project, _metadata_version(path)
        if version:
            found.setdefault(normalize(project), (version, path))


def _metadata_version(path: str) -> str:
    """The version from PKG-INFO, for an ``.egg-info`` folder that does not carry it in its name."""
    try:
        with open(os.path.join(path, "PKG-INFO"), encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("Version:"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""


def _ask_importlib(found: dict[str, tuple[str, str]], folder: str | None = None) -> None:
    from importlib import metadata

    every = metadata.distributions() if folder is None else metadata.distributions(path=[folder])
    for distribution in every:
        name = distribution.metadata["Name"]
        if name:
            found.setdefault(normalize(name), (distribution.version, ""))
