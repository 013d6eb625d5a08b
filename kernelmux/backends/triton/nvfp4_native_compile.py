"""Compile the native NVFP4 GEMM ahead for a GPU that need not be here; with neither torch nor a GPU."""

from __future__ import annotations

from typing import Any

from ...device import Capability
from .nvfp4_native_arguments import native_arguments
from .nvfp4_native_rules import NativeTile
from .stand_in import DType, StandIn, StandInDriver

UINT8, E4M3, FLOAT32 = (StandIn(DType(name, size, kind)) for name, size, kind in
                        (("uint8", 1, False), ("float8_e4m3fn", 1, True), ("float32", 4, True)))  # fmt: skip


def compile_native(
    tile: NativeTile, capability: Capability, dtype: str = "bfloat16", m: int = 256, n: int = 4096, k: int = 4096
) -> Any:
    """Triton's CompiledKernel for ``capability``. Raises whatever Triton raises. Replaces this process's driver."""
    import triton
    from triton.backends.compiler import GPUTarget

    from . import nvfp4_native_kernels as kernels

    triton.runtime.driver.set_active(StandInDriver(GPUTarget("cuda", capability.sm, 32)))
    out = FLOAT32 if tile.split > 1 else StandIn(DType(dtype, 2))
    args, kwargs, grid = native_arguments(
        tile, UINT8, E4M3, UINT8, E4M3, FLOAT32, out, m=m, n=n, k=k, stride_out=n
    )  # fmt: skip
    kernels.nvfp4_native_gemm.device_caches.clear()
    return kernels.nvfp4_native_gemm.warmup(*args, grid=grid, **kwargs)
