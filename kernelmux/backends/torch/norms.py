"""The norms in torch, one function a declared rounding.

All take x [..., H] and the weight [H] as ``weights`` and give [..., H] of x's dtype, into ``out`` where it is given;
``out`` may be x itself, and ``residual_out`` the residual: everything is read before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ...contracts.gemm_fp8_math import to_fp8
from ...contracts.norms_math import (
    biased,
    check_fused_add_rms_norm,
    check_gated_rms_norm,
    check_rms_norm,
    check_rms_norm_fp8,
    normalise,
    token_scale,
)


def into(out: Tensor | None, value: Tensor) -> Tensor:
    """The value, in ``out`` if there is one."""
    return value if out is None else out.copy_(value)


def _weigh(order: str, normalised: Tensor, weight: Tensor, weight_bias: float = 0.0) -> Tensor:
    """fp32 normalised rows times the weight; ``cast_before_mul`` rounds them to its dtype first."""
    if order == "cast_before_mul":
        normalised = normalised.to(weight.dtype).float()
    return (normalised * biased(weight, weight_bias)).to(weight.dtype)


def _rms_norm(order: str) -> Callable[..., Tensor]:
    def rms_norm(
        x: Tensor,
        weights: Tensor,
        *,
        config: Any = None,
        out: Tensor | None = None,
        eps: float = 1e-6,
        weight_bias: float = 0.0,
    ) -> Tensor:
        check_rms_norm(x, weights, eps, weight_bias, out)
        return into(out, _weigh(order, normalise(x, eps), weights, weight_bias))

    return rms_norm


def _fused_add(order: str, kept: str) -> Callable[..., tuple[Tensor, Tensor]]:
    def fused_add_rms_norm(
        x: Tensor,
        weights: Tensor,
        *,
        config: Any = None,
        residual: Tensor,
        out: Tensor | None = None,
        residual_out: Tensor | None = None,
        eps: float = 1e-6,
        weight_bias: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        check_fused_add_rms_norm(x, residual, weights, eps, weight_bias, out, residual_out)
        total = x.float() + residual.float()
        rounded = total.to(x.dtype)
        normalised = normalise(rounded if kept == "residual_rounded" else total, eps)
        return into(out, _weigh(order, normalised, weights, weight_bias)), into(residual_out, rounded)

    return fused_add_rms_norm


def _gated(order: str) -> Callable[..., Tensor]:
    def gated_rms_norm(
        x: Tensor,
        weights: Tensor,
        *,
        config: Any = None,
        z: Tensor,
        out: Tensor | None = None,
        eps: float = 1e-6,
        n_groups: int = 1,
    ) -> Tensor:
        check_gated_rms_norm(x, z, weights, eps, n_groups, out)
        return into(out, _weigh(order, normalise(x.float() * F.silu(z.float()), eps, n_groups), weights))

    return gated_rms_norm


rms_norm_cast_before_mul = _rms_norm("cast_before_mul")
rms_norm_fp32_mul = _rms_norm("fp32_mul")
gated_rms_norm_cast_before_mul = _gated("cast_before_mul")
gated_rms_norm_fp32_mul = _gated("fp32_mul")
fused_add_rms_norm_cast_before_mul_residual_rounded = _fused_add("cast_before_mul", "residual_rounded")
fused_add_rms_norm_cast_before_mul_residual_fp32 = _fused_add("cast_before_mul", "residual_fp32")
fused_add_rms_norm_fp32_mul_residual_rounded = _fused_add("fp32_mul", "residual_rounded")
fused_add_rms_norm_fp32_mul_residual_fp32 = _fused_add("fp32_mul", "residual_fp32")


def rms_norm_fp8(
    x: Tensor,
    weights: Tensor,
    *,
    config: Any = None,
    scale: Tensor | None = None,
    out: Tensor | None = None,
    scale_out: Tensor | None = None,
    eps: float = 1e-6,
    weight_bias: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """(e4m3 [..., H], fp32 scale), a copy of the given one where there is one."""
    check_rms_norm_fp8(x, weights, scale, eps, weight_bias, out, scale_out)
    product = normalise(x, eps) * biased(weights, weight_bias)
    used = token_scale(product) if scale is None else scale.clone()
    return into(out, to_fp8(product / used)), into(scale_out, used)
