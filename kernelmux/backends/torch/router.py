"""router_gemm and topk in torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...contracts.router_math import check_router_gemm, check_topk, router_gemm_reference, topk_reference


def router_gemm(x: Tensor, weights: Tensor, *, config: Any = None) -> Tensor:
    """x [M, K], weights [N, K] -> [M, N] fp32: cuBLAS with an fp32 output where torch offers it, else fp32 operands."""
    check_router_gemm(x, weights)
    if x.is_cuda and x.dtype != torch.float32 and x.shape[0] and _fp32_output(x.device):
        return torch.mm(x, weights.T, out_dtype=torch.float32)
    return router_gemm_reference(x, weights)


def _fp32_output(device: torch.device) -> bool:
    """Whether torch.mm of 16-bit operands can return fp32: torch 2.8 and later, on NVIDIA GPUs with bf16 units."""
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    return release >= (2, 8) and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def topk(
    x: Tensor,  # logits [M, E]
    weights: None = None,
    *,
    config: Any = None,
    topk: int,
    bias: Tensor | None = None,  # [E]
    scoring: str = "softmax",
    renormalize: bool = True,
    n_group: int = 1,
    topk_group: int = 1,
    routed_scaling_factor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return (weights fp32 [M, topk], ids int32 [M, topk]), as the contract's reference does."""
    check_topk(x, bias, topk=topk, scoring=scoring, n_group=n_group, topk_group=topk_group)
    return topk_reference(
        x, bias, topk=topk, scoring=scoring, renormalize=renormalize, n_group=n_group, topk_group=topk_group,
        routed_scaling_factor=routed_scaling_factor,
    )  # fmt: skip
