"""fused_moe over quantized experts in torch: each expert that was hit is dequantized, x stays as it is.

The portable kernel of 8-bit and NVFP4 experts: any device, no speed. Activations are not quantized, also where the
scheme says they are (numerics of w8a16 and w4a16).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...contracts.fused_moe_math import activate, local_experts
from ...contracts.nvfp4_math import dequantize
from ...errors import BadShape

BLOCK = 128  # fp8_block: rows and columns that share a scale


class Side(NamedTuple):
    """One projection as stored: [E, rows, depth] e4m3 or int8, or [E, rows, depth/2] packed FP4, and its scales."""

    stored: Tensor
    scale: Tensor
    global_scale: Tensor | None

    def of(self, expert: int, dtype: torch.dtype) -> Tensor:
        """[rows, depth] of one expert, dequantized in fp32 and rounded once to dtype."""
        stored, scale = self.stored[expert], self.scale[expert]
        if stored.dtype == torch.uint8:
            factor = torch.ones((), device=stored.device) if self.global_scale is None else self.global_scale[expert]
            return dequantize(stored, scale.view(torch.float8_e4m3fn), factor.float().reshape(())).to(dtype)
        return (stored.float() * _spread(scale.float(), *stored.shape)).to(dtype)


class Experts(NamedTuple):
    """What ``run`` takes."""

    up: Side
    down: Side


def _spread(scale: Tensor, rows: int, depth: int) -> Tensor:
    """One expert's scales over [rows, depth]: one number, one a row, or one a block of 128 x 128."""
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.shape in ((rows,), (rows, 1)):
        return scale.reshape(rows, 1)
    if scale.shape == (-(-rows // BLOCK), -(-depth // BLOCK)):
        return scale.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :depth]
    raise BadShape(
        f"fused_moe: a scale of shape {tuple(scale.shape)} fits no expert of shape ({rows}, {depth}). Give one number, "
        f"one a row, or one a block of {BLOCK} x {BLOCK}."
    )


def prepare(
    device: object = None,
    *,
    w1: Tensor,  # [E, 2N or N, K] e4m3 or int8; [E, .., K/2] uint8 for NVFP4
    w2: Tensor,  # [E, K, N] or [E, K, N/2]
    w1_scale: Tensor,  # fp32 [E], [E, rows] or [E, rows/128, K/128]; e4m3 [E, rows, K/16] for NVFP4
    w2_scale: Tensor,
    w1_global_scale: Tensor | None = None,  # NVFP4: fp32 [E], the factor that dequantizes
    w2_global_scale: Tensor | None = None,
    a1_scale: Tensor | None = None,  # of inputs, which this kernel does not quantize
    a2_scale: Tensor | None = None,
) -> Experts:
    """The tensors as they are stored. Raises BadShape for scales of another number of experts."""
    for name, tensor in (("w2", w2), ("w1_scale", w1_scale), ("w2_scale", w2_scale)):
        if tensor.shape[:1] != w1.shape[:1]:
            raise BadShape(f"fused_moe: {name} is for {tuple(tensor.shape[:1])} experts, w1 for {w1.shape[0]}.")
    return Experts(Side(w1, w1_scale, _each(w1_global_scale, w1)), Side(w2, w2_scale, _each(w2_global_scale, w2)))


def _each(scale: Tensor | None, weight: Tensor) -> Tensor | None:
    return None if scale is None else scale.reshape(-1).expand(weight.shape[0])


def run(
    x: Tensor,  # [M, K]
    weights: Experts,
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

    Matrix products in x's dtype, activation and weighting in fp32, the sum over topk in fp32.
    """
    ids = local_experts(topk_ids, weights.up.stored.shape[0], expert_map)
    router = topk_weights.float()
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in ids.unique().tolist():
        if expert < 0:
            continue
        token, slot = torch.where(ids == expert)
        weight = router[token, slot].unsqueeze(1)
        hidden = (x[token] @ weights.up.of(expert, x.dtype).T).float()
        if apply_router_weight_on_input:
            hidden = hidden * weight
        rows = (activate(hidden, activation).to(x.dtype) @ weights.down.of(expert, x.dtype).T).float()
        out.index_add_(0, token, rows if apply_router_weight_on_input else rows * weight)
    return (out * routed_scaling_factor).to(x.dtype)
