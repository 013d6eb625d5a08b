"""An environment to judge, from what ``pip freeze`` printed there."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from kernelmux.errors import ConfigFileError
from kernelmux.registry.packages import ASSUMED, Packages, normalize, satisfies
from kernelmux.reports.matrix import PackageFacts

_FORM = "Make the file with `pip freeze > FILE` (or `uv pip freeze`) in the environment to judge."
_LARGEST = 4 << 20  # bytes; a freeze of a thousand packages is 30 kB
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_PINNED = re.compile(rf"(?P<name>{_NAME})(?:\[[^\]]*\])?\s*={{2,3}}\s*(?P<version>[^\s;#]+)")
_AT_URL = re.compile(rf"(?P<name>{_NAME})(?:\[[^\]]*\])?\s*@\s*(?P<url>\S+)")
_EDITABLE_NOTE = re.compile(rf"#\s*Editable\b.*\((?P<name>{_NAME})==(?P<version>[^\s()]+)\)")
_EGG = re.compile(rf"[#&]egg=(?P<name>{_NAME})")
_OPTION = re.compile(
    r"(--(?:index-url|extra-index-url|find-links|no-index|trusted-host|pre|hash|no-binary|only-binary)\b|-i\s|-f\s)"
)


class Frozen(Packages):
    """Packages of a freeze. Of those from a URL or a folder the version is not known: they are there, and fit."""

    __slots__ = ("_unknown",)

    def __init__(self, versions: dict[str, str], unknown: frozenset[str] = frozenset()):
        super().__init__(versions)
        self._unknown = frozenset(map(normalize, unknown))

    @property
    def unknown(self) -> frozenset[str]:
        """Packages whose version the file does not tell."""
        return self._unknown

    def __getitem__(self, name: str) -> str:
        return ASSUMED if normalize(name) in self._unknown else super().__getitem__(name)

    def has(self, name: str, spec: str = "") -> bool:
        return normalize(name) in self._unknown or super().has(name, spec)

    def __hash__(self) -> int:
        return hash((super().__hash__(), self._unknown))

    def __eq__(self, other: object) -> bool:
        same = super().__eq__(other)
        return same if same is not True else getattr(other, "_unknown", frozenset()) == self._unknown


def read_freeze(path: Path | str) -> Frozen:
    """The packages a freeze lists. Raises ConfigFileError naming the file and the line."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > _LARGEST:
            raise ConfigFileError(path, "", f"has {size} bytes, which no freeze has.", _FORM)
        data = path.read_bytes()
    except OSError as error:
        raise ConfigFileError(path, "", f"cannot be read ({error.strerror or error}).", _FORM) from error
    return parse_freeze(_decoded(data, path), path)


def parse_freeze(text: str, path: Path | str) -> Frozen:
    """As `read_freeze`, of the file's text."""
    found: dict[str, tuple[str, int]] = {}
    unknown: dict[str, int] = {}
    named: tuple[str, str] | None = None  # what a comment in front of an editable line calls it
    for number, line in enumerate(_logical(text), 1):
        bare = line.strip()
        note = _EDITABLE_NOTE.fullmatch(bare)
        if note:
            named = (note["name"], note["version"])
            continue
        if not bare or bare.startswith("#") or _OPTION.match(bare):
            continue
        name, version = _entry(bare, named, path, number)
        named = None
        if not name:
            continue
        key = normalize(name)
        if version and not _is_version(version):
            raise _fault(path, number, f"{version!r} is no version of {name}.")
        before = found.get(key)
        if before is not None and before[0] != version:
            raise _fault(path, number, f"{name} is here in version {version or '(unknown)'} and in line {before[1]} "
                         f"in {before[0] or '(unknown)'}.")  # fmt: skip
        found[key] = (version, number)
        if not version:
            unknown[key] = number
    versions = {key: version for key, (version, _) in found.items() if version}
    return Frozen(versions, frozenset(unknown))


def facts_of(packages: Packages, title: str) -> PackageFacts:
    """What the header of a matrix says of them."""
    versions = {name: packages[name] for name in sorted(packages)}
    if isinstance(packages, Frozen):
        versions |= dict.fromkeys(sorted(packages.unknown), ASSUMED)
    return PackageFacts(title, packages.everything, versions)


def _entry(line: str, named: tuple[str, str] | None, path: Path | str, number: int) -> tuple[str, str]:
    """(name, version) of a line; an empty version is unknown, an empty name says that the line lists nothing."""
    if line.startswith(("-e ", "-e\t", "--editable")):
        egg = _EGG.search(line)
        if named is not None and (egg is None or normalize(egg["name"]) == normalize(named[0])):
            return named
        if egg is not None:
            return egg["name"], ""
        folder = re.sub(r"^(-e|--editable)[\s=]+", "", line).rstrip("/\\")
        name = re.split(r"[/\\]", folder)[-1]
        return (name, "") if re.fullmatch(_NAME, name) else ("", "")
    if line.startswith(("-r", "--requirement", "-c", "--constraint")):
        raise _fault(path, number, f"{line[:60]!r} refers to another file, which a freeze never does.")
    at = _AT_URL.match(line)
    if at:
        return at["name"], _version_of_url(at["name"], at["url"])
    pinned = _PINNED.match(line)
    rest = "" if pinned is None else line[pinned.end() :].strip()
    if pinned is None or (rest and not rest.startswith((";", "#", "--", "\\"))):
        shown = line if len(line) <= 60 else f"{line[:57]}..."
        raise _fault(path, number, f"{shown!r} is no line of a freeze (name==version, name @ url, -e, # comment).")
    return pinned["name"], pinned["version"]


def _version_of_url(name: str, url: str) -> str:
    """The version in the file name of a wheel; unknown otherwise."""
    file = re.split(r"[?#]", url)[0].rsplit("/", 1)[-1].replace("%2B", "+").replace("%2b", "+")
    parts = file.split("-")
    if file.endswith(".whl") and len(parts) >= 5 and normalize(parts[0]) == normalize(name) and _is_version(parts[1]):
        return parts[1]
    return ""


def _is_version(text: str) -> bool:
    try:
        satisfies(text, ">=0")
        from packaging.version import Version

        Version(text)
    except Exception:
        return False
    return True


def _logical(text: str) -> list[str]:
    """Lines; one that a backslash continues (hashes do) loses what follows, so that numbers stay those of the file."""
    lines, continued = [], False
    for line in text.splitlines():
        lines.append("" if continued else line)
        continued = line.rstrip().endswith("\\")
    return lines


def _decoded(data: bytes, path: Path) -> str:
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # what PowerShell's > writes
    encoding = "utf-16" if utf16 else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise _fault(path, line, "this is not text.") from error
    if "\0" in text:
        raise _fault(path, text[: text.index("\0")].count("\n") + 1, "this is not text.")
    return text


def _fault(path: Path | str, line: int, problem: str) -> ConfigFileError:
    return ConfigFileError(path, f"line {line}", problem, _FORM)
