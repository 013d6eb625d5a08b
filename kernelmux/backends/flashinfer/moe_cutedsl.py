"""fused_moe of NVFP4 experts through FlashInfer's CuTe DSL kernels, for both W4A4 and W4A16."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .layouts import flashinfer, is_gated, scalar, swizzle_128x4, up_first
from .moe import activation_type, refuse, routing
from .quantize import fp4_quantize

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 16
INTERLEAVE = 64  # rows of up and gate that alternate in w1


class CuteDslMoe(NamedTuple):
    """Packed weights, scales in the MMA's own view, and the factors of both GEMMs, fp32 [E]."""

    w1: Tensor
    w1_scale: Tensor
    w1_alpha: Tensor
    w2: Tensor
    w2_scale: Tensor
    w2_alpha: Tensor
    inner_global: Tensor | None  # 1 / a2_scale (W4A4)
    x_global: Tensor | None  # 1 / a1_scale (W4A4)


def prepare_w4a4(
    device: object = None, *, w1: Tensor, w2: Tensor, w1_scale: Tensor, w2_scale: Tensor,
    w1_global_scale: Tensor, w2_global_scale: Tensor, a1_scale: Tensor, a2_scale: Tensor,
) -> CuteDslMoe:  # fmt: skip
    """Packed u8 [E, rows, columns/2], e4m3 scales [E, rows, columns/16], global scales [E], inputs' scales [1]."""
    x_scale, inner_scale = scalar(a1_scale.max(), w1), scalar(a2_scale.max(), w1)
    return _prepare(w1, w2, w1_scale, w2_scale, w1_global_scale, w2_global_scale, x_scale, inner_scale)


def prepare_w4a16(
    device: object = None, *, w1: Tensor, w2: Tensor, w1_scale: Tensor, w2_scale: Tensor,
    w1_global_scale: Tensor, w2_global_scale: Tensor, a1_scale: Tensor | None = None, a2_scale: Tensor | None = None,
) -> CuteDslMoe:  # fmt: skip
    """The same; scales of inputs are read by nobody here."""
    return _prepare(w1, w2, w1_scale, w2_scale, w1_global_scale, w2_global_scale, None, None)


def _prepare(
    w1: Tensor, w2: Tensor, w1_scale: Tensor, w2_scale: Tensor, up: Tensor, down: Tensor,
    x_scale: Tensor | None, inner_scale: Tensor | None,
) -> CuteDslMoe:  # fmt: skip
    import torch

    rows, scales = w1.contiguous(), w1_scale.contiguous()
    if is_gated(w1, w2):
        rows, scales = interleave(up_first(w1)), interleave(up_first(w1_scale))
    up, down = up.to(torch.float32).reshape(-1), down.to(torch.float32).reshape(-1)
    return CuteDslMoe(
        rows,
        _mma_view(scales),
        (up if x_scale is None else up * x_scale).contiguous(),
        w2.contiguous(),
        _mma_view(w2_scale),
        (down if inner_scale is None else down * inner_scale).contiguous(),
        None if inner_scale is None else 1.0 / inner_scale,
        None if x_scale is None else 1.0 / x_scale,
    )


def interleave(rows: Tensor) -> Tensor:
    """[E, 2N, ...] rows [up; gate] -> 64 rows of up, 64 of gate, and so on."""
    experts, count, *rest = rows.shape
    split = rows.view(experts, 2, count // (2 * INTERLEAVE), INTERLEAVE, *rest)
    return split.transpose(1, 2).contiguous().view(rows.shape)


def _mma_view(scales: Tensor) -> Tensor:
    swizzled = swizzle_128x4(scales)
    experts, rows, columns = swizzled.shape
    utils = flashinfer("cute_dsl.utils")
    return utils.convert_sf_to_mma_layout(
        swizzled.reshape(experts * rows, columns), m=rows, k=columns * GROUP, num_groups=experts, sf_vec_size=GROUP
    )


def _run(
    x: Tensor, weights: CuteDslMoe, mode: str, topk_weights: Tensor, topk_ids: Tensor, activation: str, factor: float
) -> Tensor:

    moe = flashinfer("fused_moe")
    values, scales = x.contiguous(), None
    if weights.x_global is not None:
        values, flat = fp4_quantize(values, weights.x_global, swizzled=False)
        scales = flat.reshape(x.shape[0], -1, 1)
    ids, scaled = routing(topk_weights, topk_ids, factor)
    return moe.cute_dsl_fused_moe(
        x=values,
        x_sf=scales,
        token_selected_experts=ids,
        token_final_scales=scaled,
        w1_weight=weights.w1,
        w1_weight_sf=weights.w1_scale,
        w1_alpha=weights.w1_alpha,
        fc2_input_scale=weights.inner_global,
        w2_weight=weights.w2,
        w2_weight_sf=weights.w2_scale,
        w2_alpha=weights.w2_alpha,
        num_experts=weights.w1.shape[0],
        top_k=topk_ids.shape[1],
        output_dtype=x.dtype,
        activation_type=int(activation_type(moe, activation)),
        quant_mode=mode,
    )


def run_w4a4(
    x: Tensor,  # [M, K] bf16
    weights: CuteDslMoe,
    *,
    config: Any = None,
    topk_weights: Tensor,
    topk_ids: Tensor,
    activation: str = "silu",
    routed_scaling_factor: float = 1.0,
    apply_router_weight_on_input: bool = False,
    expert_map: Tensor | None = None,
) -> Tensor:
    """Return [M, K]; x is quantized here."""
    refuse(expert_map, apply_router_weight_on_input)
    return _run(x, weights, "w4a4", topk_weights, topk_ids, activation, routed_scaling_factor)


def run_w4a16(
    x: Tensor,  # [M, K] bf16
    weights: CuteDslMoe,
    *,
    config: Any = None,
    topk_weights: Tensor,
    topk_ids: Tensor,
    activation: str = "silu",
    routed_scaling_factor: float = 1.0,
    apply_router_weight_on_input: bool = False,
    expert_map: Tensor | None = None,
) -> Tensor:
    """Return [M, K]; x stays as it is."""
    refuse(expert_map, apply_router_weight_on_input)
    return _run(x, weights, "w4a16", topk_weights, topk_ids, activation, routed_scaling_factor)
