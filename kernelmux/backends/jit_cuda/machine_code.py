"""What the compiler really made: the instructions of a cubin, read with the disassembler that Triton brings along."""

from __future__ import annotations

import re
import subprocess
import tempfile
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from ...errors import KernelmuxError, MissingPackage

# The disassembler's own release may not know a GPU whose instructions are those of another one: 10.3 those of 10.0.
_SAME_INSTRUCTIONS = {103: 100, 121: 120, 110: 100}
_ARCH_AT = 0x30  # e_flags of the ELF header
_NEW_FORMAT = 8  # ABI version from which the arch is in the second byte of the flags

_SECTION = re.compile(r"^\s*\.section\s+\.text\.(\S+?),", re.MULTILINE)
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", re.MULTILINE)
_WIDTH = re.compile(r"\.(8|16|32|64|128|256)\b|\.[US](8|16)\b")


class Unreadable(KernelmuxError):
    """The disassembler at hand does not read this machine code."""


def instructions(code: bytes, kernel: str) -> tuple[str, ...]:
    """The kernel's instructions in the order of their addresses: ``@P0 LDG.E.128 R4, desc[UR6][R6.64]``, ..."""
    return _instructions(code, kernel)


def widest_load(code: bytes, kernel: str) -> int:
    """Bytes of its widest load from global memory: 32 for LDG.E.ENL2.256, 16 for LDG.E.128, ... 0 without any."""
    return max((_bytes(each) for each in _named(code, kernel, "LDG")), default=0)


def widest_store(code: bytes, kernel: str) -> int:
    """Bytes of its widest store to global memory."""
    return max((_bytes(each) for each in _named(code, kernel, "STG")), default=0)


def loads(code: bytes, kernel: str) -> tuple[str, ...]:
    """Its loads from global memory, without operands: ``LDG.E.128``, ..."""
    return _named(code, kernel, "LDG")


def spills(code: bytes, kernel: str) -> int:
    """How many of its instructions touch local memory, where spilled registers and indexed arrays lie."""
    return len(_named(code, kernel, "LDL")) + len(_named(code, kernel, "STL"))


def before_wait(code: bytes, kernel: str) -> tuple[str, ...]:
    """Accesses to global memory at addresses before the wait for the kernel ahead; all of them, if it never waits."""
    found = []
    for each in _opcodes(code, kernel):
        if each.startswith("ACQBULK"):
            break
        if each.startswith(("LDG", "STG", "RED", "ATOM", "LD.", "ST.", "UBLKCP", "LDGSTS")):
            found.append(each)
    return tuple(found)


def _bytes(opcode: str) -> int:
    width = _WIDTH.search(opcode)
    return int(width.group(1) or width.group(2)) // 8 if width else 4


def _named(code: bytes, kernel: str, start: str) -> tuple[str, ...]:
    return tuple(each for each in _opcodes(code, kernel) if each.partition(".")[0] == start)


def _opcodes(code: bytes, kernel: str) -> list[str]:
    return [re.sub(r"^@!?U?P\w+\s+", "", each).split(" ", 1)[0] for each in instructions(code, kernel)]


@lru_cache(maxsize=64)
def _instructions(code: bytes, kernel: str) -> tuple[str, ...]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(_readable(code))
        file.flush()
        done = subprocess.run([_tool(), "-c", file.name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unreadable(f"nvdisasm cannot read the machine code of {kernel}: {done.stderr.strip() or done.returncode}")
    begins = {match.group(1): match.end() for match in _SECTION.finditer(done.stdout)}
    if kernel not in begins:
        raise Unreadable(f"there is no kernel {kernel} in this machine code; it has {', '.join(begins) or 'none'}.")
    end = min((at for at in begins.values() if at > begins[kernel]), default=len(done.stdout))
    return tuple(_INSTRUCTION.findall(done.stdout[begins[kernel] : end]))


def _readable(code: bytes) -> bytes:
    """The code, naming a GPU that every disassembler since CUDA 12.8 knows."""
    at = _ARCH_AT + (1 if code[8] >= _NEW_FORMAT else 0)
    same = _SAME_INSTRUCTIONS.get(code[at])
    return code if same is None else code[:at] + bytes((same,)) + code[at + 1 :]


def _tool() -> str:
    spec = find_spec("triton")
    tool = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm" if spec and spec.origin else None
    if tool is None or not tool.exists():
        raise MissingPackage("triton", "reading machine code", "pip install triton")
    return str(tool)
