"""The numbers of a plain MoE launch as vLLM and SGLang derive them: pure, shared by launching, compiling and tuning.

The two engines run one structure (two GEMMs, the activation apart) with these differences:

====================  =========================================  ===========================================
                      vLLM 0.33                                  SGLang 0.5.23
====================  =========================================  ===========================================
few pairs             ``M * topk * 4 <= E``: no sort, one pair   always sorted
                      a block, BLOCK_SIZE_M as it is
block-fp8             BLOCK_SIZE_K clamped to the scale block    not clamped: a larger one is refused here
depth                 always masked                              masked unless BLOCK_SIZE_K divides it
operands swapped      loaded transposed                          transposed after loading
scales of a block     one a column                               one a tile while BLOCK_SIZE_N <= n
tensor descriptors    none                                       up: B; down: A (then in sorted order) and B
tiles                 one for both GEMMs                         two that share BLOCK_SIZE_M
====================  =========================================  ===========================================
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from ...contracts.moe_quant import MoeQuant
from ...contracts.moe_shape import MoeShape
from ...device import Capability, capabilities
from ...tuning_configs.tile import Tile
from . import moe_rules

Structure = Literal["vllm", "sglang"]
STRUCTURES: tuple[Structure, ...] = ("vllm", "sglang")

FP8 = capabilities("8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1")
"""Capabilities with conversions to and from e4m3 in hardware, which Triton asks for."""

SWAPS = capabilities("9.0")
SWAP_BELOW_M, SWAP_FROM_N = 64, 64


def direct(structure: str, shape: MoeShape, m: int) -> bool:
    """Whether a call with ``m`` tokens skips the sort: one pair a block."""
    return structure == "vllm" and moe_rules.direct(shape, m)


def row_blocks(structure: str, shape: MoeShape, m: int, block_m: int, *, direct: bool = False) -> int:
    """Row blocks of either GEMM's grid: what the engine launches, the dead ones behind the last live block included."""
    pairs = m * shape.topk
    return pairs if direct else -(-padded_rows(structure, shape.E, pairs, block_m) // block_m)


def padded_rows(structure: str, experts: int, pairs: int, block_m: int) -> int:
    """Length of the engine's array of sorted pair ids."""
    if structure == "sglang":
        most = pairs * block_m if pairs < experts + 1 else pairs + (experts + 1) * (block_m - 1)
        return -(-most // 4) * 4
    return min(pairs * block_m, pairs + experts * (block_m - 1))


def swaps(quant: MoeQuant, tile: Tile, capability: Capability | None) -> bool:
    """Whether the operands change places, so that few rows still fill a wgmma (fp8 on 9.0)."""
    few_rows = tile.block_m < SWAP_BELOW_M and tile.block_n >= SWAP_FROM_N
    return quant.fp8 and capability in SWAPS and few_rows


def as_run(structure: str, quant: MoeQuant, tile: Tile) -> Tile:
    """The tile whose kernel runs: vLLM clamps BLOCK_SIZE_K of block-fp8 and knows no tensor descriptors."""
    if structure == "vllm":
        return replace(tile, block_k=quant.clamped_k(tile.block_k), use_tma=False)
    return tile


def refusal(
    structure: str, shape: MoeShape, quant: MoeQuant, side: str, tile: Tile, capability: Capability | None
) -> str | None:
    """Why this tile cannot run or would compute something else there, or None."""
    if quant.fp8 and capability is not None and capability not in FP8:
        return f"e4m3 needs {', '.join(str(c) for c in sorted(FP8))}; this is {capability}"
    why = quant.refusal(shape)
    if why is not None:
        return why
    if structure == "sglang" and quant.block_shape is not None:
        n, k = quant.block_shape
        if k % tile.block_k:
            return (
                f"SGLang does not clamp BLOCK_SIZE_K={tile.block_k}, and one step must lie within a scale's {k} columns"
            )
        if tile.block_n <= n and n % tile.block_n:
            return f"BLOCK_SIZE_N={tile.block_n} does not divide the scale block's {n} rows"
    if tile.use_tma and structure == "sglang":
        return _tma_refusal(shape, quant, side, tile, capability)
    return None


def _tma_refusal(shape: MoeShape, quant: MoeQuant, side: str, tile: Tile, capability: Capability | None) -> str | None:
    _, depth = shape.gemm(side)
    if capability is not None and capability not in moe_rules.TMA:
        return "no tensor copy engine on this capability"
    a_bytes, b_bytes = operand_bytes(shape, quant)
    if depth * b_bytes % 16 or (side == "down" and depth * a_bytes % 16):
        return f"rows of {depth} elements are no multiple of 16 bytes"
    if max(tile.block_n, tile.block_k, tile.block_m if side == "down" else 0) > 256:
        return "a descriptor's box holds at most 256 elements a side"
    if side == "down" and quant.quantizes_activations and quant.per_channel:
        return "rows in sorted order need scales a row in that order, which the kernel does not read"
    return None


def operand_bytes(shape: MoeShape, quant: MoeQuant) -> tuple[int, int]:
    """Bytes of one element of A and of B."""
    wide = shape.element_bytes
    a = quant.element_bytes_a if quant.quantizes_activations else wide
    return a, wide if quant.dtype is None else quant.element_bytes_b
