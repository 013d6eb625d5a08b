"""A fused MoE layer to check a kernel on: all its experts, its sizes scaled down, weights in any scheme.

Imported only where torch is about to be used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..contracts.moe_shape import GATED
from ..policies.selection import Selection, is_weight_only
from .judge import Limits
from .subject import LARGEST_X, ODD_FLOOR, QUANTIZED_FLOOR, Subject, as_tuple, drawing, global_scale, limits_of

MOST = 48 * 2**20  # elements of all weights: 200 MB in fp32 while they are made
_LARGEST_INNER = 2048.0  # of the activated inner rows, for their static scale
_W4A4_MOE = Limits(0.12, 0.0, QUANTIZED_FLOOR)  # two roundings of inputs to FP4: 9% each, added as squares
_W4A16_MOE = Limits(2e-2, 0.0, ODD_FLOOR)  # weights of any width, inputs as they are


def expert_caps(sizes: Mapping[str, int]) -> dict[str, int]:
    """The largest N and K for this many experts: what a kernel does with them (how it sorts, whom it visits) stays."""
    inner, hidden = 256, 512
    while 3 * min(sizes["E"], 512) * inner * hidden > MOST and inner > 64:
        inner, hidden = (inner, hidden // 2) if hidden > inner else (inner // 2, hidden)
    return {"E": 512, "topk": 64, "N": inner, "K": hidden}


def fused_moe(selection: Selection, sizes: Mapping[str, int]) -> Subject | None:
    from ..contracts.fused_moe_math import reference, routing

    draw, problem = drawing(selection), selection.problem
    activation, scheme = problem.activation or "silu", problem.scheme.name
    experts, inner, hidden = sizes["E"], sizes["N"], sizes["K"]
    topk = min(sizes["topk"], experts)
    up = 2 * inner if activation in GATED else inner
    if experts * (up + inner) * hidden > 2 * MOST:
        return None  # sizes that nobody scaled: too much memory beside a model
    w1 = draw.uneven(experts, up, hidden, scale=hidden**-0.5)
    w2 = draw.uneven(experts, hidden, inner, scale=inner**-0.5)
    if scheme == "none":
        plain = {"w1": w1.to(draw.dtype), "w2": w2.to(draw.dtype)}
        limits, weights, want = limits_of(selection.op, problem, ODD_FLOOR), plain, None
    else:
        weights, limits, want = _quantized_experts(selection, w1, w2, draw.device)
        plain = {}
    del w1, w2

    def call(m: int, mixed: bool, nth: int) -> dict[str, Any]:
        router, ids = routing(m, experts, topk, seed=m, device=str(draw.device), skew=1.0, idle=True)
        made = {"x": draw.rows(m, hidden, mixed), "topk_weights": router, "topk_ids": ids.long() if nth % 2 else ids}
        return {**made, "activation": activation}

    return Subject(
        {**sizes, "topk": topk}, weights, call,
        (lambda given: as_tuple(reference(**given, **plain))) if want is None else lambda given: (want(given),), limits,
    )  # fmt: skip


def _quantized_experts(
    selection: Selection, w1: Tensor, w2: Tensor, device: torch.device
) -> tuple[dict[str, Tensor], Limits, Callable[[Mapping[str, Any]], Tensor]]:
    """(weights as in a checkpoint, limits, what the layer gives). Raises UnknownScheme for a scheme not known here."""
    from ..contracts.moe_quant import MoeQuant
    from ..contracts.moe_quant_math import dequantize_expert, quantize_weight, reference_quantized

    problem = selection.problem
    if problem.scheme.name in ("nvfp4", "nvfp4_w4a16"):
        return _fp4_experts(selection, w1, w2, device)
    quant = MoeQuant.of(problem.scheme)
    (q1, s1), (q2, s2) = quantize_weight(w1, quant), quantize_weight(w2, quant)
    weights = {"w1": q1, "w2": q2, "w1_scale": s1, "w2_scale": s2}
    inputs = {}
    if quant.scheme == "fp8_tensor":
        inputs = {
            "a1_scale": torch.full((1,), LARGEST_X / 448.0, device=device, dtype=torch.float32),
            "a2_scale": torch.full((1,), _LARGEST_INNER / 448.0, device=device, dtype=torch.float32),
        }
    if not quant.quantizes_activations or is_weight_only(selection.declaration, problem):
        plain = {
            name: torch.stack([dequantize_expert(w, s, quant) for w, s in zip(stored, scales, strict=True)])
            for name, stored, scales in (("w1", q1, s1), ("w2", q2, s2))
        }
        return {**weights, **inputs}, _W4A16_MOE, lambda given: _plain_experts(given, plain)
    tolerance = quant.tolerance("float16" if problem.dtype == "float32" else problem.dtype or "bfloat16")

    def want(given: Mapping[str, Any]) -> Tensor:
        result: Tensor = reference_quantized(
            given["x"], q1, q2, given["topk_weights"], given["topk_ids"], quant, w1_scale=s1, w2_scale=s2, **inputs,
            activation=given["activation"],
        )  # fmt: skip
        return result

    return {**weights, **inputs}, Limits(tolerance.rtol, tolerance.atol, QUANTIZED_FLOOR), want


def _plain_experts(given: Mapping[str, Any], plain: Mapping[str, Tensor]) -> Tensor:
    """What the layer gives with dequantized weights and inputs as they are."""
    from ..contracts.fused_moe_math import reference

    result: Tensor = reference(**given, **plain)
    return result


def _fp4_experts(
    selection: Selection, w1: Tensor, w2: Tensor, device: torch.device
) -> tuple[dict[str, Tensor], Limits, Callable[[Mapping[str, Any]], Tensor]]:
    """NVFP4 weights with a global scale an expert, static scales of both inputs for W4A4."""
    from ..contracts.nvfp4_math import dequantize, quantize_reference

    weights: dict[str, Tensor] = {}
    plain: dict[str, Tensor] = {}
    for name, weight in (("w1", w1), ("w2", w2)):
        factors = torch.stack([global_scale(expert) for expert in weight])
        stored = [quantize_reference(expert, factor) for expert, factor in zip(weight, factors, strict=True)]
        weights[name] = torch.stack([values for values, _ in stored])
        weights[f"{name}_scale"] = torch.stack([scale for _, scale in stored])
        weights[f"{name}_global_scale"] = factors
        plain[name] = torch.stack([dequantize(v, s, f) for (v, s), f in zip(stored, factors, strict=True)])
    both = selection.problem.scheme.name == "nvfp4"
    if both:
        weights["a1_scale"] = torch.full((1,), LARGEST_X / (448 * 6), device=device, dtype=torch.float32)
        weights["a2_scale"] = torch.full((1,), _LARGEST_INNER / (448 * 6), device=device, dtype=torch.float32)
    alone = not both or is_weight_only(selection.declaration, selection.problem)

    return weights, _W4A16_MOE if alone else _W4A4_MOE, lambda given: _plain_experts(given, plain)
