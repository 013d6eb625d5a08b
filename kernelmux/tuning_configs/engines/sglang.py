"""SGLang 0.5.23's tables: names, folders by Triton version, which file and entry a launch takes, the defaults.

Followed from ``fused_moe_triton_config.py`` and tested against its functions themselves. Up and down projection have
tables of their own; a missing down table means up's; down always runs with up's BLOCK_SIZE_M.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from kernelmux.tuning_configs.engines.entry import Entry
from kernelmux.tuning_configs.engines.foreign import NOTE, read
from kernelmux.tuning_configs.engines.question import Answer, Question, entry_of
from kernelmux.tuning_configs.names import TableName

DTYPES = ("fp8_w8a8", "int8_w8a8", "int4_w4a16", "int8_w8a16", "float32")
# Tables of dense GEMMs, which share the grammar in part, lie elsewhere.
ENV = "SGLANG_MOE_CONFIG_DIR"
FOLDER = Path("sglang/srt/layers/moe/moe_runner/triton_utils")  # holds configs/triton_x_y_z/
_LOW_SHARED = 128 * 1024


class SglangFails(Exception):
    """SGLang raises at this point; the message says why."""


class Found(NamedTuple):
    """A file that SGLang reads, and whether it is this Triton version's."""

    path: Path
    entries: dict[int, Entry]
    version: str
    exact: bool


def device_name(torch_name: str) -> str:
    return torch_name.replace(" ", "_")


def folder_of(path: Path) -> Path:
    """The folder above ``configs/`` that a path means: itself, ``configs``, a version folder, or a whole SGLang."""
    for inner in (FOLDER, Path(*FOLDER.parts[1:])):
        if (path / inner).is_dir():
            return path / inner
    if path.name.startswith("triton_"):
        path = path.absolute().parent
    return path.absolute().parent if path.name == "configs" else path


def file_name(question: Question, down: bool = False) -> str:
    """The name SGLang looks for. For int4 it asks with the packed width, half of N."""
    n = question.N // 2 if question.dtype == "int4_w4a16" else question.N
    dtype = f",dtype={question.dtype}" if question.dtype else ""
    block = f",block_shape={question.block_text}" if question.block_text else ""
    channel = ",per_channel_quant=True" if question.per_channel else ""
    side = "_down" if down else ""
    return f"E={question.E},N={n},device_name={device_name(question.device)}{dtype}{block}{channel}{side}.json"


def unreachable(name: TableName) -> tuple[str, str, str] | None:
    """(code, why, mend) of a well-formed name that no look-up of SGLang can ask for, or None."""
    if name.backend:
        return "unreachable", "SGLang's names carry no backend.", "Remove it."
    if name.K is not None:
        return "unreachable", "K, topk and activation in the name are kernelmux's own.", "Export it: `configs export`."
    if name.block_shape and not name.blank:
        return "unreachable", "SGLang writes block_shape with a blank.", "Rename it: block_shape=[n, k]."
    if name.block_shape and name.dtype is None:
        why = "a layer without a quantized dtype has no block_shape, so SGLang never asks for this name."
        return "unreachable", why, "Add its dtype to the name (fp8_w8a8?), if that name is free."
    if name.dtype is not None and name.dtype not in DTYPES:
        known = ", ".join(DTYPES)
        return "dead_dtype", f"SGLang never asks for dtype={name.dtype}; it knows {known} and none.", "Remove it."
    return None


def lookup(question: Question, m: int, config_dir: Path, triton_version: str) -> Answer:
    """What SGLang launches at ``m`` tokens. ``config_dir`` holds ``configs/``: SGLANG_MOE_CONFIG_DIR, or the package.

    This Triton's folder first, then every other one, newest first; up and down look on their own.
    """
    try:
        return answer(question, find(question, config_dir, triton_version), m)
    except SglangFails as error:
        return Answer("sglang", m, "error", f"{error}", file_name(question))


def find(question: Question, config_dir: Path, triton_version: str) -> tuple[Found | None, Found | None]:
    """The files SGLang reads for up and down, the same where down has none. Raises SglangFails."""
    found = _find(config_dir, file_name(question), triton_version)
    return found, _find(config_dir, file_name(question, down=True), triton_version) or found


