"""Compile the MoE GEMMs ahead of their launch, for any NVIDIA capability, with neither a GPU nor torch.

Our fused ones, plain ones, or an engine's own: the variant says which.

The launch's own argument builder and Triton's own specialisation run on stand-in tensors, so what is compiled is
what a launch would look for in Triton's cache: nothing is guessed twice.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any

from ...contracts.moe_shape import MoeShape
from ...device import Capability
from ...errors import UsageError
from ...tuning_configs.tile import Tile
from .moe_source import source_hash
from .moe_variant import FUSED, MoeVariant
from .plain_launch import Gemm, Launch, launch_of
from .stand_in import DType, StandIn, StandInDriver, resources

__all__ = ["Compiled", "compile_gemm", "compile_tile", "resources", "source_hash"]


@dataclass(frozen=True, slots=True)
class Compiled:
    """What the compiler says of one GEMM kernel."""

    shared_bytes: int
    registers: int  # per thread
    stack_bytes: int  # per thread; local memory that spills use
    sha256: str  # of the machine code: equal means the same kernel
    seconds: float


_INT32, _FLOAT32 = StandIn(DType("int32", 4, False)), StandIn(DType("float32", 4))


def compile_gemm(
    shape: MoeShape, side: str, tile: Tile, capability: Capability, direct: bool = False, variant: MoeVariant = FUSED
) -> Any:
    """Triton's CompiledKernel of one GEMM for ``capability``. Raises whatever Triton raises.

    Sets this process's active Triton driver to a stand-in: call it where nothing launches.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    triton.runtime.driver.set_active(StandInDriver(GPUTarget("cuda", capability.sm, 32)))
    if variant.structure == "fused":
        launch = _fused(shape, side, tile, direct)
    else:
        launch = _plain(shape, side, tile, capability, direct, variant)
    launch.kernel.device_caches.clear()
    return launch.kernel.warmup(*launch.args, grid=launch.grid, **launch.kwargs)


def _fused(shape: MoeShape, side: str, tile: Tile, direct: bool) -> Launch:
    from . import moe_kernels, moe_launch

    element = StandIn(DType(shape.dtype, shape.element_bytes))
    columns, depth = shape.gemm(side)
    args, kwargs, grid = moe_launch.gemm_arguments(
        shape, side, tile, a=element, b=element, c=element, pair_weights=_FLOAT32, topk_ids=_INT32, expert_map=None,
        sorted_pairs=_INT32, block_info=_INT32, num_blocks=_INT32, m_blocks=1 << 10, rows=1 << 14,
        strides=(depth, columns * depth, depth, shape.N if side == "up" else columns),
        weighted=side == "down", direct=direct,
    )  # fmt: skip
    return Launch(moe_kernels.moe_gemm, args, kwargs, grid)


def _plain(shape: MoeShape, side: str, tile: Tile, capability: Capability, direct: bool, variant: MoeVariant) -> Launch:
    quant = variant.quant
    element = StandIn(DType(shape.dtype, shape.element_bytes))
    stored = StandIn(DType("float8_e4m3fn", 1) if quant.fp8 else DType("int8", 1, False))
    gemm = Gemm(
        a=stored if quant.quantizes_activations else element, b=element if quant.dtype is None else stored, c=element,
        a_scale=_FLOAT32 if quant.quantizes_activations else None, b_scale=None if quant.dtype is None else _FLOAT32,
        pair_weights=_FLOAT32, topk_ids=_INT32, sorted_pairs=_INT32, block_words=_INT32, num_blocks=_INT32,
        m=1 if direct else 1 << 10, a_rows=1 << 14, weighted=side == "down", direct=direct,
        sorted_inner=side == "down" and tile.use_tma,
    )  # fmt: skip
    return launch_of(variant, shape, side, tile, capability, gemm)


def compile_tile(
    shape: MoeShape, side: str, tile: Tile, capability: Capability, direct: bool = False, variant: MoeVariant = FUSED
) -> Compiled:
    """Compile one GEMM and read what it needs. Fills Triton's cache, so that a later launch only loads it.

    ``direct``: the launch of few pairs that are not sorted. Raises UsageError for a tile that ``variant`` would not
    run as it is written, and whatever Triton raises.
    """
    why = variant.refusal(shape, side, tile, capability) if variant.structure != "fused" else None
    if why is not None:
        raise UsageError(f"{tile.short()} ({side}) does not run in {variant.brief()}: {why}.")
    start = time.perf_counter()
    kernel = compile_gemm(shape, side, tile, capability, direct, variant)
    cubin: bytes = kernel.asm["cubin"]
    registers, stack = resources(cubin)
    return Compiled(
        shared_bytes=kernel.metadata.shared,
        registers=registers,
        stack_bytes=stack,
        sha256=hashlib.sha256(cubin).hexdigest(),
        seconds=time.perf_counter() - start,
    )
