"""Launches of the Triton fused MoE kernels. Arguments are built in one place, for launching and for compiling ahead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...contracts.moe_shape import MoeShape
from ...tuning_configs.tile import Tile
from . import moe_kernels as kernels
from .moe_rules import ONE_PROGRAM_PAIRS, SORT_CHUNK, SortPlan, most_blocks, next_power_of_2

if TYPE_CHECKING:
    from torch import Tensor


def _aligned(count: int) -> int:
    """Round up to 4 int32: every slice of a workspace starts at a multiple of 16 bytes, which Triton specialises on."""
    return -(-count // 4) * 4


@dataclass(frozen=True, slots=True)
class Sorted:
    """Pairs grouped by expert in blocks of ``block_m`` rows; all int32, on the device."""

    sorted_pairs: Tensor  # [most_blocks * block_m]
    block_info: Tensor  # [most_blocks] expert * 65536 + rows
    num_blocks: Tensor  # [1]
    block_m: int
    most_blocks: int

    @property
    def rows(self) -> int:
        return self.most_blocks * self.block_m


def sort_pairs(topk_ids: Tensor, experts: int, block_m: int, expert_map: Tensor | None = None) -> Sorted:
    """Group ``topk_ids`` [M, topk] by expert for blocks of ``block_m`` rows; no host sync, so it can be captured."""
    import torch

    pairs = topk_ids.numel()
    plan = SortPlan.of(pairs, experts)
    blocks = most_blocks(pairs, experts, block_m)
    table = plan.programs * plan.experts_pow2
    sizes = [blocks * block_m, blocks, 1, table, table if plan.programs > 1 else 0]
    ends = []
    total = 0
    for size in sizes:
        ends.append((total, total + size))
        total += _aligned(size)
    space = torch.empty(total, dtype=torch.int32, device=topk_ids.device)
    sorted_pairs, block_info, num_blocks, cursors, counts = (space[lo:hi] for lo, hi in ends)
    has_map = expert_map is not None
    where = expert_map if has_map else cursors
    chunk = min(SORT_CHUNK, max(32, next_power_of_2(pairs)))
    warps = 8 if max(chunk, plan.experts_pow2) >= 256 else 4
    common = dict(E_POW2=plan.experts_pow2, CHUNK=chunk, HAS_MAP=has_map, num_warps=warps)
    if plan.programs > 1:
        kernels.moe_count[(plan.programs,)](topk_ids, where, counts, pairs, plan.pairs_per_program, experts, **common)
    kernels.moe_place[(plan.programs,)](
        topk_ids, where, counts if plan.programs > 1 else cursors, cursors, sorted_pairs, block_info, num_blocks,
        pairs, plan.pairs_per_program, plan.programs, experts,
        PROGRAMS_POW2=next_power_of_2(plan.programs), BLOCK_M=block_m, ONE_PROGRAM=plan.programs == 1, **common,
    )  # fmt: skip
    return Sorted(sorted_pairs, block_info, num_blocks, block_m, blocks)


def gemm_arguments(
    shape: MoeShape,
    side: str,
    tile: Tile,
    *,
    a: Any,  # up: [M, K]; down: [rows, N]
    b: Any,  # up: w1 [E, 2N or N, K]; down: w2 [E, K, N]
    c: Any,  # up: [rows, N]; down: [pairs, K]
    pair_weights: Any,  # [pairs] fp32
    topk_ids: Any,
    expert_map: Any | None,
    sorted_pairs: Any,
    block_info: Any,
    num_blocks: Any,
    m_blocks: int,
    rows: int,
    strides: tuple[int, int, int, int],  # a rows, b experts, b rows, c rows; in elements
    weighted: bool,
    direct: bool,
) -> tuple[tuple[Any, ...], dict[str, Any], tuple[int]]:
    """Positional and keyword arguments and the grid of one ``moe_gemm`` launch."""
    columns, depth = shape.gemm(side)
    gated = shape.gated and side == "up"
    use_tma = tile.use_tma and not direct
    if use_tma:
        from triton.tools.tensor_descriptor import TensorDescriptor

        halves = 2 if gated else 1
        b = TensorDescriptor(
            b, [shape.E * halves, columns // halves, depth], [columns // halves * depth, depth, 1],
            [halves, tile.block_n // halves, tile.block_k],
        )  # fmt: skip
        if side == "down":
            a = TensorDescriptor(a, [rows, depth], [depth, 1], [tile.block_m, tile.block_k])
    args = (
        a, b, c, pair_weights,
        # A sorted launch reads neither ids nor map; one int32 pointer stands in, so that no variant hangs on them.
        topk_ids if direct else sorted_pairs, expert_map if direct and expert_map is not None else sorted_pairs,
        sorted_pairs, block_info, num_blocks,
        m_blocks, shape.E, columns, depth, *strides,
    )  # fmt: skip
    kwargs = dict(
        TOPK=shape.topk, SIDE=side, ACTIVATION=shape.activation if side == "up" else "none", GATED=gated,
        WEIGHTED=weighted, DIRECT=direct, HAS_MAP=direct and expert_map is not None,
        EVEN_DEPTH=depth % tile.block_k == 0, USE_TMA=use_tma,
        BLOCK_SIZE_M=tile.block_m, BLOCK_SIZE_N=tile.block_n, BLOCK_SIZE_K=tile.block_k, GROUP_SIZE_M=tile.group_m,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return args, kwargs, (m_blocks * -(-columns // tile.block_n),)


def gemm(
    shape: MoeShape, side: str, tile: Tile, a: Tensor, b: Tensor, c: Tensor, *, pair_weights: Tensor,
    topk_ids: Tensor, expert_map: Tensor | None, blocks: Sorted | None, weighted: bool,
) -> None:  # fmt: skip
    """Run one GEMM into ``c``. ``blocks`` None: direct, one pair a block."""
    direct = blocks is None
    stand_in = topk_ids if blocks is None else blocks.sorted_pairs
    args, kwargs, grid = gemm_arguments(
        shape, side, tile, a=a, b=b, c=c, pair_weights=pair_weights, topk_ids=topk_ids, expert_map=expert_map,
        sorted_pairs=stand_in,
        block_info=stand_in if blocks is None else blocks.block_info,
        num_blocks=stand_in if blocks is None else blocks.num_blocks,
        m_blocks=topk_ids.numel() if blocks is None else blocks.most_blocks,
        rows=a.shape[0], strides=(a.stride(0), b.stride(0), b.stride(1), c.stride(0)),
        weighted=weighted, direct=direct,
    )  # fmt: skip
    kernels.moe_gemm[grid](*args, **kwargs)


def reduce_pairs(
    pair_out: Tensor, out: Tensor, topk_ids: Tensor, experts: int, expert_map: Tensor | None, scale: float
) -> None:
    """out [M, K] = scale * the sum over topk of pair_out [M * topk, K], in fp32."""
    tokens, topk = topk_ids.shape
    width = out.shape[1]
    block = min(1024 if tokens >= 64 else 256, next_power_of_2(width))
    kernels.moe_reduce[(tokens, -(-width // block))](
        pair_out, out, topk_ids, topk_ids if expert_map is None else expert_map, scale, experts, width,
        pair_out.stride(0), out.stride(0),
        TOPK=topk, HAS_MAP=expert_map is not None, BLOCK=block, num_warps=max(1, block // 256),
    )  # fmt: skip


__all__ = ["ONE_PROGRAM_PAIRS", "Sorted", "gemm", "gemm_arguments", "reduce_pairs", "sort_pairs"]
