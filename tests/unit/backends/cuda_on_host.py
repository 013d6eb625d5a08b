"""Kernels of csrc run as C++ of the host, in the place of ``launch``: bound calls then work on tensors of the CPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kernelmux.backends.jit_cuda import compiler

HERE = Path(__file__).parent
FLAGS = ("-O1", "-std=c++17", "-march=native", "-ffp-contract=off", "-w", "-shared", "-fPIC")
_C_TYPES = {"P": ctypes.c_uint64, "q": ctypes.c_int64, "i": ctypes.c_int32, "f": ctypes.c_float}


def compile_cpp(source: Path, library: Path, *options: str) -> ctypes.CDLL:
    done = subprocess.run(
        ["g++", *FLAGS, *options, "-o", str(library), str(source)], capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    return ctypes.CDLL(str(library))


class Host:
    """Takes the place of the module ``launch`` in a module of kernels. ``grids`` and ``given``: what was launched."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.built: dict[Any, ctypes.CDLL] = {}
        self.grids: list[tuple[int, int]] = []
        self.given: list[dict[str, str | int]] = []
        for name in ("activations.cu", "fp8_epilogues.cu", "formulas.cuh", "together.cuh"):
            shutil.copy(compiler.SOURCES / name, folder / name)
        shutil.copy(HERE / "common_on_host.cuh", folder / "common.cuh")
        shutil.copy(HERE / "machine_on_host.h", folder)

    def function(self, source: str, kernel: str, defines: Any, index: Any, *, fast: bool | None = None) -> ctypes.CDLL:
        key = (source, kernel, defines)
        self.given.append(dict(defines))
        if key not in self.built:
            entry = self.folder / f"entry{len(self.built)}.cpp"
            entry.write_text(f'#include "{source}.cu"\nHOST_ENTRY({kernel})\n')
            options = [f"-D{name}={value}" for name, value in defines]
            self.built[key] = compile_cpp(entry, entry.with_suffix(".so"), "-I", str(self.folder), *options)
        return self.built[key]

    def Launcher(self, function: ctypes.CDLL, signature: str, *, block: int, pdl: bool = True) -> Any:
        host = self

        class Launcher:
            def bind(self, grid: int, *values: Any) -> Callable[..., None]:
                assert len(values) == len(signature)
                assert grid >= 1

                def call(stream: int, *varying: Any) -> None:
                    left = iter(varying)
                    now = [next(left) if value is ... else value for value in values]
                    assert next(left, None) is None
                    boxes = [_C_TYPES[letter](value) for letter, value in zip(signature, now, strict=True)]
                    pointers = (ctypes.c_void_p * len(boxes))(*(ctypes.addressof(box) for box in boxes))
                    host.grids.append((grid, block))
                    assert function.run(grid, block, pointers) == 0, "an access that is not aligned"

                return call

        return Launcher()

    def stream_getter(self) -> Callable[[int], int]:
        return lambda index: 0
