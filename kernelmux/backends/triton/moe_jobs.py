"""What calls of the fused MoE will need of Triton on some GPU, for ``kernelmux compile``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ...contracts.moe_shape import MoeShape
from ...errors import CompileFailed
from ...tuning_configs.lookup import find
from ..compile_job import CompileFacts, CompileJob
from .fused_moe import as_direct
from .moe_rules import direct

if TYPE_CHECKING:
    from ...device import Capability, Device
    from ...tuning_configs.tile import Tile

COMMON = {"E": 128, "N": 768, "K": 2048, "topk": 8}  # Qwen3-30B-A3B
COMMON_M = (1, 16, 64, 256, 1024, 4096)


def fused(device: Device, dtype: str, shape: Mapping[str, Any]) -> Iterator[CompileJob]:
    """One job for each GEMM that calls of these sizes launch, with the tiles that look-up gives them (silu)."""
    from importlib.metadata import version

    sizes = {axis: shape.get(axis, size) for axis, size in COMMON.items()}
    layer = MoeShape(sizes["E"], sizes["N"], sizes["K"], sizes["topk"], "silu", dtype)
    assert device.capability is not None
    choice = find(device, version("triton"), layer)
    seen = set()
    for m in _counts(shape.get("M", COMMON_M)):
        pair, alone = choice.at(m), direct(layer, m)
        for side, tile in (("up", pair.up), ("down", pair.down)):
            tile = as_direct(tile) if alone else tile
            if (side, tile, alone) not in seen:
                seen.add((side, tile, alone))
                what = f"fused_moe {side} {tile.short()}{' direct' if alone else ''} M={m}"
                kept: list[CompileFacts] = []
                job = partial(_run, layer, side, tile, device.capability, alone, kept)
                yield CompileJob(what, job, partial(kept.__getitem__, -1))


def _counts(m: Any) -> list[int]:
    if isinstance(m, int):
        return [m] if m else []
    if len(m) != 2:
        return list(m)
    least, most = max(1, m[0]), m[1]
    return [least, *(1 << k for k in range(most.bit_length()) if least < 1 << k < most), most]


def _run(layer: MoeShape, side: str, tile: Tile, capability: Capability, alone: bool, kept: list[CompileFacts]) -> bool:
    """Compile it; False where Triton's cache had it. Triton's driver is again what it was."""
    from triton import knobs
    from triton.runtime import driver

    from .moe_compile import compile_tile

    hits: list[bool] = []
    before, listening = driver._active, knobs.compilation.listener
    knobs.compilation.listener = lambda **said: hits.append(said["cache_hit"])
    try:
        made = compile_tile(layer, side, tile, capability, alone)
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise CompileFailed(f"fused_moe {side} {tile.short()} for {capability.arch}: {first}", str(error)) from error
    finally:
        driver._active, knobs.compilation.listener = before, listening
    kept.append(CompileFacts(made.registers, made.stack_bytes, made.shared_bytes))
    return not all(hits)
