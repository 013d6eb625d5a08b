"""fused_moe through FlashInfer's cutlass_fused_moe: one function, a list of scales for each way to quantize."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .fp8_gemm import quantize_tensor
from .layouts import flashinfer, is_gated, scalar, swizzle_128x4, up_first
from .moe import activation_type, refuse, routing

if TYPE_CHECKING:
    from torch import Tensor


class CutlassMoe(NamedTuple):
    """Weights [up; gate] and the scales cutlass_fused_moe wants for them, in its order."""

    w1: Tensor
    w2: Tensor
    scales: tuple[Tensor, ...] = ()
    block_fp8: bool = False
    x_scale: Tensor | None = None  # x is quantized with it before the call


def prepare_bf16(device: object = None, *, w1: Tensor, w2: Tensor) -> CutlassMoe:
    """w1 [E, 2N or N, K], w2 [E, K, N], 16 bits."""
    return CutlassMoe(_rows(w1, w2, w1), w2.contiguous())


def prepare_fp8_tensor(
    device: object = None,
    *,
    w1: Tensor,
    w2: Tensor,
    w1_scale: Tensor,
    w2_scale: Tensor,
    a1_scale: Tensor,
    a2_scale: Tensor,
) -> CutlassMoe:
    """e4m3 weights with a scale an expert [E], and static scales of both inputs."""
    import torch

    x_scale, inner_scale = scalar(a1_scale.max(), w1), scalar(a2_scale.max(), w1)
    scales = (
        (w1_scale.to(torch.float32).reshape(-1) * x_scale).contiguous(),
        (1.0 / inner_scale).reshape(()),
        (w2_scale.to(torch.float32).reshape(-1) * inner_scale).contiguous(),
        x_scale.reshape(()),
    )
    return CutlassMoe(_rows(w1, w2, w1), w2.contiguous(), scales, x_scale=x_scale)


def prepare_fp8_block(
    device: object = None, *, w1: Tensor, w2: Tensor, w1_scale: Tensor, w2_scale: Tensor
) -> CutlassMoe:
    """e4m3 weights with fp32 scales [E, rows/128, columns/128]."""
    import torch

    scales = (_rows(w1, w2, w1_scale.to(torch.float32)), w2_scale.to(torch.float32).contiguous())
    return CutlassMoe(_rows(w1, w2, w1), w2.contiguous(), scales, block_fp8=True)


def prepare_nvfp4(
    device: object = None, *, w1: Tensor, w2: Tensor, w1_scale: Tensor, w2_scale: Tensor,
    w1_global_scale: Tensor, w2_global_scale: Tensor, a1_scale: Tensor, a2_scale: Tensor,
) -> CutlassMoe:  # fmt: skip
    """Packed u8 [E, rows, columns/2], e4m3 scales [E, rows, columns/16], global scales [E], inputs' scales [1]."""
    import torch

    x_scale, inner_scale = scalar(a1_scale.max(), w1), scalar(a2_scale.max(), w1)
    up, down = w1_global_scale.to(torch.float32).reshape(-1), w2_global_scale.to(torch.float32).reshape(-1)
    scales = (
        (1.0 / x_scale).reshape(()),
        swizzle_128x4(_rows(w1, w2, w1_scale)).view(torch.int32),
        (up * x_scale).contiguous(),
        (1.0 / inner_scale).reshape(()),
        swizzle_128x4(w2_scale).view(torch.int32),
        (down * inner_scale).contiguous(),
    )
    rows = _rows(w1, w2, w1)
    return CutlassMoe(rows.view(torch.long), w2.contiguous().view(torch.long), scales)


def _rows(w1: Tensor, w2: Tensor, of: Tensor) -> Tensor:
    return up_first(of) if is_gated(w1, w2) else of.contiguous()


def run(
    x: Tensor,  # [M, K] bf16 or fp16
    weights: CutlassMoe,
    *,
    config: Any = None,
    topk_weights: Tensor,
    topk_ids: Tensor,
    activation: str = "silu",
    routed_scaling_factor: float = 1.0,
    apply_router_weight_on_input: bool = False,
    expert_map: Tensor | None = None,
    deterministic: bool = False,
) -> Tensor:
    """Return [M, K]. The fused finalize adds up with atomics; ``deterministic`` takes the separate one."""
    refuse(expert_map, apply_router_weight_on_input)
    ids, scaled = routing(topk_weights, topk_ids, routed_scaling_factor)
    rows = x.contiguous() if weights.x_scale is None else quantize_tensor(x.contiguous(), weights.x_scale)
    moe = flashinfer("fused_moe")
    out = moe.cutlass_fused_moe(
        rows,
        ids,
        scaled,
        weights.w1,
        weights.w2,
        x.dtype,
        quant_scales=list(weights.scales),
        use_deepseek_fp8_block_scale=weights.block_fp8,
        activation_type=activation_type(moe, activation),
        use_fused_finalize=not deterministic,
    )
    return out[0] if isinstance(out, (list, tuple)) else out
