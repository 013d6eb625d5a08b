"""router_gemm and DeepSeek-V3's topk through FlashInfer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import UsageError
from .layouts import flashinfer

if TYPE_CHECKING:
    from torch import Tensor

# (hidden size, experts) -> the function whose output is fp32
_FEW_TOKENS = {
    (7168, 256): "mm_M1_16_K7168_N256",
    (7168, 384): "mm_M1_16_K7168_N384",
    (7168, 896): "mm_M1_16_K7168_N896",
    (6144, 256): "mm_M1_16_K6144_N256",
}


def run_cublas(x: Tensor, weights: Tensor, *, config: Any = None) -> Tensor:
    """x [M, K] bf16, weights [N, K] bf16 -> fp32 [M, N]."""
    import torch

    gemm = flashinfer("gemm")
    out = gemm.mm_bf16(x.contiguous(), weights.contiguous().T, out_dtype=torch.float32, backend="cublaslt")
    return out


def run_few_tokens(x: Tensor, weights: Tensor, *, config: Any = None) -> Tensor:
    """The same for 1 to 16 tokens and the sizes of DeepSeek-V3 and its kin."""
    import torch

    (tokens, hidden), experts = x.shape, weights.shape[0]
    name = _FEW_TOKENS.get((hidden, experts))
    if name is None or not 1 <= tokens <= 16:
        raise UsageError(f"no kernel for M={tokens}, K={hidden}, N={experts}: select again for this shape.")
    out = torch.empty(tokens, experts, dtype=torch.float32, device=x.device)
    getattr(flashinfer("gemm"), name)(x.contiguous(), weights.contiguous().T, out)
    return out


def topk_deepseek(
    x: Tensor,  # logits [M, E]
    weights: None = None,
    *,
    config: Any = None,
    bias: Tensor | None = None,
    topk: int,
    scoring: str = "softmax",
    renormalize: bool = True,
    n_group: int = 1,
    topk_group: int = 1,
    routed_scaling_factor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(weights fp32 [M, topk], ids int32 [M, topk]). Raises UsageError for another routing than DeepSeek-V3's."""
    import torch

    if scoring != "sigmoid" or not renormalize or bias is None:
        raise UsageError(
            "fused_topk_deepseek routes by sigmoid scores with a bias, renormalized; "
            f"this call has scoring {scoring}, renormalize={renormalize}, {'no ' if bias is None else 'a '}bias."
        )
    logits = x.float().contiguous()
    values = torch.empty(*logits.shape[:-1], topk, dtype=torch.float32, device=x.device)
    ids = torch.empty(*logits.shape[:-1], topk, dtype=torch.int32, device=x.device)
    flashinfer("fused_moe").fused_topk_deepseek(
        logits, bias.float().contiguous(), n_group, topk_group, topk, routed_scaling_factor, values, ids
    )
    return values, ids
