"""What stands in for a GPU and its tensors while kernels are compiled for one that is not here.

A launch's own arguments and Triton's own specialisation run on these, so that what is compiled is what that launch
would look for in Triton's cache.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class DType:
    name: str
    itemsize: int
    is_floating_point: bool = True

    def __str__(self) -> str:
        return f"torch.{self.name}"


class StandIn:
    """What Triton's launcher asks of a tensor: its dtype, and whether its address is a multiple of 16 (it is)."""

    def __init__(self, dtype: DType):
        self.dtype = dtype

    @staticmethod
    def data_ptr() -> int:
        return 0

    @staticmethod
    def ptr_range() -> int:
        return 1 << 40  # weights pass 2 GB; only ROCm specialises on this


class StandInDriver:
    """A driver that knows its target and nothing else: no GPU is touched."""

    def __init__(self, target: Any):
        self._target = target

    def get_current_target(self) -> Any:
        return self._target

    @staticmethod
    def get_current_device() -> int:
        return 0

    @staticmethod
    def get_current_stream(device: int) -> int:
        return 0


def resources(cubin: bytes) -> tuple[int, int]:
    """(registers, stack bytes) per thread of the one kernel in ``cubin``, as cuobjdump reports them."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run(
            [knobs.nvidia.cuobjdump.path, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    if not found:
        raise RuntimeError(f"cuobjdump -res-usage printed no REG and STACK: {said[:200]!r}")
    return int(found[1]), int(found[2])
