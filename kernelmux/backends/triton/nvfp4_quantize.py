"""nvfp4_quantize in Triton, alone or behind silu_and_mul or rms_norm, with linear or 128 x 4 swizzled block scales."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from ...contracts.nvfp4 import GROUP
from ...contracts.nvfp4_checks import check_quantize, check_rms_norm, check_silu_and_mul
from ...contracts.nvfp4_layouts import scale_shape
from ...contracts.tensor_checks import row_stride
from ...errors import BadShape
from . import jit_guard
from . import nvfp4_quantize_kernels as kernels
from .nvfp4_quantize_rules import geometry

if TYPE_CHECKING:
    from torch import Tensor

MOST_NORM_WIDTH = 32768


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
    """x [..., K] -> (packed uint8 [..., K/2], e4m3 block scales in that layout)."""
    check_quantize(x, global_scale, layout, out, scale_out)
    return _launch(kernels.nvfp4_quantize_rows, x, x.shape[-1], global_scale, layout, out, scale_out, ())


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
    """x [..., 2H] -> NVFP4 of silu(x[..., :H]) * x[..., H:], which is rounded nowhere but to NVFP4."""
    check_silu_and_mul(x, global_scale, layout, out, scale_out)
    half = x.shape[-1] // 2
    return _launch(kernels.silu_and_mul_nvfp4_rows, x, half, global_scale, layout, out, scale_out, ())


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
    """x [..., H] -> NVFP4 of x / rms(x) * (weight + weight_bias), which is rounded nowhere but to NVFP4."""
    check_rms_norm(x, weight, global_scale, eps, weight_bias, layout, out, scale_out)
    h = x.shape[-1]
    if h > MOST_NORM_WIDTH:
        raise BadShape(f"rms_norm_nvfp4 in Triton holds a row of at most {MOST_NORM_WIDTH} values; got {h}.")
    numbers = (float(eps), float(weight_bias))
    return _launch(
        kernels.rms_norm_nvfp4_rows, x, h, global_scale, layout, out, scale_out, numbers, weight.contiguous()
    )


def _launch(
    kernel: Any,
    x: Tensor,
    k: int,
    global_scale: Tensor,
    layout: str,
    out: Tensor | None,
    scale_out: Tensor | None,
    scalars: tuple[float, ...],
    *more: Tensor,
) -> tuple[Tensor, Tensor]:
    jit_guard.install()
    lead = tuple(x.shape[:-1])
    swizzled = layout != "linear"
    if out is None:
        out = torch.empty(*lead, k // 2, dtype=torch.uint8, device=x.device)
    if scale_out is None:
        scale_out = torch.empty(scale_shape(lead, k, layout), dtype=torch.float8_e4m3fn, device=x.device)
    m = math.prod(lead)
    if not m:
        return out, scale_out
    stride = row_stride(x)
    if stride is None:
        x = x.reshape(m, x.shape[-1])
        stride = x.stride(0)
    rows_written = scale_out.shape[0] if swizzled else m
    columns = scale_out.shape[-1] * GROUP
    block, width, warps = geometry(rows_written, k, bool(scalars))
    kernel[(-(-rows_written // block), -(-columns // width))](
        x, *more, global_scale, out, scale_out.view(torch.uint8), m, k,
        stride, row_stride(out), 0 if swizzled else row_stride(scale_out), *scalars,
        ROWS=block, WIDTH=width, SWIZZLED=swizzled, num_warps=warps,
    )  # fmt: skip
    return out, scale_out
