"""rms_norm_fp8 and silu_and_mul_fp8 in Triton: e4m3 values and the fp32 scales they were divided by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ...contracts.activations_math import check_silu_and_mul_fp8
from ...contracts.fp8_outputs import BLOCK
from ...contracts.norms_math import check_rms_norm_fp8
from . import fp8_epilogue_kernels as kernels
from . import small_launch
from .norms import row_constants
from .small_launch import Gpu, Launch, Rows, Variant, programs, unit_of
from .small_rules import Tile, column_tile, longest, row_tile

if TYPE_CHECKING:
    from torch import Tensor


def plan_rms_norm_fp8(scalars: Mapping[str, Any], tensors: Sequence[Rows | None], gpu: Gpu, tile: Any) -> Launch:
    """Tensors of a call: x, weight, scale or None, out, scale_out."""
    x, _, scale, out, scale_out = tensors
    assert x is not None
    assert out is not None
    assert scale_out is not None
    t = tile or row_tile("rms_norm_fp8", x.rows, x.width, x.itemsize, gpu.capability, gpu.sms)
    unit = unit_of(x.itemsize, x.stride, out.stride)
    given = scale is not None
    constants: dict[str, Any] = dict(
        H=x.width, UNIT=unit, GIVEN=given, BIAS=bool(scalars.get("weight_bias", 0.0)), HARDWARE=gpu.converts_e4m3
    )
    numbers = (
        x.rows, x.stride // unit, out.stride // unit, 0 if given else scale_out.stride, float(scalars.get("eps", 1e-6))
    )  # fmt: skip
    places = (0, 1, 2 if given else None, 3, 4)
    if x.width > longest("rms_norm_fp8"):
        constants.update(BLOCK=t.block, PDL=gpu.pdl)
        return Launch(kernels.norm_long_rows_fp8, places, (3,), numbers, constants, x.rows, t.warps, 1, gpu.pdl)
    constants.update(row_constants(t, x.width), PDL=gpu.pdl)
    grid = programs(-(-x.rows // t.rows), t.per_sm, gpu.sms)
    return Launch(kernels.norm_rows_fp8, places, (3,), numbers, constants, grid, t.warps, t.stages, gpu.pdl)


def plan_silu_and_mul_fp8(scalars: Mapping[str, Any], tensors: Sequence[Rows | None], gpu: Gpu, tile: Any) -> Launch:
    """Tensors of a call: x, out, scale_out."""
    x, out, scale_out = tensors
    assert x is not None
    assert out is not None
    assert scale_out is not None
    blocks = x.rows * (out.width // BLOCK)
    t = tile or column_tile("silu_and_mul_fp8", blocks, BLOCK, x.itemsize, gpu.capability, gpu.sms)
    unit = unit_of(x.itemsize, x.stride, out.stride)
    constants = dict(
        H=out.width, UNIT=unit, HARDWARE=gpu.converts_e4m3, ROWS=t.rows, STAGES=t.stages, PERSISTENT=t.per_sm > 0,
        PDL=gpu.pdl,
    )  # fmt: skip
    numbers = (blocks, x.stride // unit, out.stride // unit, scale_out.stride)
    grid = programs(-(-blocks // t.rows), t.per_sm, gpu.sms)
    kernel = kernels.silu_and_mul_blocks_fp8
    return Launch(kernel, (0, 1, 2), (1,), numbers, constants, grid, t.warps, t.stages, gpu.pdl)


def _rms_norm_fp8(
    x: Tensor,
    weights: Tensor,
    *,
    scale: Tensor | None = None,
    config: Tile | None = None,
    out: Tensor | None = None,
    scale_out: Tensor | None = None,
    eps: float = 1e-6,
    weight_bias: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """[..., H] e4m3 and its scale: the given one, copied, or one a token [..., 1]."""
    check_rms_norm_fp8(x, weights, scale, eps, weight_bias, out, scale_out)
    if out is None:
        out = x.new_empty(x.shape, dtype=torch.float8_e4m3fn)
    if scale_out is None:
        shape = (*x.shape[:-1], 1) if scale is None else tuple(scale.shape)
        scale_out = x.new_empty(shape, dtype=torch.float32)
    tensors = (x, weights, scale, out, scale_out)
    if not x.numel():
        _keep_scale(*tensors)
    small_launch.call(plan_rms_norm_fp8, {"eps": eps, "weight_bias": weight_bias}, tensors, config)
    return out, scale_out


def _silu_and_mul_fp8(
    x: Tensor,
    weights: None = None,
    *,
    config: Tile | None = None,
    out: Tensor | None = None,
    scale_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """[..., H] e4m3 and its scales [..., H / 128]."""
    check_silu_and_mul_fp8(x, out, scale_out)
    hidden = x.shape[-1] // 2
    if out is None:
        out = x.new_empty((*x.shape[:-1], hidden), dtype=torch.float8_e4m3fn)
    if scale_out is None:
        scale_out = x.new_empty((*x.shape[:-1], hidden // BLOCK), dtype=torch.float32)
    small_launch.call(plan_silu_and_mul_fp8, {}, (x, out, scale_out), config)
    return out, scale_out


def _keep_scale(x: Tensor, weight: Tensor, scale: Tensor | None, out: Tensor, scale_out: Tensor) -> None:
    """No row: a given scale is the result all the same."""
    if scale is not None:
        scale_out.copy_(scale)


rms_norm_fp8 = Variant("rms_norm_fp8", plan_rms_norm_fp8, _rms_norm_fp8, _keep_scale)
silu_and_mul_fp8 = Variant("silu_and_mul_fp8", plan_silu_and_mul_fp8, _silu_and_mul_fp8)
