"""CUDA C++ to machine code with NVRTC, which is called through CuPy's binding. Needs no GPU."""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import CompileFailed, MissingPackage, UsageError
from ...registry.packages import Packages, distributions
from ...registry.value import Value
from .needs import CARRIERS, FIRST_NVRTC, command

if TYPE_CHECKING:
    from ...device import Capability

SOURCES = Path(__file__).parent / "csrc"

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.MULTILINE)
_PLACE = re.compile(r"^(\S+?)\((\d+)\): *(?:catastrophic )?error", re.MULTILINE)
_USAGE = re.compile(r"Compiling entry function '(\w+)'(.*?)(?=ptxas info *: Compiling entry function|\Z)", re.DOTALL)
_QUIET = re.compile(r"^(?:ptxas .*|\s*)$\n?", re.MULTILINE)

_NO_CACHE = "--no-cache"
_compiling = threading.Lock()


class Cubin(Value):
    """Machine code of one kernel. ``spills``: bytes of local memory a thread needs; ``log``: what the compiler said."""

    code: bytes
    kernel: str
    registers: int
    spills: int
    shared_bytes: int
    log: str


class Source(Value):
    """A source with everything it includes: names and texts, itself first."""

    name: str
    texts: tuple[tuple[str, str], ...]


def vector_bytes(capability: Capability) -> int:
    """The widest load and store of a GPU: 32 bytes from 10.0 on, 16 before."""
    return 32 if capability.major >= 10 else 16


def read_source(name: str) -> Source:
    """``norms`` or ``norms.cu`` from the folder of sources, with what it includes."""
    first = name if name.endswith(".cu") else f"{name}.cu"
    texts: dict[str, str] = {}
    wanted = [first]
    while wanted:
        one = wanted.pop(0)
        if one in texts:
            continue
        try:
            texts[one] = (SOURCES / one).read_text(encoding="utf-8")
        except OSError:
            known = ", ".join(sorted(path.stem for path in SOURCES.glob("*.cu")))
            raise UsageError(f"no CUDA source {one!r} (needed by {first}). There are: {known}.") from None
        wanted += _INCLUDE.findall(texts[one])
    return Source(first, tuple(texts.items()))


def options(defines: Mapping[str, str | int], arch: str, *, fast: bool = False) -> tuple[str, ...]:
    """What NVRTC is told. Order is fixed: it is part of a cache's key."""
    return (
        f"--gpu-architecture={arch}",
        "--std=c++17",
        "--device-as-default-execution-space",
        "--generate-line-info",
        "--ptxas-options=-v",
        *(f"-D{name}={value}" for name, value in sorted(defines.items())),
        *(("--use_fast_math",) if fast else ()),
    )


def compile_source(
    source_name: str, kernel: str, defines: Mapping[str, str | int], arch: str, *, fast: bool = False
) -> Cubin:
    """The machine code of ``kernel`` for a GPU such as ``sm_90``, which need not be here.

    Raises CompileFailed with the compiler's log and the line of the source; MissingPackage without CuPy or NVRTC.
    """
    return compile_read(read_source(source_name), kernel, defines, arch, fast=fast)


def compile_read(
    source: Source, kernel: str, defines: Mapping[str, str | int], arch: str, *, fast: bool = False
) -> Cubin:
    """As ``compile_source``, of a source that was read before."""
    nvrtc = binding()
    known = archs()
    if arch not in known:
        raise CompileFailed(
            f"NVRTC {version()} cannot compile for {arch}: it knows {', '.join(sorted(known, key=_number))}. "
            f"Another release may: `{command(Packages.installed(), FIRST_NVRTC.get(_dotted(arch), ''))}`."
        )
    (_, text), headers = source.texts[0], source.texts[1:]
    given = (*options(defines, arch, fast=fast), *no_cache())
    with _compiling:  # NVRTC takes one at a time anyway, and so does CuPy's binding of it
        program = nvrtc.createProgram(
            text, source.name, [text.encode() for _, text in headers], [name.encode() for name, _ in headers]
        )
        try:
            try:
                nvrtc.compileProgram(program, given)
            except nvrtc.NVRTCError as error:
                raise _failure(source, kernel, defines, arch, _said(nvrtc, program) or str(error)) from None
            log, code = _said(nvrtc, program), whole(nvrtc.getCUBIN(program))
        finally:
            nvrtc.destroyProgram(program)
    usage = dict(_USAGE.findall(log)).get(kernel)
    if usage is None:
        found = ", ".join(name for name, _ in _USAGE.findall(log)) or "none"
        raise CompileFailed(f"{source.name} has no kernel {kernel} when compiled so; it has: {found}.", log)
    return Cubin(
        code=code,
        kernel=kernel,
        registers=_count(usage, r"Used (\d+) registers"),
        spills=_count(usage, r"(\d+) bytes stack frame"),
        shared_bytes=_count(usage, r"(\d+) bytes smem"),
        log=_QUIET.sub("", log).strip(),
    )


