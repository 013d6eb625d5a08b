"""What the adapters of FlashInfer's fused MoE share. Its rows are [up; gate]; Hugging Face's are [gate; up]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

# FlashInfer's ActivationType by name (flashinfer/tllm_enums.py)
ACTIVATION_TYPES = {"silu": "Swiglu", "relu2": "Relu2"}


class Sizes(NamedTuple):
    """Of the experts held here: E, N (inner), K (hidden)."""

    experts: int
    inner: int
    hidden: int


def activation_type(enums: Any, activation: str) -> Any:
    """FlashInfer's word for the activation. Raises UsageError for one it is not given here."""
    try:
        return getattr(enums.ActivationType, ACTIVATION_TYPES[activation])
    except KeyError:
        known = ", ".join(ACTIVATION_TYPES)
        raise UsageError(f"FlashInfer's MoE is called with {known} here, not with {activation}.") from None


def refuse(expert_map: Any, apply_router_weight_on_input: bool) -> None:
    """Raises UsageError for what these adapters do not pass on."""
    if expert_map is not None:
        raise UsageError("an expert_map is not passed on to FlashInfer's MoE: use the triton or torch kernel with it.")
    if apply_router_weight_on_input:
        raise UsageError("FlashInfer's MoE weighs outputs, not inputs: use the triton or torch kernel.")


def routing(topk_weights: Tensor, topk_ids: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """(ids int32 [M, topk], weights fp32 [M, topk]): the scaling factor is applied here and nowhere else."""
    import torch

    weights = topk_weights.to(torch.float32)
    return topk_ids.to(torch.int32).contiguous(), (weights if factor == 1.0 else weights * factor).contiguous()
