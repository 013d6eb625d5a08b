"""fused_moe through trtllm-gen kernels, by FlashInfer's ``*_routed_moe`` functions: routing comes from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .fp8_gemm import quantize_block
from .layouts import EPILOGUE_TILE_M, flashinfer, inner_size, is_gated, scalar, up_first
from .moe import Sizes, activation_type, refuse, routing
from .quantize import fp4_quantize

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 16
_UNUSED_ROUTING = 1  # any method: the ids are given


class TrtllmMoe(NamedTuple):
    """Weights shuffled for trtllm-gen. ``scales`` are fp32 [E]: of the inner output, of the gate, of the output."""

    w1: Tensor
    w2: Tensor
    sizes: Sizes
    w1_scale: Tensor | None = None
    w2_scale: Tensor | None = None
    scales: tuple[Tensor, ...] = ()
    x_global: Tensor | None = None


def prepare_bf16(device: object = None, *, w1: Tensor, w2: Tensor) -> TrtllmMoe:
    """w1 [E, 2N or N, K], w2 [E, K, N] bf16 -> rows shuffled, K in blocks of 128 bytes."""
    api, gated, sizes = flashinfer("fused_moe"), is_gated(w1, w2), _sizes(w1, w2)
    ready = flashinfer("fused_moe.prepare").prepare_trtllm_bf16_weights(
        up_first(w1) if gated else w1,
        w2,
        num_local_experts=sizes.experts,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.inner,
        activation=api.SwiGLU() if gated else api.ReLU2(),
    )
    return TrtllmMoe(ready["gemm1_weights"], ready["gemm2_weights"], sizes)


def prepare_fp8_block(
    device: object = None, *, w1: Tensor, w2: Tensor, w1_scale: Tensor, w2_scale: Tensor
) -> TrtllmMoe:
    """e4m3 weights with fp32 scales [E, rows/128, columns/128]; these kernels read rows as they are."""
    import torch

    gated = is_gated(w1, w2)
    one, two = w1_scale.to(torch.float32), w2_scale.to(torch.float32).contiguous()
    return TrtllmMoe(
        up_first(w1) if gated else w1.contiguous(),
        w2.contiguous(),
        _sizes(w1, w2),
        up_first(one) if gated else one.contiguous(),
        two,
    )


def prepare_nvfp4(
    device: object = None, *, w1: Tensor, w2: Tensor, w1_scale: Tensor, w2_scale: Tensor,
    w1_global_scale: Tensor, w2_global_scale: Tensor, a1_scale: Tensor, a2_scale: Tensor,
) -> TrtllmMoe:  # fmt: skip
    """Packed u8 [E, rows, columns/2], e4m3 scales [E, rows, columns/16], global scales [E], inputs' scales [1]."""
    import torch

    gated = is_gated(w1, w2)
    up_rows, up_scales = (up_first(w1), up_first(w1_scale)) if gated else (w1.contiguous(), w1_scale.contiguous())
    x_scale, inner_scale = scalar(a1_scale.max(), w1), scalar(a2_scale.max(), w1)
    up = w1_global_scale.to(torch.float32).reshape(-1) * x_scale
    down = w2_global_scale.to(torch.float32).reshape(-1) * inner_scale
    inner = up / inner_scale if gated else torch.ones_like(up) / inner_scale
    return TrtllmMoe(
        _shuffle(up_rows, gated, first=True),
        _shuffle(w2.contiguous(), gated, first=False),
        _sizes(w1, w2),
        _shuffle(up_scales, gated, first=True, scales=True),
        _shuffle(w2_scale.contiguous(), gated, first=False, scales=True),
        (inner.contiguous(), up.contiguous(), down.contiguous()),
        1.0 / x_scale,
    )


def _shuffle(rows: Tensor, gated: bool, *, first: bool, scales: bool = False) -> Tensor:
    """Permute each expert's rows for the epilogue; scales go into blocks of 128 x 4 after that."""
    import torch

    core = flashinfer("fused_moe.core")
    cache: dict[Any, Any] = {}
    data = rows.view(torch.uint8)
    group = {"num_elts_per_sf": GROUP} if scales else {}
    out = torch.empty_like(data)
    for expert in range(data.shape[0]):
        if first:
            order = core._maybe_get_cached_w3_w1_permute_indices(
                cache, data[expert], EPILOGUE_TILE_M, is_gated_act_gemm=gated, **group
            )
        else:
            order = core.get_w2_permute_indices_with_cache(
                cache, data[expert], EPILOGUE_TILE_M, is_gated_act_gemm=gated, **group
            )
        permuted = data[expert][order.to(data.device)].contiguous()
        out[expert] = flashinfer().block_scale_interleave(permuted).reshape(permuted.shape) if scales else permuted
    return out.view(rows.dtype)


