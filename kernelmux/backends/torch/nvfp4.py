"""The NVFP4 ops in torch, as the contract specifies them: quantize, dequantize, multiply what was dequantized."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...contracts import nvfp4_math
from ...contracts.nvfp4_math import (
    check_dequantize,
    check_gemm,
    check_mm,
    check_quantize,
    check_rms_norm,
    check_silu_and_mul,
    check_weights,
    dequantize_reference,
    quantize_reference,
    require_usable_factor,
)


def quantize(
    x: Tensor,
    weights: None = None,
    *,
    config: Any = None,
    global_scale: Tensor,
    layout: str = "linear",
    out: Tensor | None = None,
    scale_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x [..., K] -> (packed uint8 [..., K/2], e4m3 block scales in that layout), as the contract specifies."""
    check_quantize(x, global_scale, layout, out, scale_out)
    _check_on_cpu("nvfp4_quantize", global_scale)
    return _given(quantize_reference(x, global_scale, layout), out, scale_out)


def silu_and_mul(
    x: Tensor,
    weights: None = None,
    *,
    config: Any = None,
    global_scale: Tensor,
    layout: str = "linear",
    out: Tensor | None = None,
    scale_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x [..., 2H] -> NVFP4 of silu(gate) * up, in fp32 until it is quantized."""
    check_silu_and_mul(x, global_scale, layout, out, scale_out)
    _check_on_cpu("silu_and_mul_nvfp4", global_scale)
    return _given(nvfp4_math.silu_and_mul_reference(x, global_scale, layout), out, scale_out)


def rms_norm(
    x: Tensor,
    weight: Tensor,
    *,
    config: Any = None,
    global_scale: Tensor,
    eps: float = 1e-6,
    weight_bias: float = 0.0,
    layout: str = "linear",
    out: Tensor | None = None,
    scale_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x [..., H] -> NVFP4 of the norm, in fp32 until it is quantized."""
    check_rms_norm(x, weight, global_scale, eps, weight_bias, layout, out, scale_out)
    _check_on_cpu("rms_norm_nvfp4", global_scale)
    return _given(nvfp4_math.rms_norm_reference(x, weight, global_scale, eps, weight_bias, layout), out, scale_out)


def dequantize(
    x: Tensor,
    weights: None = None,
    *,
    config: Any = None,
    scale: Tensor,
    global_scale: Tensor,
    layout: str = "linear",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Bytes [..., K/2] -> [..., K] in fp32 or out_dtype."""
    check_dequantize(x, scale, global_scale, layout, out_dtype=out_dtype)
    _check_on_cpu("nvfp4_dequantize", global_scale)
    return dequantize_reference(x, scale, global_scale, layout).to(out_dtype or torch.float32)


def mm(
    a: Tensor,
    weights: None = None,
    *,
    config: Any = None,
    a_sf: Tensor,
    b: Tensor,
    b_sf: Tensor,
    alpha: Tensor,
    layout: str = "swizzled_128x4",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """alpha * a @ b.T of dequantized blocks, in fp32, then out_dtype (bf16)."""
    check_mm(a, a_sf, b, b_sf, alpha, layout=layout, out_dtype=out_dtype)
    _check_on_cpu("nvfp4_mm", alpha, "alpha")
    return nvfp4_math.mm_reference(a, a_sf, b, b_sf, alpha, layout=layout).to(out_dtype or torch.bfloat16)


def _check_on_cpu(op: str, factor: Tensor, name: str = "global_scale") -> None:
    """A global scale that is no usable number is refused where looking at it waits for nothing."""
    if factor.device.type == "cpu":
        require_usable_factor(op, name, factor)


def _given(results: tuple[Tensor, Tensor], *outs: Tensor | None) -> tuple[Tensor, Tensor]:
    """The results, in the tensors given for them."""
    first, second = (
        result if out is None else out.copy_(result) for result, out in zip(results, outs, strict=True)
    )  # fmt: skip
    return first, second


class Nvfp4Weights(NamedTuple):
    """A checkpoint's tensors as they are: 0.56 bytes a value."""

    w: Tensor  # [N, K/2] uint8
    w_scale: Tensor  # [N, K/16] e4m3
    w_global_scale: Tensor  # [] or [1] fp32
    input_scale: Tensor | None  # [] or [1] fp32; None: x is not quantized


def prepare(
    device: object = None,
    *,
    w: Tensor,
    w_scale: Tensor,
    w_global_scale: Tensor,
    input_scale: Tensor | None = None,
) -> Nvfp4Weights:
    """The tensors, checked. Raises BadShape; the global scales are read unless a CUDA graph is being captured."""
    check_weights(w, w_scale, w_global_scale, input_scale)
    return Nvfp4Weights(w, w_scale, w_global_scale, input_scale)


def gemm(
    x: Tensor,  # [..., K] bf16 or fp16
    weights: Nvfp4Weights,
    *,
    config: Any = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Return [..., N] in out_dtype or x's dtype. Dequantizes the whole weight at every call, to x's dtype.

    With an input scale x goes through NVFP4 first, so the result is that of a W4A4 kernel.
    """
    check_gemm(x, *weights, out_dtype=out_dtype)
    given = weights.input_scale
    values = x if given is None else nvfp4_math.dequantize(*quantize_reference(x, given), given).to(x.dtype)
    weight = nvfp4_math.dequantize(weights.w, weights.w_scale, weights.w_global_scale).to(x.dtype)
    return (values @ weight.T).to(out_dtype or x.dtype)
