"""nvfp4_quantize and nvfp4_gemm in torch: dequantize, multiply."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...contracts.nvfp4_math import (
    check_gemm,
    check_gemm_weights,
    check_quantize,
    dequantize,
    quantize_reference,
    require_usable_factor,
)


def quantize(
    x: Tensor, weights: None = None, *, config: Any = None, global_scale: Tensor, layout: str = "linear"
) -> tuple[Tensor, Tensor]:
    """x [..., K] -> (packed uint8 [..., K/2], block scales e4m3 [..., K/16]), as the contract specifies."""
    check_quantize(x, global_scale, layout)
    return quantize_reference(x, global_scale)


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
    check_gemm_weights(w, w_scale, w_global_scale, input_scale)
    if not (w.is_cuda and torch.cuda.is_current_stream_capturing()):
        require_usable_factor("nvfp4_gemm", "w_global_scale", w_global_scale)
        if input_scale is not None:
            require_usable_factor("nvfp4_gemm", "input_scale", input_scale)
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
    values = x if given is None else dequantize(*quantize_reference(x, given), given).to(x.dtype)
    weight = dequantize(weights.w, weights.w_scale, weights.w_global_scale).to(x.dtype)
    return (values @ weight.T).to(out_dtype or x.dtype)
