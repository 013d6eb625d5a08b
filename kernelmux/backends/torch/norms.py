"""The norms in torch, one function a declared rounding."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ...contracts.norms_math import check_fused_add_rms_norm, check_gated_rms_norm, check_rms_norm, normalise


def _cast_before_mul(normalised: Tensor, weight: Tensor) -> Tensor:
    """The normalised rows rounded to the weight's dtype, times the weight, rounded again."""
    return normalised.to(weight.dtype) * weight


def _fp32_mul(normalised: Tensor, weight: Tensor) -> Tensor:
    """The normalised rows times the weight in fp32, rounded once."""
    return (normalised * weight.float()).to(weight.dtype)


def rms_norm_cast_before_mul(x: Tensor, weights: Tensor, *, config: Any = None, eps: float = 1e-6) -> Tensor:
    """x [..., H], weights [H] -> [..., H], Hugging Face's rounding."""
    check_rms_norm(x, weights, eps)
    return _cast_before_mul(normalise(x, eps), weights)


def rms_norm_fp32_mul(x: Tensor, weights: Tensor, *, config: Any = None, eps: float = 1e-6) -> Tensor:
    """x [..., H], weights [H] -> [..., H], rounded once."""
    check_rms_norm(x, weights, eps)
    return _fp32_mul(normalise(x, eps), weights)


def _add(x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, rounded: bool) -> tuple[Tensor, Tensor]:
    """(fp32 normalised sum, the sum in x's dtype); ``rounded``: normalise the latter."""
    check_fused_add_rms_norm(x, residual, weight, eps)
    total = x.float() + residual.float()
    kept = total.to(x.dtype)
    return normalise(kept if rounded else total, eps), kept


def fused_add_rms_norm_cast_before_mul_residual_rounded(
    x: Tensor, weights: Tensor, *, config: Any = None, residual: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Hugging Face's: the rounded sum is normalised, rounded, multiplied. Returns (norm, sum), both [..., H]."""
    normalised, kept = _add(x, residual, weights, eps, rounded=True)
    return _cast_before_mul(normalised, weights), kept


def fused_add_rms_norm_cast_before_mul_residual_fp32(
    x: Tensor, weights: Tensor, *, config: Any = None, residual: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """The unrounded sum is normalised, rounded, multiplied. Returns (norm, sum), both [..., H]."""
    normalised, kept = _add(x, residual, weights, eps, rounded=False)
    return _cast_before_mul(normalised, weights), kept


def fused_add_rms_norm_fp32_mul_residual_rounded(
    x: Tensor, weights: Tensor, *, config: Any = None, residual: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """The rounded sum is normalised and multiplied in fp32. Returns (norm, sum), both [..., H]."""
    normalised, kept = _add(x, residual, weights, eps, rounded=True)
    return _fp32_mul(normalised, weights), kept


def fused_add_rms_norm_fp32_mul_residual_fp32(
    x: Tensor, weights: Tensor, *, config: Any = None, residual: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """The unrounded sum is normalised and multiplied in fp32. Returns (norm, sum), both [..., H]."""
    normalised, kept = _add(x, residual, weights, eps, rounded=False)
    return _fp32_mul(normalised, weights), kept


def gated_rms_norm_cast_before_mul(
    x: Tensor, weights: Tensor, *, config: Any = None, z: Tensor, eps: float = 1e-6, n_groups: int = 1
) -> Tensor:
    """x and z [..., H], weights [H] -> [..., H]: gated and normalised in fp32, rounded, multiplied, rounded."""
    check_gated_rms_norm(x, z, weights, eps, n_groups)
    return _cast_before_mul(normalise(x.float() * F.silu(z.float()), eps, n_groups), weights)


def gated_rms_norm_fp32_mul(
    x: Tensor, weights: Tensor, *, config: Any = None, z: Tensor, eps: float = 1e-6, n_groups: int = 1
) -> Tensor:
    """x and z [..., H], weights [H] -> [..., H]: gated, normalised and multiplied in fp32, rounded once."""
    check_gated_rms_norm(x, z, weights, eps, n_groups)
    return _fp32_mul(normalise(x.float() * F.silu(z.float()), eps, n_groups), weights)
