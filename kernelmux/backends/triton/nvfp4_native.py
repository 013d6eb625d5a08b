"""nvfp4_gemm (W4A4) in Triton on tensor cores that multiply NVFP4: 10.x and 12.x. x is quantized by our own kernel."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ...contracts.nvfp4_checks import check_mm, check_weights
from ...contracts.nvfp4_layouts import laid_out, swizzle
from ...errors import BadShape, UsageError
from . import jit_guard
from . import nvfp4_native_kernels as kernels
from .nvfp4_native_arguments import native_arguments
from .nvfp4_native_rules import NativeTile, fitted, heuristic, most_split
from .nvfp4_quantize import quantize
from .nvfp4_weight_only import SUM_BLOCK
from .nvfp4_weight_only_kernels import nvfp4_sum_parts

if TYPE_CHECKING:
    from torch import Tensor

SWIZZLED = "swizzled_128x4"


class NativeWeights(NamedTuple):
    """The packed weight as it is, its scales swizzled."""

    w: Tensor  # u8 [N, K/2]
    w_scale: Tensor  # e4m3 [N up to 128, K/16 up to 4], swizzled
    alpha: Tensor  # fp32 [1]: w_global_scale * input_scale
    input_scale: Tensor  # fp32 [1]


def prepare(
    device: object = None,
    *,
    w: Tensor,
    w_scale: Tensor,
    w_global_scale: Tensor,
    input_scale: Tensor | None = None,
) -> NativeWeights:
    """w u8 [N, K/2], w_scale e4m3 [N, K/16], K a multiple of 32. Raises BadShape; UsageError for no input_scale."""
    check_weights(w, w_scale, w_global_scale, input_scale)
    if input_scale is None:
        raise UsageError("the native NVFP4 GEMM quantizes x and needs its input_scale; a W4A16 kernel needs none.")
    if 2 * w.shape[1] % 32:
        raise BadShape(
            f"nvfp4_gemm on tensor cores reads rows in 16 bytes: K={2 * w.shape[1]} must be a multiple of 32."
        )
    given = input_scale.float().reshape(1)
    return NativeWeights(w.contiguous(), swizzle(w_scale), w_global_scale.float().reshape(1) * given, given)


@lru_cache(maxsize=64)
def _facts(index: int) -> tuple[int, tuple[int, int]]:
    found = torch.cuda.get_device_properties(index)
    return found.multi_processor_count, (found.major, found.minor)


def run(
    x: Tensor,  # [..., K] bf16 or fp16
    weights: NativeWeights,
    *,
    config: Any = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Return [..., N] in out_dtype or x's dtype."""
    k = 2 * weights.w.shape[1]
    if x.shape[-1] != k:
        raise BadShape(f"nvfp4_gemm: these weights take x [..., {k}]; got {list(x.shape)}.")
    rows = x if x.dim() == 2 else x.reshape(-1, k)
    values, scales = quantize(rows, global_scale=weights.input_scale, layout=SWIZZLED)
    out = _product(values, scales, weights.w, weights.w_scale, weights.alpha, config, out_dtype or x.dtype)
    return out.reshape(*x.shape[:-1], weights.w.shape[0])


def mm(
    a: Tensor,  # u8 [M, K/2]
    weights: None = None,
    *,
    config: Any = None,
    a_sf: Tensor,
    b: Tensor,  # u8 [N, K/2]
    b_sf: Tensor,
    alpha: Tensor,
    layout: str = SWIZZLED,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Return [M, N] = alpha * a @ b.T of the dequantized blocks, bf16 unless told. Linear scales are swizzled first."""
    check_mm(a, a_sf, b, b_sf, alpha, layout=layout, out_dtype=out_dtype)
    if layout == "linear":
        a_sf, b_sf = laid_out(a_sf, SWIZZLED), laid_out(b_sf, SWIZZLED)
    if 2 * a.shape[1] % 32:
        raise BadShape(f"nvfp4_mm in Triton reads rows in 16 bytes: K={2 * a.shape[1]} must be a multiple of 32.")
    return _product(a.contiguous(), a_sf, b.contiguous(), b_sf, alpha, config, out_dtype or torch.bfloat16)


def _product(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, alpha: Tensor, config: Any, out_dtype: torch.dtype
) -> Tensor:
    m, n, k = a.shape[0], b.shape[0], 2 * a.shape[1]
    out = torch.empty(m, n, dtype=out_dtype, device=a.device)
    if m:
        tile = config.at(m) if hasattr(config, "at") else config
        if tile is None:
            sms, capability = _facts(a.device.index or 0)
            tile = heuristic(m, n, k, capability, sms)
        _launch(fitted(tile, k), a, a_scale, b, b_scale, alpha, out, k)
    return out


def _launch(
    tile: NativeTile, a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, alpha: Tensor, out: Tensor, k: int
) -> None:
    jit_guard.install()
    m, n = out.shape
    if tile.split > most_split(k, tile.block_k):
        raise UsageError(f"{tile.short()} cuts K={k} into {tile.split} parts: there are fewer of {tile.block_k}.")
    parts = torch.empty(tile.split, m, n, dtype=torch.float32, device=a.device) if tile.split > 1 else None
    args, kwargs, grid = native_arguments(
        tile, a, a_scale, b, b_scale, alpha, out if parts is None else parts, m=m, n=n, k=k, stride_out=n
    )
    kernels.nvfp4_native_gemm[grid](*args, **kwargs)
    if parts is not None:
        nvfp4_sum_parts[(-(-m * n // SUM_BLOCK),)](
            parts, alpha, out, m * n, n, n, SPLIT=tile.split, BLOCK=SUM_BLOCK, PDL=False, num_warps=4
        )
