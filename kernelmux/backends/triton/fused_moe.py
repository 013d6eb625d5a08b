"""fused_moe in Triton: sort, GEMM with the activation in its epilogue, GEMM with the router weight, reduction."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ...contracts.moe_shape import MoeShape
from ...tuning_configs.tile import Tile
from .moe_launch import gemm, reduce_pairs, sort_pairs
from .moe_rules import DIRECT_BLOCK_M, direct

if TYPE_CHECKING:
    from torch import Tensor

    from ...tuning_configs.table import MoeConfig


class MoeWeights(NamedTuple):
    """Weights as this kernel reads them: Hugging Face's own layout, last axis contiguous."""

    w1: Tensor  # [E, 2N, K] rows [gate; up], or [E, N, K]
    w2: Tensor  # [E, K, N]


def prepare(device: object = None, *, w1: Tensor, w2: Tensor) -> MoeWeights:
    """The identity for contiguous weights; a copy otherwise, since tensor descriptors need whole rows."""
    return MoeWeights(w1.contiguous(), w2.contiguous())


def run(
    x: Tensor,  # [M, K] bf16 or fp16
    weights: MoeWeights,
    *,
    config: MoeConfig,
    topk_weights: Tensor,  # [M, topk] fp32
    topk_ids: Tensor,  # [M, topk] int32 or int64
    activation: str = "silu",
    routed_scaling_factor: float = 1.0,
    apply_router_weight_on_input: bool = False,
    expert_map: Tensor | None = None,  # [experts of all ranks] -> local expert or -1
) -> Tensor:
    """Return [M, K]. Nothing here waits for the device, so a call can be captured in a CUDA graph."""
    import torch

    w1, w2 = weights
    shape = MoeShape(
        w1.shape[0], w2.shape[2], x.shape[1], topk_ids.shape[1], activation, str(x.dtype).removeprefix("torch.")
    )
    tokens = x.shape[0]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if tokens == 0:
        return out
    x = x if x.stride(1) == 1 else x.contiguous()
    topk_ids = topk_ids.contiguous()
    pair_weights = topk_weights.contiguous()
    if pair_weights.dtype != torch.float32:
        pair_weights = pair_weights.float()
    pairs = topk_ids.numel()
    up, down = config.up, config.down
    if direct(shape, tokens):
        blocks = None
        up, down = as_direct(up), as_direct(down)
        rows = pairs
    else:
        blocks = sort_pairs(topk_ids, shape.E, up.block_m, expert_map)
        rows = blocks.rows
    inner = torch.empty((rows, shape.N), dtype=x.dtype, device=x.device)
    pair_out = torch.empty((pairs, shape.K), dtype=x.dtype, device=x.device)
    gemm(
        shape, "up", up, x, w1, inner, pair_weights=pair_weights, topk_ids=topk_ids, expert_map=expert_map,
        blocks=blocks, weighted=apply_router_weight_on_input,
    )  # fmt: skip
    gemm(
        shape, "down", down, inner, w2, pair_out, pair_weights=pair_weights, topk_ids=topk_ids, expert_map=expert_map,
        blocks=blocks, weighted=not apply_router_weight_on_input,
    )  # fmt: skip
    reduce_pairs(pair_out, out, topk_ids, shape.E, expert_map, routed_scaling_factor)
    return out


def as_direct(tile: Tile) -> Tile:
    """The tile a direct launch runs: one live row a block, so the smallest block an MMA takes, loads by pointer."""
    if tile.block_m == DIRECT_BLOCK_M and not tile.use_tma:
        return tile
    return Tile(DIRECT_BLOCK_M, tile.block_n, tile.block_k, tile.group_m, tile.warps, tile.stages)
