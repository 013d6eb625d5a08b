"""fp8_gemm in torch: torch._scaled_mm on GPUs with fp8 units, dequantized operands elsewhere."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...contracts.gemm_fp8 import scheme_of
from ...contracts.gemm_fp8_math import (
    FP8,
    check_arguments,
    check_weights,
    dequantize_input,
    dequantize_weight,
    output_dtype,
    quantize_input,
)

_FP8_UNITS = (8, 9)
_MULTIPLE = 16  # of K and N, asked for by cuBLASLt


class Fp8Weights(NamedTuple):
    """A checkpoint's tensors as they are, and which scheme their scales make."""

    w: Tensor  # [N, K] e4m3
    w_scale: Tensor  # [], [N] or [ceil(N/128), ceil(K/128)] fp32
    scheme: str


def prepare(device: object = None, *, w: Tensor, w_scale: Tensor) -> Fp8Weights:
    """The tensors, checked. Raises BadShape."""
    check_weights(w, w_scale)
    return Fp8Weights(w, w_scale, scheme_of(w=w, w_scale=w_scale))


def run(
    x: Tensor,  # [..., K] bf16, fp16 or e4m3
    weights: Fp8Weights,
    *,
    config: Any = None,
    x_scale: Tensor | None = None,  # [] fp32, the static scale of x; for e4m3 x also [M, 1] or [M, K/128]
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Return [..., N] in out_dtype, else x's dtype, else bf16 for e4m3 x.

    Both ways quantize x to e4m3; tensor cores then multiply e4m3, else both operands are dequantized to 16 bits.
    """
    w, w_scale, scheme = weights
    check_arguments(x, w, w_scale, x_scale, out_dtype=out_dtype)
    kind = output_dtype(x, out_dtype)
    rows = x.reshape(-1, x.shape[-1])
    if x.dtype == FP8:
        assert x_scale is not None  # check_arguments has seen to it
        stored, scale = rows, x_scale
    else:
        stored, scale = quantize_input(rows, scheme, x_scale)
    if scheme != "fp8_block" and _multiplies_fp8(stored, w):
        product = _scaled(stored, scale, w, w_scale)
    else:
        wide = torch.float16 if x.dtype == torch.float16 else torch.bfloat16
        product = dequantize_input(stored, scale).to(wide) @ dequantize_weight(w, w_scale, scheme).to(wide).T
    return product.to(kind).view(*x.shape[:-1], w.shape[0])


def _multiplies_fp8(stored: Tensor, w: Tensor) -> bool:
    """Whether torch._scaled_mm takes these operands: an NVIDIA GPU of 8.9 or later, K and N multiples of 16."""
    return (
        stored.is_cuda
        and torch.version.hip is None
        and stored.shape[0] > 0
        and all(size % _MULTIPLE == 0 for size in w.shape)
        and torch.cuda.get_device_capability(stored.device) >= _FP8_UNITS
    )


def _scaled(stored: Tensor, scale: Tensor, w: Tensor, w_scale: Tensor) -> Tensor:
    """fp32 [M, N]. The scales multiply the fp32 product: cuBLASLt takes scales per row on some GPUs only."""
    one = torch.ones((), device=stored.device)
    product = torch._scaled_mm(
        stored.contiguous(), w.contiguous().T, scale_a=one, scale_b=one, out_dtype=torch.float32, use_fast_accum=False
    )
    by_row = scale.reshape(()) if scale.numel() == 1 else scale.reshape(-1, 1)
    by_column = w_scale.reshape(()) if w_scale.numel() == 1 else w_scale.reshape(1, -1)
    return product * by_row * by_column
