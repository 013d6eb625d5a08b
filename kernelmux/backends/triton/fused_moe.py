"""fused_moe in Triton: sort, GEMM with the activation in its epilogue, GEMM with the router weight, reduction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from ...contracts.fused_moe_math import check_arguments
from ...contracts.moe_shape import MoeShape
from ...errors import DeviceNotFound
from ...tuning_configs.tile import Tile
from . import jit_guard
from .moe_launch import gemm, reduce_pairs, sort_pairs
from .moe_rules import DIRECT_BLOCK_M, direct, most_blocks

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
    """Return [M, K]. Nothing here waits for the device, so a call can be captured in a CUDA graph.

    Raises BadShape for operands that do not fit each other, which the GPU would read beyond.
    """
    import torch

    w1, w2 = weights
    check_arguments(x, w1, w2, topk_weights, topk_ids, activation, expert_map)
    jit_guard.install()
    shape = MoeShape(
        w1.shape[0], w2.shape[2], x.shape[1], topk_ids.shape[1], activation, str(x.dtype).removeprefix("torch.")
    )
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.shape[0] == 0:
        return out
    inner = torch.empty((inner_rows(shape, x.shape[0], config.up), shape.N), dtype=x.dtype, device=x.device)
    pair_out = torch.empty((topk_ids.numel(), shape.K), dtype=x.dtype, device=x.device)
    pair_weights = topk_weights.contiguous()
    launch(
        shape, x if x.stride(1) == 1 else x.contiguous(), w1, w2, inner, pair_out, out, config=config,
        pair_weights=pair_weights if pair_weights.dtype == torch.float32 else pair_weights.float(),
        topk_ids=topk_ids.contiguous(), scale=routed_scaling_factor, weight_on_input=apply_router_weight_on_input,
        expert_map=expert_map,
    )  # fmt: skip
    return out


def inner_rows(shape: MoeShape, tokens: int, up: Tile) -> int:
    """Rows of the buffer between the two GEMMs: one a pair when direct, else whole blocks for any routing."""
    pairs = tokens * shape.topk
    return pairs if direct(shape, tokens) else most_blocks(pairs, shape.E, up.block_m) * up.block_m


def launch(
    shape: MoeShape,
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    inner: Tensor,  # [inner_rows, N]
    pair_out: Tensor,  # [M * topk, K]
    out: Tensor,  # [M, K]
    *,
    config: MoeConfig,
    pair_weights: Tensor,  # [M, topk] fp32
    topk_ids: Tensor,  # [M, topk]
    scale: float = 1.0,
    weight_on_input: bool = False,
    expert_map: Tensor | None = None,
) -> None:
    """The whole pipeline into buffers that the caller owns."""
    up, down = config.up, config.down
    blocks = None
    if direct(shape, x.shape[0]):
        up, down = as_direct(up), as_direct(down)
    else:
        blocks = sort_pairs(topk_ids, shape.E, up.block_m, expert_map)
    common = dict(pair_weights=pair_weights, topk_ids=topk_ids, expert_map=expert_map, blocks=blocks)
    gemm(shape, "up", up, x, w1, inner, weighted=weight_on_input, **common)
    gemm(shape, "down", down, inner, w2, pair_out, weighted=not weight_on_input, **common)
    reduce_pairs(pair_out, out, topk_ids, shape.E, expert_map, scale)


def as_direct(tile: Tile) -> Tile:
    """The tile a direct launch runs: one live row a block, so the smallest block an MMA takes, loads by pointer."""
    if tile.block_m == DIRECT_BLOCK_M and not tile.use_tma:
        return tile
    return Tile(DIRECT_BLOCK_M, tile.block_n, tile.block_k, tile.group_m, tile.warps, tile.stages)


def warmup(selection: Any, ms: Iterable[int]) -> None:
    """Run each of these token counts once on zeros, so that no later call with them compiles or loads a kernel.

    Each M has its own tile, and M itself is no compile-time constant: one call an M covers it. Calls with an
    ``expert_map`` or with the router weight on the input are variants of their own: warm them by one call each.
    Raises DeviceNotFound where torch sees no GPU.
    """
    import torch

    if not torch.cuda.is_available():
        raise DeviceNotFound(
            f"{selection.kernel} can be warmed only on a GPU, and torch sees none here. Warm it where it will run."
        )
    size = selection.problem.shape
    activation = selection.problem.activation or "silu"
    shape = MoeShape.from_axes(size, activation, selection.problem.dtype or "bfloat16")
    device = torch.device("cuda", selection.device.index or 0)
    dtype = getattr(torch, shape.dtype)
    weights = MoeWeights(
        torch.zeros(shape.E, shape.up_n, shape.K, dtype=dtype, device=device),
        torch.zeros(shape.E, shape.K, shape.N, dtype=dtype, device=device),
    )
    for m in ms:
        ids = torch.arange(m * shape.topk, device=device, dtype=torch.int32).remainder(shape.E).view(m, shape.topk)
        for topk_ids in (ids, ids.long()):
            run(
                torch.zeros(m, shape.K, dtype=dtype, device=device), weights, config=selection.config_at(m),
                topk_weights=torch.zeros(m, shape.topk, device=device), topk_ids=topk_ids, activation=activation,
            )  # fmt: skip
    torch.cuda.synchronize(device)