def answer(question: Question, files: tuple[Found | None, Found | None], m: int) -> Answer:
    """The answer of files that were found, or of the default, at ``m`` tokens."""
    found, down_found = files
    name, down_name = file_name(question), file_name(question, down=True)
    if found is not None and found.entries:
        key, entry = entry_of(found.entries, m)
        up = Answer("sglang", m, "file", _said(found), name, found.path, key, entry)
    else:
        up = Answer("sglang", m, "default", "no file of this name in any folder", name, entry=default(question, m))
    if down_found is None or not down_found.entries:
        # Without a table the down GEMM runs up's tile.
        down = replace(up, name=down_name, why="no down table: up's tile", entry=_without_tma(up.entry))
        return replace(up, down=down)
    key, entry = entry_of(down_found.entries, m)
    reused = down_found is found
    said = "no down table: up's is used again" if reused else _said(down_found)
    theirs = entry.get("BLOCK_SIZE_M")
    if theirs != up.entry.get("BLOCK_SIZE_M"):
        said += f"; its BLOCK_SIZE_M={theirs} is overridden by up's"
        entry = {**entry, "BLOCK_SIZE_M": up.entry.get("BLOCK_SIZE_M")}
    down = Answer("sglang", m, "file", said, down_name, down_found.path, key, entry)
    return replace(up, down=down)


def _said(found: Found) -> str:
    return (
        "this Triton's folder"
        if found.exact
        else f"not in this Triton's folder; the newest that has it, {found.version}"
    )


def _without_tma(entry: Entry) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "USE_TMA"}


def _find(config_dir: Path, name: str, triton_version: str) -> Found | None:
    if "/" in name or "\0" in name or ".." in triton_version or "/" in triton_version:
        raise SglangFails(f"{name!r} under Triton {triton_version!r} is no file name")
    root = config_dir / "configs"
    own = root / f"triton_{triton_version.replace('.', '_')}" / name
    if own.exists():
        return Found(own, _entries(own, _stamp(own)), triton_version, True)
    for version in _versions(root):
        path = root / f"triton_{version.replace('.', '_')}" / name
        if version != triton_version and path.exists():
            return Found(path, _entries(path, _stamp(path)), version, False)
    return None


def _versions(root: Path) -> list[str]:
    """The versions of the folders there, newest first, sorted as SGLang sorts them: by whole numbers only."""
    try:
        names = os.listdir(root)
    except OSError as error:
        raise SglangFails(f"SGLang fails: {root} cannot be listed") from error
    found = [name.removeprefix("triton_").replace("_", ".") for name in names if name.startswith("triton_")]
    try:
        return sorted(found, key=lambda text: tuple(int(part) for part in text.split(".")), reverse=True)
    except ValueError as error:
        raise SglangFails(f"SGLang fails on a folder name in {root}: {error}") from error


@lru_cache(maxsize=1024)
def _entries(path: Path, stamp: tuple[int, int]) -> dict[int, Entry]:
    reading = read(path)
    if reading.table is None or not reading.launchable:
        raise SglangFails(f"SGLang fails while it reads {path}: check it")
    if any(key == NOTE for key, _ in reading.table.pairs):
        raise SglangFails(f"SGLang fails on the key {NOTE} of {path}: it reads every key as a number")
    return dict(reading.table.entries)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def default(question: Question, m: int) -> dict[str, Any]:
    """SGLang's ``get_default_config``, without deterministic inference and Marlin."""
    amd = question.vendor == "amd"
    if question.dtype == "fp8_w8a8":
        if question.block_shape is not None:
            return _tile(64, *question.block_shape, 32, 4, 2 if amd else 3)
        low = not amd and question.shared_bytes is not None and question.shared_bytes < _LOW_SHARED
        if low:
            return _tile(64, 128, 256, 64, 4, 2) if m > question.E else _tile(32, 64, 256, 1, 4, 4)
        stages = 2 if amd else 4
        return _tile(64, 128, 128, 1, 4, stages) if m <= question.E else _tile(128, 256, 128, 32, 8, stages)
    return _tile(16, 32, 64, 1) if m <= question.E else _tile(64, 64, 32, 8)


def _tile(*values: int) -> dict[str, Any]:
    keys = ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M", "num_warps", "num_stages")
    return dict(zip(keys, values, strict=False))


def changes(question: Question, m: int, bundled: Path, env_dir: Path | None, triton: str) -> list[tuple[str, Answer]]:
    """(what if, the answer then) for each thing around SGLang that could change the answer."""
    out: list[tuple[str, Answer]] = []
    if env_dir is not None:
        out.append((f"{ENV} not set", lookup(question, m, bundled, triton)))
    root = env_dir or bundled
    try:
        versions = _versions(root / "configs")
    except SglangFails:
        return out
    names = {file_name(question), file_name(question, down=True)}
    for version in versions:
        folder = root / "configs" / f"triton_{version.replace('.', '_')}"
        if version != triton and any((folder / name).exists() for name in names):
            out.append((f"Triton {version}", lookup(question, m, root, version)))
    return out
