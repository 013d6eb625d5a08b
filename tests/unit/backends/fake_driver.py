"""A driver for tests without a GPU: `install` compiles fake_driver.c and puts it in the place of libcuda."""

from __future__ import annotations

import ctypes
import struct
import subprocess
from pathlib import Path
from typing import Any

from kernelmux.backends.jit_cuda import driver, launch


class FakeDriver:
    """One GPU; what was launched last, read back from what the driver was handed."""

    def __init__(self, library: ctypes.CDLL):
        self.library = library

    def __getattr__(self, name: str) -> int:
        return ctypes.c_int.in_dll(self.library, name).value

    def set(self, **numbers: int) -> None:
        for name, number in numbers.items():
            ctypes.c_int.in_dll(self.library, name).value = number

    @property
    def config(self) -> driver.LaunchConfig:
        return driver.LaunchConfig.in_dll(self.library, "last")

    @property
    def attribute(self) -> tuple[int, int]:
        return tuple((ctypes.c_int * 2).in_dll(self.library, "last_attribute"))  # type: ignore[return-value]

    def values(self, signature: str) -> tuple[int | float, ...]:
        slots = (ctypes.c_uint64 * 32).in_dll(self.library, "last_values")
        letters = {"P": "Q", "q": "q", "i": "i", "f": "f"}
        return tuple(
            struct.unpack_from("=" + letters[letter], bytes(ctypes.c_uint64(slots[i])))[0]
            for i, letter in enumerate(signature)
        )


def build(folder: Path) -> Path:
    library = folder / "libcuda-fake.so"
    source = Path(__file__).with_name("fake_driver.c")
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library


def install(library: Path, monkeypatch: Any) -> FakeDriver:
    """For the rest of the test. What was loaded before is forgotten, before and after."""
    monkeypatch.setattr(driver, "LIBRARY", str(library))
    monkeypatch.setattr(launch, "_functions", {})
    for name in ("_cuda", "_primary", "launcher"):
        fresh = driver.cache(getattr(driver, name).__wrapped__)
        monkeypatch.setattr(driver, name, fresh)
    fake = FakeDriver(ctypes.CDLL(str(library)))
    fake.set(launches=0, loads=0, refuse=0, needs_context=0, argument_count=0, shared_asked=0, major=9, minor=0)
    return fake
