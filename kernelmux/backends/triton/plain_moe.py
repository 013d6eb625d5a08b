"""The plain fused MoE: quantize, sort, GEMM, activation, quantize, GEMM with the router weight, reduction.

What vLLM's and SGLang's Triton path computes, step for step. ``variant`` says whose GEMM kernel runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ...contracts.moe_shape import MoeShape
from ...device import Capability
from ...tuning_configs.tile import Tile
from . import plain_launch
from .moe_launch import Sorted, reduce_pairs, sort_pairs
from .moe_variant import MoeVariant

if TYPE_CHECKING:
    from torch import Tensor

    from ...tuning_configs.table import MoeConfig


class PlainWeights(NamedTuple):
    """Weights as stored, scales fp32 of `MoeQuant.scale_shape`; all contiguous."""

    w1: Tensor  # [E, 2N, K] rows [gate; up], or [E, N, K]
    w2: Tensor  # [E, K, N]
    w1_scale: Tensor | None = None
    w2_scale: Tensor | None = None
    a1_scale: Tensor | None = None  # [1]: static per-tensor schemes only
    a2_scale: Tensor | None = None


class Routes(NamedTuple):
    """One call's routing: what both GEMMs read. ``gemm`` are blocks in the form of the kernel that runs."""

    pair_weights: Tensor  # [M, topk] fp32
    topk_ids: Tensor  # [M, topk]
    sorted: Sorted | None  # None: no sort, one pair a block
    gemm: Sorted | None
    expert_map: Tensor | None = None


def arrange(
    variant: MoeVariant, shape: MoeShape, weights: Tensor, ids: Tensor, block_m: int, expert_map: Tensor | None = None
) -> Routes:
    """Sort one call's pairs into blocks of ``block_m``, or leave them where the structure does not sort."""
    if expert_map is None and variant.direct(shape, ids.shape[0]):
        return Routes(weights, ids, None, _unsorted(variant, ids, block_m))
    blocks = sort_pairs(ids, shape.E, block_m, expert_map)
    if variant.engine_path is None:
        plain_launch.pad(blocks, ids.numel())
        return Routes(weights, ids, blocks, blocks, expert_map)
    from . import engine_kernels

    return Routes(weights, ids, blocks, engine_kernels.align(variant.structure, ids, shape.E, block_m), expert_map)


def _unsorted(variant: MoeVariant, ids: Tensor, block_m: int) -> Sorted | None:
    """What vLLM's own kernel reads where it does not sort: the ids, and a length that no block passes."""
    if variant.engine_path is None:
        return None
    import torch

    ids = ids.view(-1)
    whole = torch.full((1,), ids.numel() * block_m, dtype=torch.int32, device=ids.device)
    return Sorted(ids, ids, whole, block_m, ids.numel())


def gemm(
    variant: MoeVariant, shape: MoeShape, side: str, tile: Tile, capability: Capability | None, routes: Routes,
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, c: Tensor, *,
    weighted: bool, sorted_inner: bool = False,
) -> None:  # fmt: skip
    """Run one GEMM into ``c``."""
    blocks, ids = routes.gemm, routes.topk_ids
    plain_launch.launch_of(
        variant, shape, side, tile, capability,
        plain_launch.Gemm(
            a, b, c, a_scale, b_scale, routes.pair_weights, ids,
            None if blocks is None else blocks.sorted_pairs, None if blocks is None else blocks.block_info,
            None if blocks is None else blocks.num_blocks, m=ids.shape[0], a_rows=a.shape[0], weighted=weighted,
            direct=routes.sorted is None, sorted_inner=sorted_inner,
        ),
    )()  # fmt: skip


def run(
    variant: MoeVariant,
    x: Tensor,  # [M, K] bf16 or fp16
    weights: PlainWeights,
    *,
    config: MoeConfig,
    topk_weights: Tensor,  # [M, topk]
    topk_ids: Tensor,  # [M, topk] int32 or int64
    activation: str = "silu",
    routed_scaling_factor: float = 1.0,
    expert_map: Tensor | None = None,
    capability: Capability | None = None,
    allocate: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Return [M, K]. Nothing here waits for the device.

    ``capability`` decides whether operands swap; by default it is the one of x's device. ``allocate`` makes the
    buffers between the steps (``torch.empty``'s arguments).
    """
    import torch

    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.shape[0] == 0:
        return out
    if capability is None and x.is_cuda:
        capability = Capability(*torch.cuda.get_device_capability(x.device))
    shape = MoeShape(
        weights.w1.shape[0], weights.w2.shape[2], x.shape[1], topk_ids.shape[1], activation,
        str(x.dtype).removeprefix("torch."),
    )  # fmt: skip
    pair_weights = topk_weights.contiguous().float()
    routes = arrange(variant, shape, pair_weights, topk_ids.contiguous(), config.up.block_m, expert_map)
    forward(
        variant, shape, x.contiguous(), weights, out, routes, config=config, capability=capability,
        scale=routed_scaling_factor, allocate=torch.empty if allocate is None else allocate,
    )  # fmt: skip
    return out


def forward(
    variant: MoeVariant,
    shape: MoeShape,
    x: Tensor,  # [M, K]
    weights: PlainWeights,
    out: Tensor,  # [M, K]
    routes: Routes,
    *,
    config: MoeConfig,
    capability: Capability | None,
    scale: float = 1.0,
    allocate: Callable[..., Tensor],
) -> None:
    """Everything after the sort, into ``out``."""
    quant, up, down, ids = variant.quant, config.up, config.down, routes.topk_ids
    sorted_inner = variant.structure == "sglang" and down.use_tma
    pairs = ids.numel()
    rows = pairs if routes.sorted is None or not sorted_inner else routes.sorted.rows

    a, a_scale = plain_launch.quantize(x, quant, weights.a1_scale) if quant.quantizes_activations else (x, None)
    hidden = allocate((rows, shape.up_n), dtype=x.dtype, device=x.device)
    gemm(
        variant, shape, "up", up, capability, routes, a, a_scale, weights.w1, weights.w1_scale, hidden,
        weighted=False, sorted_inner=sorted_inner,
    )  # fmt: skip
    a, a_scale = allocate((rows, shape.N), dtype=x.dtype, device=x.device), None
    plain_launch.activate(shape, hidden, a, ids, routes.expert_map, routes.sorted if sorted_inner else None)
    if quant.quantizes_activations:
        a, a_scale = plain_launch.quantize(a, quant, weights.a2_scale)
    pair_out = allocate((pairs, shape.K), dtype=x.dtype, device=x.device)
    gemm(
        variant, shape, "down", down, capability, routes, a, a_scale, weights.w2, weights.w2_scale, pair_out,
        weighted=True, sorted_inner=sorted_inner,
    )  # fmt: skip
    reduce_pairs(pair_out, out, ids, shape.E, routes.expert_map, scale)
