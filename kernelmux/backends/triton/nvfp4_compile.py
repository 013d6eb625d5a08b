"""Compile the weight-only NVFP4 GEMM ahead of its launch, for any NVIDIA capability, without a GPU and without torch.

Triton's cache is filled with what a launch of the same tile will look for: both build their arguments in one place.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any

from ...device import Capability
from .nvfp4_arguments import gemm_arguments
from .nvfp4_rules import Nvfp4Tile
from .stand_in import DType, StandIn, StandInDriver, resources

INT16, INT32, FLOAT32 = (StandIn(DType(name, size, kind)) for name, size, kind in
                         (("int16", 2, False), ("int32", 4, False), ("float32", 4, True)))  # fmt: skip


def compile_gemm(
    tile: Nvfp4Tile, capability: Capability, dtype: str = "bfloat16", n: int = 4096, k: int = 4096, m: int = 64
) -> Any:
    """Triton's CompiledKernel for ``capability``. Raises whatever Triton raises.

    Of n and k it matters only which are multiples of 16 and 256. Sets this process's active Triton driver to a
    stand-in: call it where nothing launches.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    from . import nvfp4_weight_only_kernels as kernels

    triton.runtime.driver.set_active(StandInDriver(GPUTarget("cuda", capability.sm, 32)))
    element = StandIn(DType(dtype, 2))
    out = FLOAT32 if tile.split > 1 else element
    args, kwargs, grid = gemm_arguments(
        tile, element, INT16, INT32, FLOAT32, out, m=m, n=n, k=k, rows=-(-n // 64) * 64, strides=(k, n)
    )
    kernels.nvfp4_weight_only_gemm.device_caches.clear()
    return kernels.nvfp4_weight_only_gemm.warmup(*args, grid=grid, **kwargs)


def compile_facts(tile: Nvfp4Tile, capability: Capability, dtype: str = "bfloat16") -> dict[str, Any]:
    """Shared memory, registers and stack of one tile, as plain data; runs in a child process of its own."""
    start = time.perf_counter()
    kernel = compile_gemm(tile, capability, dtype)
    registers, stack = resources(kernel.asm["cubin"])
    return {
        "shared_bytes": kernel.metadata.shared,
        "registers": registers,
        "stack_bytes": stack,
        "sha256": hashlib.sha256(kernel.asm["cubin"]).hexdigest(),
        "seconds": round(time.perf_counter() - start, 2),
    }
