"""Where tables lie: ``<root>/triton_3_6_0/`` for measured ones, the same below ``predicted/`` and ``imported/``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

PACKAGED = Path(__file__).with_name("configs")
# Beside the measured tables, not among them, so that neither can overwrite the other: the names are equal.
PREDICTED, IMPORTED = "predicted", "imported"
UNKNOWN = (0, 0, 0)  # the version of an imported table that does not say under which Triton it was tuned

Version = tuple[int, int, int]

_DIRECTORY = re.compile(r"triton_(\d{1,4})_(\d{1,4})(?:_(\d{1,4}))?(?!\d)")
_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?")


@dataclass(frozen=True, slots=True)
class VersionFolder:
    """One folder of tables and the Triton version it is for."""

    path: Path
    version: Version


def roots() -> tuple[Path, ...]:
    """The user's folder, then the packaged one."""
    from kernelmux.store.paths import config_dir

    return (config_dir(), PACKAGED)


def version_of(text: str | None) -> Version | None:
    """(3, 6, 0) of "3.6.0", "3.6.0+git1a2b" or "3.6"; None for a version that is not known."""
    found = _VERSION.match(text or "")
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else None


def folder_name(triton_version: str) -> str:
    """``triton_3_6_0``. Raises ValueError for a version without numbers."""
    version = version_of(triton_version)
    if version is None:
        raise ValueError(f"{triton_version!r} is no Triton version")
    return "triton_" + "_".join(map(str, version))


def version_folder(name: str) -> Version | None:
    """(3, 6, 0) of a folder name "triton_3_6_0"; None for another name."""
    match = _DIRECTORY.match(name)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


def version_folders(root: Path) -> list[VersionFolder]:
    """Every version folder below ``root``, measured, predicted and imported, oldest first; none if ``root`` is absent.

    A folder name that only begins like a version (``triton_3_5_1+git``) counts as that version; other names are
    passed over.
    """
    found = []
    for base in (root, root / PREDICTED, root / IMPORTED):
        try:
            names = os.listdir(base)
        except OSError:
            continue
        for name in names:
            version = version_folder(name)
            if version:
                found.append(VersionFolder(base / name, version))
    return sorted(found, key=lambda folder: (folder.version, str(folder.path)))


def distance(version: Version, wanted: Version | None) -> tuple[int, int, int, int]:
    """Sort key: nearest (major, minor, patch) first, the newer of two as near; the newest when none is wanted."""
    if wanted is None:
        return (-version[0], -version[1], -version[2], 0)
    major, minor, patch = (abs(a - b) for a, b in zip(version, wanted, strict=True))
    return (major, minor, patch, 0 if version >= wanted else 1)


def spelled_unknown() -> str:
    """``UNKNOWN`` as the text of a version."""
    return ".".join(map(str, UNKNOWN))


def spelled(version: Version) -> str:
    """``3.6.0``, or "(not known)"."""
    return "(not known)" if version == UNKNOWN else ".".join(map(str, version))
