"""fused_moe in torch: one pass over the experts that were hit, two matrix products each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...contracts.fused_moe_math import activate, check_arguments, local_experts


def run(
    x: Tensor,  # [M, K]
    weights: tuple[Tensor, Tensor],  # w1 [E, 2N or N, K], w2 [E, K, N]
    *,
    config: Any = None,
    topk_weights: Tensor,  # [M, topk] fp32
    topk_ids: Tensor,  # [M, topk] int32 or int64
    activation: str = "silu",
    routed_scaling_factor: float = 1.0,
    apply_router_weight_on_input: bool = False,
    expert_map: Tensor | None = None,
) -> Tensor:
    """Return [M, K] in x's dtype. Reads which experts were hit, so it waits for the device and cannot be captured.

    Matrix products in the operands' dtype, activation and weighting in fp32, the sum over topk in fp32.
    """
    w1, w2 = weights
    check_arguments(x, w1, w2, topk_weights, topk_ids, activation, expert_map)
    ids = local_experts(topk_ids, w1.shape[0], expert_map)
    router = topk_weights.float()
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in ids.unique().tolist():
        if expert < 0:
            continue
        token, slot = torch.where(ids == expert)
        weight = router[token, slot].unsqueeze(1)
        hidden = (x[token] @ w1[expert].T).float()
        if apply_router_weight_on_input:
            hidden = hidden * weight
        rows = (activate(hidden, activation).to(x.dtype) @ w2[expert].T).float()
        out.index_add_(0, token, rows if apply_router_weight_on_input else rows * weight)
    return (out * routed_scaling_factor).to(x.dtype)


def prepare(device: object = None, *, w1: Tensor, w2: Tensor) -> tuple[Tensor, Tensor]:
    """The identity: Hugging Face's layout."""
    return w1, w2
