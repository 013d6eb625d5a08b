"""The numbers of a fused MoE launch that follow from its shape: pure, shared by launching, compiling and tuning."""

from __future__ import annotations

from dataclasses import dataclass

from ...contracts.moe_shape import MoeShape
from ...device import Capability, capabilities
from ...tuning_configs.tile import Tile

TMA = capabilities("9.0", "10.0", "10.3", "12.0", "12.1")
"""Capabilities whose copy engine takes tensor descriptors (Triton's ``tensordesc`` arguments)."""

DIRECT_BLOCK_M = 16

SORT_CHUNK = 1024
ONE_PROGRAM_PAIRS = 2048
MOST_SORT_PROGRAMS = 64


def direct(shape: MoeShape, m: int) -> bool:
    """Whether a call with ``m`` tokens skips the sort: one pair a GEMM block.

    Worth it while two pairs seldom meet at one expert; the bound is the one vLLM's Triton path uses.
    """
    return m * shape.topk * 4 <= shape.E


def most_blocks(pairs: int, experts: int, block_m: int) -> int:
    """Upper bound on GEMM row blocks, whatever the routing: every expert hit may leave one block part filled."""
    return min(pairs, (pairs + min(experts, pairs) * (block_m - 1)) // block_m)


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


@dataclass(frozen=True, slots=True)
class SortPlan:
    """How the pairs are dealt to programs: one program alone, or a count and a placement over several."""

    programs: int
    pairs_per_program: int
    experts_pow2: int

    @classmethod
    def of(cls, pairs: int, experts: int) -> SortPlan:
        # At least 32 bins: a histogram narrower than a warp does not lower.
        bins = max(32, next_power_of_2(experts))
        if pairs <= ONE_PROGRAM_PAIRS:
            return cls(1, pairs, bins)
        programs = min(MOST_SORT_PROGRAMS, -(-pairs // SORT_CHUNK))
        each = -(-pairs // programs)
        each = -(-each // SORT_CHUNK) * SORT_CHUNK
        return cls(-(-pairs // each), each, bins)


def tma_refusal(shape: MoeShape, tile: Tile, side: str, capability: Capability | None) -> str | None:
    """Why this tile cannot load through tensor descriptors here, or None if it can."""
    _, depth = shape.gemm(side)
    if capability not in TMA:
        return "no tensor copy engine on this capability"
    if depth * shape.element_bytes % 16:
        return f"rows of {depth} elements are no multiple of 16 bytes"
    rows = tile.block_n // (2 if shape.gated and side == "up" else 1)
    if max(rows, tile.block_k, tile.block_m) > 256:
        return "a descriptor's box holds at most 256 elements a side"
    return None
