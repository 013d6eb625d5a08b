"""fused_moe of NVFP4, MXFP4 or FP8 experts through Marlin, weight-only. Its rows are [gate; up], as Hugging Face's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import UsageError
from .layer import activation_dtype, layer, utils, vllm

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 128
_EXPERTS = "vllm.model_executor.layers.fused_moe"
# vLLM's MoEActivation by name
_ACTIVATIONS = {"silu": "SILU", "gelu": "GELU", "gelu_tanh": "GELU_TANH", "relu2": "RELU2_NO_MUL"}


class MarlinMoe(NamedTuple):
    """Experts in Marlin's tiles; ``kind`` is the element type by vLLM's name."""

    w1: Tensor
    w2: Tensor
    w1_scale: Tensor
    w2_scale: Tensor
    w1_global: Tensor | None
    w2_global: Tensor | None
    kind: str


def prepare_nvfp4(
    device: Any = None,
    *,
    w1: Tensor,
    w2: Tensor,
    w1_scale: Tensor,
    w2_scale: Tensor,
    w1_global_scale: Tensor,
    w2_global_scale: Tensor,
    a1_scale: Tensor | None = None,
    a2_scale: Tensor | None = None,
) -> MarlinMoe:
    """Packed u8 [E, rows, columns/2], e4m3 scales [E, rows, columns/16], global scales [E]; no input scales."""
    import torch

    inner = 2 * w2.shape[2]
    made = layer(
        {},
        num_experts=w1.shape[0],
        hidden_size=w2.shape[1],
        intermediate_size_per_partition=inner,
        params_dtype=activation_dtype(device, w1),
    )
    one, one_scale, one_global, two, two_scale, two_global = utils(
        "marlin_utils_fp4"
    ).prepare_nvfp4_moe_layer_for_marlin(
        layer=made,
        w13=w1,
        w13_scale=w1_scale,
        w13_scale_2=w1_global_scale.to(torch.float32).reshape(-1),
        w2=w2,
        w2_scale=w2_scale,
        w2_scale_2=w2_global_scale.to(torch.float32).reshape(-1),
        is_act_and_mul=w1.shape[1] == 2 * inner,
    )
    return MarlinMoe(one, two, one_scale, two_scale, one_global, two_global, "float4_e2m1f")


def prepare_mxfp4(device: Any = None, *, w1: Tensor, w2: Tensor, w1_scale: Tensor, w2_scale: Tensor) -> MarlinMoe:
    """Packed u8 [E, rows, columns/2] with a gate, e8m0 scales (u8) [E, rows, columns/32]."""
    made = layer({}, params_dtype=activation_dtype(device, w1))
    one, two, one_scale, two_scale, _, _ = utils("marlin_utils_fp4").prepare_moe_mxfp4_layer_for_marlin(
        layer=made, w13=w1, w2=w2, w13_scale=w1_scale, w2_scale=w2_scale, w13_bias=None, w2_bias=None
    )
    return MarlinMoe(one, two, one_scale, two_scale, None, None, "float4_e2m1f")


def prepare_fp8(
    device: Any = None,
    *,
    w1: Tensor,
    w2: Tensor,
    w1_scale: Tensor,
    w2_scale: Tensor,
    a1_scale: Tensor | None = None,
    a2_scale: Tensor | None = None,
) -> MarlinMoe:
    """e4m3 weights with scales of a tensor [E], of channels [E, rows] or of blocks [E, rows/128, columns/128]."""
    blocks = w1_scale.dim() == 3 and w1_scale.shape[2] != 1
    made = layer(
        {},
        num_experts=w1.shape[0],
        hidden_size=w2.shape[1],
        intermediate_size_per_partition=w2.shape[2],
        orig_dtype=activation_dtype(device, w1),
        **({"weight_block_size": [BLOCK, BLOCK]} if blocks else {}),
    )
    one, two, one_scale, two_scale = utils("marlin_utils_fp8").prepare_fp8_moe_layer_for_marlin(
        layer=made, w13_weight=w1, w2_weight=w2, w13_weight_scale=w1_scale, w2_weight_scale=w2_scale
    )
    return MarlinMoe(one, two, one_scale, two_scale, None, None, "float8_e4m3fn")


def run(
    x: Tensor,  # [M, K] bf16, or fp16 on 7.5
    weights: MarlinMoe,
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
    import torch

    if expert_map is not None:
        raise UsageError("an expert_map is not passed on to Marlin here: use the triton or torch kernel with it.")
    scaled = topk_weights.to(torch.float32)
    if routed_scaling_factor != 1.0:
        scaled = scaled * routed_scaling_factor
    kinds = vllm("vllm.scalar_type").scalar_types
    return vllm(f"{_EXPERTS}.experts.marlin_moe").fused_marlin_moe(
        hidden_states=x.contiguous(),
        w1=weights.w1,
        w2=weights.w2,
        bias1=None,
        bias2=None,
        w1_scale=weights.w1_scale,
        w2_scale=weights.w2_scale,
        topk_weights=scaled.contiguous(),
        topk_ids=topk_ids,
        quant_type_id=getattr(kinds, weights.kind).id,
        apply_router_weight_on_input=apply_router_weight_on_input,
        activation=getattr(vllm(f"{_EXPERTS}.activation").MoEActivation, _ACTIVATIONS[activation]),
        global_scale1=weights.w1_global,
        global_scale2=weights.w2_global,
    )
