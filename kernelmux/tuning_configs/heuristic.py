"""The tiles to use where nobody has tuned: vLLM 0.33's default for bf16 and fp16, made to fit the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.tuning_configs.shared_law import shrunk
from kernelmux.tuning_configs.table import MoeConfig
from kernelmux.tuning_configs.tile import Tile

if TYPE_CHECKING:
    from kernelmux.device import Device

# Without a shape, as if no expert were crowded: GROUP_SIZE_M=1. A group pays only past 128 tokens an expert.
_CROWDED = 128


def default_config(shape: MoeShape | None, m: int, device: Device | None = None) -> MoeConfig:
    """The pair of tiles for ``m`` tokens that vLLM would use for both GEMMs when it has no table.

    On an H100 it is 0-8% off the best tile of vLLM's kernel at M <= 2048 and 6-15% off at M = 8192 (geometric mean
    0.96-0.97 of the best over M). vLLM does not look at shared memory; here stages, then blocks, shrink to fit
    ``device``.
    """
    tile = default_tile(m, experts=shape.E if shape else None, vendor=device.vendor if device else "nvidia")
    if device is not None:
        size = shape.element_bytes if shape else 2
        tile = shrunk(tile, device, size, size)
    return MoeConfig(tile, tile)


def default_tile(m: int, experts: int | None, vendor: str = "nvidia") -> Tile:
    """vLLM's ``get_default_config`` for unquantized weights, before any look at shared memory."""
    block_m = 16 if m <= 32 else 32 if m <= 96 else 64 if m <= 512 else 128
    stages = 2 if vendor == "amd" else 4 if m <= 32 else 3
    return Tile(
        block_m=block_m,
        block_n=64 if m <= 64 else 128,
        block_k=128 if m <= 64 else 64,
        group_m=16 if experts and m // experts > _CROWDED else 1,
        warps=4 if m <= 128 else 8,
        stages=stages,
    )
