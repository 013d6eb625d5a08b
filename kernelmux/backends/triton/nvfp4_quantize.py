"""nvfp4_quantize in Triton, alone or behind silu_and_mul or rms_norm, with linear or 128 x 4 swizzled block scales."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ...contracts.nvfp4 import GROUP
from ...contracts.nvfp4_math import check_quantize
from ...errors import BadShape
from . import jit_guard
from . import nvfp4_quantize_kernels as kernels

if TYPE_CHECKING:
    from torch import Tensor

LAYOUTS = ("linear", "swizzled")
WIDTH = 1024  # columns a program takes, less for short rows
VALUES = 2048  # values a program takes
MOST_NORM_WIDTH = 32768


def scale_shape(m: int, k: int, layout: str) -> tuple[int, int]:
    """Of the block scales of [m, k]: swizzled ones are padded to whole blocks of 128 rows and 4 columns, with zeros."""
    if layout == "linear":
        return m, k // GROUP
    if layout == "swizzled":
        return -(-m // 128) * 128, -(-k // (4 * GROUP)) * 4
    raise BadShape(f"nvfp4_quantize: unknown layout {layout!r} of the block scales; use {' or '.join(LAYOUTS)}.")


def quantize(
    x: Tensor, weights: None = None, *, config: Any = None, global_scale: Tensor, layout: str = "linear"
) -> tuple[Tensor, Tensor]:
    """x [..., K] -> (packed uint8 [..., K/2], e4m3 block scales): linear [..., K/16], or swizzled and padded."""
    check_quantize(x, global_scale)
    return _launch(kernels.nvfp4_quantize_rows, x, x.shape[-1], global_scale, layout, ())


def silu_and_mul_quantize(x: Tensor, global_scale: Tensor, layout: str = "linear") -> tuple[Tensor, Tensor]:
    """x [..., 2K] -> NVFP4 of silu(x[..., :K]) * x[..., K:], which is rounded nowhere but to NVFP4."""
    if x.shape[-1] % (2 * GROUP):
        raise BadShape(f"silu_and_mul to NVFP4: the last size of x must be a multiple of 32; got {list(x.shape)}.")
    check_quantize(x, global_scale)
    return _launch(kernels.silu_and_mul_nvfp4_rows, x, x.shape[-1] // 2, global_scale, layout, ())


def rms_norm_quantize(
    x: Tensor,
    weight: Tensor,
    global_scale: Tensor,
    eps: float = 1e-6,
    weight_bias: float = 0.0,
    layout: str = "linear",
) -> tuple[Tensor, Tensor]:
    """x [..., K] -> NVFP4 of x / rms(x) * (weight + weight_bias), which is rounded nowhere but to NVFP4."""
    check_quantize(x, global_scale)
    if tuple(weight.shape) != (x.shape[-1],) or weight.device != x.device:
        raise BadShape(f"rms_norm to NVFP4: weight must be [{x.shape[-1]}] on {x.device}; got {list(weight.shape)}.")
    if x.shape[-1] > MOST_NORM_WIDTH:
        raise BadShape(f"rms_norm to NVFP4 holds a row of at most {MOST_NORM_WIDTH} values; got {x.shape[-1]}.")
    return _launch(
        kernels.rms_norm_nvfp4_rows, x, x.shape[-1], global_scale, layout, (eps, weight_bias), weight.contiguous()
    )


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def geometry(m: int, k: int, whole_rows: bool) -> tuple[int, int, int]:
    """(rows, columns, warps) of a program."""
    width = max(16, _power_of_two(k)) if whole_rows else min(WIDTH, max(16, _power_of_two(k)))
    rows = max(1, min(VALUES // width, _power_of_two(m)))
    return rows, width, max(1, min(16 if whole_rows else 4, rows * width // 512))


def _launch(
    kernel: Any, x: Tensor, k: int, global_scale: Tensor, layout: str, scalars: tuple[float, ...], *more: Tensor
) -> tuple[Tensor, Tensor]:
    jit_guard.install()
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    m = rows.shape[0]
    shape = scale_shape(m, k, layout)
    values = torch.empty(m, k // 2, dtype=torch.uint8, device=x.device)
    scales = torch.empty(shape, dtype=torch.uint8, device=x.device)
    if m:
        block, width, warps = geometry(shape[0], k, bool(scalars))
        padded = shape[1] * GROUP if layout == "swizzled" else k
        kernel[(-(-shape[0] // block), -(-padded // width))](
            rows, *more, global_scale, values, scales, m, k, rows.stride(0), *scalars,
            ROWS=block, WIDTH=width, SWIZZLED=layout == "swizzled", num_warps=warps,
        )  # fmt: skip
    found = scales.view(torch.float8_e4m3fn)
    lead = x.shape[:-1]
    return values.reshape(*lead, k // 2), found.reshape(*lead, k // GROUP) if layout == "linear" else found
