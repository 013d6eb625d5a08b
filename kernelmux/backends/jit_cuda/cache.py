"""Compiled kernels on disk, by everything that decides their machine code: a file is right or it is not found.

A file is one line of JSON (facts, and the hash of the rest) and the machine code. One that is cut or altered is
compiled anew and replaced; a folder that cannot be written costs the cache, never the kernel.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import StoreError
from ...store.files import sha256, sweep, write_whole
from ...store.paths import cache_dir
from ..compile_job import CompileFacts, CompileJob
from . import compiler, fast_math
from .compiler import Cubin, Source

if TYPE_CHECKING:
    from ...device import Capability

_FORMAT = 1
_warned = False


def folder() -> Path:
    return cache_dir() / "jit_cuda"


def fetch(source_name: str, kernel: str, defines: Mapping[str, str | int], arch: str, *, fast: bool = False) -> Cubin:
    """The machine code from the cache, else compiled and kept. Raises what ``compile_source`` raises."""
    source = compiler.read_source(source_name)
    path = _path(source, kernel, defines, arch, fast)
    found = _read(path)
    if found is not None:
        return found
    cubin = compiler.compile_read(source, kernel, defines, arch, fast=fast)
    if compiler.is_the_packages():
        _write(path, cubin)
    return cubin


def holds(source_name: str, kernel: str, defines: Mapping[str, str | int], arch: str, *, fast: bool = False) -> bool:
    """Whether ``fetch`` would need no compiler."""
    path = _path(compiler.read_source(source_name), kernel, defines, arch, fast)
    return _read(path) is not None


def job(source_name: str, kernel: str, defines: Mapping[str, str | int], capability: Capability) -> CompileJob:
    """The compilation that ``launch.function`` would need on such a GPU, for a kernel's ``compile`` hook."""
    fast = fast_math.wanted(source_name, kernel, defines, capability)

    def run() -> bool:
        if holds(source_name, kernel, defines, capability.arch, fast=fast):
            return False
        fetch(source_name, kernel, defines, capability.arch, fast=fast)
        return True

    def facts() -> CompileFacts:
        cubin = fetch(source_name, kernel, defines, capability.arch, fast=fast)
        return CompileFacts(cubin.registers, cubin.spills, cubin.shared_bytes)

    return CompileJob(f"{kernel} ({', '.join(f'{name}={value}' for name, value in defines.items())})", run, facts)


def _path(source: Source, kernel: str, defines: Mapping[str, str | int], arch: str, fast: bool) -> Path:
    told = compiler.options(defines, arch, fast=fast)
    decisive = [_FORMAT, source.texts, kernel, told, compiler.identity()]
    key = sha256(json.dumps(decisive, separators=(",", ":")).encode())
    return folder() / arch / f"{kernel}-{key[:32]}.cubin"


def _read(path: Path) -> Cubin | None:
    try:
        head, _, code = path.read_bytes().partition(b"\n")
        facts = json.loads(head)
        if facts["code"] != sha256(code):
            return None
        numbers = {name: int(facts[name]) for name in ("registers", "spills", "shared_bytes")}
        return Cubin(code=code, kernel=str(facts["kernel"]), log=str(facts["log"]), **numbers)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, cubin: Cubin) -> None:
    global _warned
    facts = {name: getattr(cubin, name) for name in ("kernel", "registers", "spills", "shared_bytes", "log")}
    try:
        write_whole(path, json.dumps({**facts, "code": sha256(cubin.code)}).encode() + b"\n" + cubin.code)
        sweep(path.parent)
    except StoreError as error:
        if not _warned:
            warnings.warn(f"compiled kernels are not kept: {error}", stacklevel=2)
        _warned = True
