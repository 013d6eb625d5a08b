"""How much shared memory a pipelined Triton GEMM takes, without compiling it.

With ``slab = BK * (BM * a_bytes + BN * b_bytes)``, the operands of one stage, Triton holds

=============================  ======================  =====================================================
instruction                    where                   bytes
=============================  ======================  =====================================================
``mma.sync`` (registers)       8.x, 12.x, and 9.0/     ``slab * (stages - 1)``
                               10.x with BM < 64
``wgmma`` (from shared)        9.0 with BM >= 64       ``slab * stages``
``tcgen05`` (from shared)      10.x with BM >= 64      ``slab * stages + 16`` (barriers)
no asynchronous copies         7.5                     ``slab`` whatever the stages
=============================  ======================  =====================================================

A tile whose operands come through TMA (``use_tma``) takes 8 bytes more a buffer, for its barrier (with tcgen05 the
barriers together are rounded up to 16 bytes). Without TMA in the hardware (8.x) Triton lowers such a kernel to plain
loads that are not pipelined: the law says nothing of it.

The law belongs to a pair (SM, Triton): 11.0 held 65,536 B under Triton 3.6 and 98,320 B under 3.9 for one tile. Where
a pair has not been compared with compiled code, `predicted_shared` says so and answers with a lower bound. Filter by
the law, then trust ``metadata.shared`` of the compiled kernel.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from kernelmux.tuning_configs.tile import Tile

if TYPE_CHECKING:
    from kernelmux.device import Capability, Device

LAW_TRITON = "3.6.0"

# (major, minor) of the GPU, (major, minor) of Triton -> compiled kernels that agreed to the byte, out of as many
# compared (bf16, stages 2..5, warps 4 and 8): vLLM's fused_moe_kernel, and 24 each of kernelmux's own (both sides,
# gated and not; 9 of the 24 through TMA, on 8.0 only the 15 without).
EXACT: dict[tuple[tuple[int, int], tuple[int, int]], int] = {
    ((8, 0), (3, 6)): 44 + 15,
    ((9, 0), (3, 6)): 468 + 24,
    ((10, 0), (3, 6)): 24 + 24,
    ((12, 0), (3, 6)): 173 + 24,
}

# Barriers that tcgen05 keeps beside its operands (24 of 24 compiled kernels).
_TCGEN05_EXTRA = 16
_BARRIER = 8  # bytes of an mbarrier
# Warp groups of four issue wgmma and tcgen05 on 64 rows at a time; smaller tiles fall back to mma.sync.
_GROUP_ROWS, _GROUP_WARPS = 64, 4


def predicted_shared(
    tile: Tile,
    capability: Capability | tuple[int, int] | None,
    a_bytes: float = 2,
    b_bytes: float = 2,
    triton: str = LAW_TRITON,
) -> tuple[int, bool]:
    """(shared memory in bytes, whether that is exact) for one tile.

    ``a_bytes`` and ``b_bytes`` are bytes per element of the activations and the weights. ``capability`` None stands
    for a GPU without one (AMD): a lower bound. Never exact: other than 2-byte elements (block-scaled types take 0-5%
    more), fewer than two stages, TMA where the hardware has none.
    """
    slab = tile.slab_bytes(a_bytes, b_bytes)
    pair = None if capability is None else (int(capability[0]), int(capability[1]))
    measured = pair is not None and (pair, _major_minor(triton)) in EXACT
    has_tma = pair is not None and pair[0] >= 9
    exact = measured and (has_tma or not tile.use_tma) and tile.stages >= 2 and a_bytes == b_bytes == 2
    barriers = _BARRIER if tile.use_tma and has_tma else 0
    from_shared = tile.block_m >= _GROUP_ROWS and tile.warps >= _GROUP_WARPS
    if pair == (9, 0) and from_shared:
        return (slab + barriers) * tile.stages, exact
    if pair is not None and pair[0] == 10 and from_shared:
        return slab * tile.stages + -(-(_TCGEN05_EXTRA + barriers * tile.stages) // 16) * 16, exact
    return lower_bound(tile, capability, a_bytes, b_bytes) + barriers * max(tile.stages - 1, 0), exact


def lower_bound(
    tile: Tile, capability: Capability | tuple[int, int] | None, a_bytes: float = 2, b_bytes: float = 2
) -> int:
    """Bytes of shared memory that ``tile`` takes at least, on any Triton: what a free filter may reject by."""
    slab = tile.slab_bytes(a_bytes, b_bytes)
    if capability is not None and int(capability[0]) < 8:
        return slab if tile.stages >= 2 else 0
    return slab * (tile.stages - 1)


def fits(tile: Tile, device: Device, a_bytes: float = 2, b_bytes: float = 2, triton: str = LAW_TRITON) -> bool:
    """Whether the tile's predicted shared memory is within the device's limit per block (opt-in).

    A device without shared memory (``cpu``, where Triton's interpreter runs) takes any tile.
    """
    if device.shared_bytes <= 0:
        return True
    return predicted_shared(tile, device.capability, a_bytes, b_bytes, triton)[0] <= device.shared_bytes


def shrunk(tile: Tile, device: Device, a_bytes: float = 2, b_bytes: float = 2, triton: str = LAW_TRITON) -> Tile:
    """The tile with as few changes as make it fit: fewer stages down to 2, then BLOCK_SIZE_K and _N halved down to 16.

    BLOCK_SIZE_M stays, as both GEMMs share it. A tile that no change makes fit comes back at its smallest.
    """
    while not fits(tile, device, a_bytes, b_bytes, triton):
        if tile.stages > 2:
            tile = replace(tile, stages=tile.stages - 1)
        elif tile.block_k > 16 and tile.block_k >= tile.block_n // 2:
            tile = replace(tile, block_k=tile.block_k // 2)
        elif tile.block_n > 16:
            tile = replace(tile, block_n=tile.block_n // 2)
        else:
            break
    return tile


def _major_minor(version: str) -> tuple[int, int]:
    """(3, 6) of "3.6.0" or "3.6.0+git1a2b"; (0, 0) when it starts with no number."""
    found = re.match(r"(\d+)(?:\.(\d+))?", version)
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)
