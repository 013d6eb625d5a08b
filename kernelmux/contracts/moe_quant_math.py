"""Quantized fused MoE in torch: quantizing and dequantizing, and the fp32 reference of each scheme.

Imported only where torch is about to be used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .fused_moe_math import activate, local_experts, reference
from .moe_quant import MoeQuant

FP8_MOST, INT8_MOST = 448.0, 127.0
LEAST = 1e-10
"""The least |x| a scale is made from, so that a row of zeros divides by no zero (vLLM's and SGLang's value)."""


def storage(quant: MoeQuant) -> torch.dtype | None:
    """The torch dtype of quantized weights; None for unquantized ones."""
    return None if quant.dtype is None else torch.float8_e4m3fn if quant.fp8 else torch.int8


def most(quant: MoeQuant) -> float:
    """The largest magnitude of a stored value."""
    return FP8_MOST if quant.fp8 else INT8_MOST


def _store(values: Tensor, quant: MoeQuant) -> Tensor:
    """fp32 values already divided by their scale, in the stored type: saturating, integers half away from zero."""
    values = values.clamp(-most(quant), most(quant))
    if not quant.fp8:
        values = values.sign() * (values.abs() + 0.5).floor()
    dtype = storage(quant)
    assert dtype is not None
    return values.to(dtype)


def quantize_weight(weight: Tensor, quant: MoeQuant) -> tuple[Tensor, Tensor]:
    """(stored [E, rows, depth], fp32 scales of `MoeQuant.scale_shape`) of a weight [E, rows, depth]."""
    experts, rows, depth = weight.shape
    shape = quant.scale_shape(experts, rows, depth)
    if shape is None:
        raise ValueError("unquantized weights have no scales")
    scale = torch.empty(shape, dtype=torch.float32, device=weight.device)
    stored = torch.empty(weight.shape, dtype=storage(quant), device=weight.device)
    for expert in range(experts):
        values = weight[expert].float()
        if quant.block_shape is not None:
            n, k = quant.block_shape
            padded = torch.zeros(shape[1] * n, shape[2] * k, device=weight.device)
            padded[:rows, :depth] = values.abs()
            largest = padded.view(shape[1], n, shape[2], k).amax(dim=(1, 3))
        elif quant.per_channel:
            largest = values.abs().amax(dim=1)
        else:
            largest = values.abs().amax()
        scale[expert] = largest.clamp_min(LEAST) / most(quant)
        stored[expert] = _store(values / spread(scale[expert], quant, rows, depth), quant)
    return stored, scale


def spread(scale: Tensor, quant: MoeQuant, rows: int, depth: int) -> Tensor:
    """One expert's scales, broadcastable over [rows, depth]."""
    if quant.block_shape is not None:
        n, k = quant.block_shape
        return scale.repeat_interleave(n, dim=0)[:rows].repeat_interleave(k, dim=1)[:, :depth]
    return scale[:, None] if quant.per_channel else scale


def dequantize_expert(stored: Tensor, scale: Tensor | None, quant: MoeQuant) -> Tensor:
    """fp32 weight [rows, depth] of one expert."""
    values = stored.float()
    return values if scale is None else values * spread(scale, quant, *values.shape)


def quantize_activations(x: Tensor, quant: MoeQuant, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(stored [rows, depth], fp32 scales): [1] per tensor, [rows, 1] per channel, [rows, depth / k] per block.

    ``given`` [1] is the static scale of a per-tensor scheme; without it the scale comes from x.
    """
    values = x.float()
    if quant.block_shape is not None:
        k = quant.block_shape[1]
        groups = values.view(values.shape[0], -1, k)
        scale = groups.abs().amax(dim=2).clamp_min(LEAST) / most(quant)
        return _store(groups / scale[:, :, None], quant).view(values.shape), scale
    if quant.per_channel:
        scale = values.abs().amax(dim=1, keepdim=True).clamp_min(LEAST) / most(quant)
    else:
        scale = (values.abs().amax().clamp_min(LEAST) / most(quant)).view(1) if given is None else given.view(1)
    return _store(values / scale, quant), scale


def dequantize_activations(stored: Tensor, scale: Tensor, quant: MoeQuant) -> Tensor:
    """fp32 [rows, depth]."""
    values = stored.float()
    return values * (scale if quant.block_shape is None else scale.repeat_interleave(quant.block_shape[1], dim=1))


def reference_quantized(
    x: Tensor,  # [M, K]
    w1: Tensor,  # [E, 2N or N, K] as stored
    w2: Tensor,  # [E, K, N] as stored
    topk_weights: Tensor,
    topk_ids: Tensor,
    quant: MoeQuant,
    *,
    w1_scale: Tensor | None = None,
    w2_scale: Tensor | None = None,
    a1_scale: Tensor | None = None,  # [1], static per-tensor schemes only
    a2_scale: Tensor | None = None,
    activation: str = "silu",
    expert_map: Tensor | None = None,
) -> Tensor:
    """Return [M, K] fp32: weights dequantized, both products in fp32.

    Where a scheme quantizes activations, x and the inner rows go through that quantization (it is part of what the
    scheme means), and the inner rows are first rounded to x's dtype, once after the product and once after the
    activation, as two GEMMs with an activation between them hand them on.
    """
    if quant.dtype is None:
        return reference(x, w1, w2, topk_weights, topk_ids, activation, expert_map=expert_map)
    ids, weights = local_experts(topk_ids, w1.shape[0], expert_map), topk_weights.float()
    rows = x.float()
    if quant.quantizes_activations:
        rows = dequantize_activations(*quantize_activations(x, quant, a1_scale), quant)
    here = [expert for expert in ids.unique().tolist() if expert >= 0]
    flat = ids.flatten()
    inner = torch.zeros(flat.numel(), w2.shape[2], dtype=torch.float32, device=x.device)
    for expert in here:
        pairs = torch.where(flat == expert)[0]
        weight = dequantize_expert(w1[expert], None if w1_scale is None else w1_scale[expert], quant)
        hidden = rows[pairs // ids.shape[1]] @ weight.T
        if quant.quantizes_activations:
            hidden = activate(hidden.to(x.dtype).float(), activation).to(x.dtype).float()
        else:
            hidden = activate(hidden, activation)
        inner[pairs] = hidden
    if quant.quantizes_activations:
        inner = dequantize_activations(*quantize_activations(inner, quant, a2_scale), quant)
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in here:
        pairs = torch.where(flat == expert)[0]
        weight = dequantize_expert(w2[expert], None if w2_scale is None else w2_scale[expert], quant)
        out.index_add_(0, pairs // ids.shape[1], inner[pairs] @ weight.T * weights.flatten()[pairs].unsqueeze(1))
    return out