def _said(nvrtc: Any, program: Any) -> str:
    """The log, without the NUL that ends it in C."""
    return str(nvrtc.getProgramLog(program)).strip("\0")


def whole(code: bytes) -> bytes:
    """An ELF file with its last byte: CuPy's binding takes it for the end of a text and drops it."""
    header_at, header_bytes, headers = (
        int.from_bytes(code[start:stop], "little") for start, stop in ((32, 40), (54, 56), (56, 58))
    )
    return code.ljust(header_at + header_bytes * headers, bytes(1))


def _count(usage: str, pattern: str) -> int:
    found = re.search(pattern, usage)
    return int(found.group(1)) if found else 0


def _failure(source: Source, kernel: str, defines: Mapping[str, str | int], arch: str, log: str) -> CompileFailed:
    given = ", ".join(f"{name}={value}" for name, value in sorted(defines.items()))
    texts = dict(source.texts)
    shown, places = [], []
    for said in log.rstrip().splitlines():
        shown.append(said)
        place = _PLACE.match(said)
        lines = texts[place.group(1)].splitlines() if place and place.group(1) in texts else []
        if place and 0 < int(place.group(2)) <= len(lines):
            number = int(place.group(2))
            shown.append(f"  {number} | {lines[number - 1].strip()}")
            places.append((SOURCES / place.group(1), number))
    message = f"NVRTC {version()} cannot compile {kernel} of {source.name} for {arch} ({given}):\n" + "\n".join(shown)
    return CompileFailed(message, log, *(places[0] if places else (None, None)))


@cache
def binding() -> Any:
    """CuPy's binding of NVRTC, with the library behind it. Raises MissingPackage naming the pip command."""
    try:
        nvrtc = import_module("cupy_backends.cuda.libs.nvrtc")
    except ImportError:
        raise MissingPackage("CuPy", "compiling a CUDA kernel", command(Packages.installed())) from None
    try:
        nvrtc.getVersion()
    except Exception:  # CuPy's own error, of a class that differs between its releases
        _preload()
        try:
            nvrtc.getVersion()
        except Exception:
            raise MissingPackage("NVRTC", "compiling a CUDA kernel", command(Packages.installed())) from None
    return nvrtc


@cache
def no_cache() -> tuple[str, ...]:
    """What keeps NVRTC from its own cache, if it knows the word: a hit there tells no registers and no spills."""
    nvrtc = binding()
    program = nvrtc.createProgram("", "empty.cu", [], [])
    try:
        nvrtc.compileProgram(program, (_NO_CACHE,))
    except nvrtc.NVRTCError:
        return ()
    finally:
        nvrtc.destroyProgram(program)
    return (_NO_CACHE,)


def _preload() -> None:
    """Load NVRTC from the package that carries it, for a CuPy that looks only where a toolkit would be."""
    for carrier in (name for names in CARRIERS.values() for name in names):
        _, folder = distributions().get(carrier, ("", ""))
        for library in Path(folder).parent.glob("nvidia/*/lib/libnvrtc.so.1?") if folder else ():
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def version() -> str:
    """``12.9``."""
    return ".".join(map(str, binding().getVersion()))


def identity() -> str:
    """The compiler, as a cache must know it: by the package that brings it, so that a full cache needs no compiler.

    Where no package does (a toolkit of the system), the library is asked.
    """
    full = _packaged()
    return f"nvrtc {full}" if full else f"nvrtc {version()} of the system"


def is_the_packages() -> bool:
    """Whether the NVRTC that was loaded is the one ``identity`` names, not another that lies in the way."""
    full = _packaged()
    return full is None or full.startswith(f"{version()}.")


def _packaged() -> str | None:
    packages = Packages.installed()
    for name, carriers in CARRIERS.items():
        if name in packages:
            return next((found for carrier in carriers if (found := packages.get(carrier)) is not None), None)
    return None


def archs() -> frozenset[str]:
    """What the installed NVRTC compiles for: ``sm_90``, ..."""
    return frozenset(f"sm_{number}" for number in binding().getSupportedArchs())


def _number(arch: str) -> int:
    return int(arch.removeprefix("sm_"))


def _dotted(arch: str) -> str:
    """``9.0`` for sm_90."""
    digits = arch.removeprefix("sm_")
    return f"{digits[:-1]}.{digits[-1:]}"