def _sizes(w1: Tensor, w2: Tensor) -> Sizes:
    return Sizes(int(w1.shape[0]), inner_size(w2), int(w2.shape[1]))


def _common(weights: TrtllmMoe, topk_ids: Tensor, topk_weights: Tensor, factor: float) -> dict[str, Any]:
    sizes = weights.sizes
    return {
        "topk_ids": routing(topk_weights, topk_ids, factor),
        "num_experts": sizes.experts,
        "top_k": topk_ids.shape[1],
        "n_group": None,
        "topk_group": None,
        "intermediate_size": sizes.inner,
        "local_expert_offset": 0,
        "local_num_experts": sizes.experts,
        "routed_scaling_factor": None,  # in the weights already
        "routing_method_type": _UNUSED_ROUTING,
    }


def _only(out: Any) -> Tensor:
    return out[0] if isinstance(out, (list, tuple)) else out


def run_bf16(
    x: Tensor,  # [M, K] bf16
    weights: TrtllmMoe,
    *,
    config: Any = None,
    topk_weights: Tensor,
    topk_ids: Tensor,
    activation: str = "silu",
    routed_scaling_factor: float = 1.0,
    apply_router_weight_on_input: bool = False,
    expert_map: Tensor | None = None,
) -> Tensor:
    """Return [M, K]."""
    refuse(expert_map, apply_router_weight_on_input)
    moe = flashinfer("fused_moe")
    out = moe.trtllm_bf16_routed_moe(
        **_common(weights, topk_ids, topk_weights, routed_scaling_factor),
        hidden_states=x.contiguous(),
        gemm1_weights=weights.w1,
        gemm2_weights=weights.w2,
        use_shuffled_weight=True,
        weight_layout=moe.WeightLayout.BlockMajorK,
        activation_type=int(activation_type(moe, activation)),
    )
    return _only(out)


def run_fp8_block(
    x: Tensor,  # [M, K] bf16
    weights: TrtllmMoe,
    *,
    config: Any = None,
    topk_weights: Tensor,
    topk_ids: Tensor,
    activation: str = "silu",
    routed_scaling_factor: float = 1.0,
    apply_router_weight_on_input: bool = False,
    expert_map: Tensor | None = None,
) -> Tensor:
    """Return [M, K]. x is quantized here, a scale for each row and 128 columns, handed over as [K/128, M]."""
    refuse(expert_map, apply_router_weight_on_input)
    moe = flashinfer("fused_moe")
    values, scales = quantize_block(x.contiguous(), None)
    out = moe.trtllm_fp8_block_scale_routed_moe(
        **_common(weights, topk_ids, topk_weights, routed_scaling_factor),
        routing_bias=None,
        hidden_states=values,
        hidden_states_scale=scales.t().contiguous(),
        gemm1_weights=weights.w1,
        gemm1_weights_scale=weights.w1_scale,
        gemm2_weights=weights.w2,
        gemm2_weights_scale=weights.w2_scale,
        use_shuffled_weight=False,
        weight_layout=moe.WeightLayout.MajorK,
        fp8_quantization_type=moe.Fp8QuantizationType.DeepSeekFp8,
        activation_type=int(activation_type(moe, activation)),
    )
    return _only(out)


def run_nvfp4(
    x: Tensor,  # [M, K] bf16
    weights: TrtllmMoe,
    *,
    config: Any = None,
    topk_weights: Tensor,
    topk_ids: Tensor,
    activation: str = "silu",
    routed_scaling_factor: float = 1.0,
    apply_router_weight_on_input: bool = False,
    expert_map: Tensor | None = None,
) -> Tensor:
    """Return [M, K]. x is quantized here; its block scales stay linear."""

    refuse(expert_map, apply_router_weight_on_input)
    moe = flashinfer("fused_moe")
    values, scales = fp4_quantize(x, weights.x_global, swizzled=False)
    inner, gate, output = weights.scales
    out = moe.trtllm_fp4_block_scale_routed_moe(
        **_common(weights, topk_ids, topk_weights, routed_scaling_factor),
        routing_bias=None,
        hidden_states=values,
        hidden_states_scale=scales.reshape(x.shape[0], -1),
        gemm1_weights=weights.w1,
        gemm1_weights_scale=weights.w1_scale,
        gemm1_bias=None,
        gemm1_alpha=None,
        gemm1_beta=None,
        gemm1_clamp_limit=None,
        gemm2_weights=weights.w2,
        gemm2_weights_scale=weights.w2_scale,
        gemm2_bias=None,
        output1_scale_scalar=inner,
        output1_scale_gate_scalar=gate,
        output2_scale_scalar=output,
        activation_type=int(activation_type(moe, activation)),
        hidden_states_scale_layout=flashinfer().SfLayout.layout_linear,
    )
    return _only(out)
