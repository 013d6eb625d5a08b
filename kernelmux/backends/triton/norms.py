"""The norms in Triton, one Variant (``run``, ``bind``) a declared rounding.

x [..., H] of any row stride and the weight [H] as ``weights`` give [..., H] of x's dtype, into ``out`` where it is
given; ``out`` may be x itself, and ``residual_out`` the residual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ...contracts.norms_math import check_fused_add_rms_norm, check_gated_rms_norm, check_rms_norm
from . import norm_kernels as kernels
from . import small_launch
from .small_launch import Gpu, Launch, Plan, Rows, Variant, programs, unit_of
from .small_rules import Tile, longest, row_tile

if TYPE_CHECKING:
    from torch import Tensor


def fresh(x: Tensor, out: Tensor | None) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out


def norm_plan(op: str, kind: str, order: str, round_sum: bool = False) -> Plan:
    """Tensors of a call: x, (residual | z), weight, out, (residual_out)."""
    places = {"plain": (0, None, 1, 2, None), "add": (0, 1, 2, 3, 4), "gated": (0, 1, 2, 3, None)}[kind]

    def plan(scalars: Mapping[str, Any], tensors: Sequence[Rows | None], gpu: Gpu, tile: Any) -> Launch:
        x = tensors[0]
        assert x is not None
        groups = int(scalars.get("n_groups", 1))
        width, rows = x.width // groups, x.rows * groups
        # Of the weight, no row is stepped to.
        strides = [0 if place in (None, places[2]) else tensors[place].stride for place in places]  # type: ignore[union-attr]
        unit = unit_of(x.itemsize, *strides)
        units = [stride // unit for stride in strides]
        bias = bool(scalars.get("weight_bias", 0.0))
        cast = order == "cast_before_mul"
        common = dict(H=width, GROUPS=groups, UNIT=unit, KIND=kind, CAST=cast, ROUND_SUM=round_sum)
        numbers = (rows, units[0], units[1], units[3], units[4], float(scalars.get("eps", 1e-6)))
        t = tile or row_tile(op, rows, width, x.itemsize, gpu.capability, gpu.sms)
        if width > longest(op):
            constants = {**common, "BIAS": bias, "BLOCK": t.block, "PDL": gpu.pdl}
            return Launch(kernels.norm_long_rows, places, (), numbers, constants, rows, t.warps, 1, gpu.pdl)
        constants = {**common, "BIAS": bias, **row_constants(t, width), "PDL": gpu.pdl}
        grid = programs(-(-rows // t.rows), t.per_sm, gpu.sms)
        return Launch(kernels.norm_rows, places, (), numbers, constants, grid, t.warps, t.stages, gpu.pdl)

    return plan


def row_constants(t: Tile, width: int) -> dict[str, Any]:
    return dict(
        ROWS=t.rows, BLOCK=t.block, CHUNKS=-(-width // t.block), STAGES=t.stages, PERSISTENT=t.per_sm > 0
    )  # fmt: skip


def _rms_norm(order: str) -> Variant:
    plan = norm_plan("rms_norm", "plain", order)

    def rms_norm(
        x: Tensor,
        weights: Tensor,
        *,
        config: Tile | None = None,
        out: Tensor | None = None,
        eps: float = 1e-6,
        weight_bias: float = 0.0,
    ) -> Tensor:
        check_rms_norm(x, weights, eps, weight_bias, out)
        out = fresh(x, out)
        small_launch.call(plan, {"eps": eps, "weight_bias": weight_bias}, (x, weights, out), config)
        return out

    return Variant("rms_norm", plan, rms_norm)


def _fused_add(order: str, kept: str) -> Variant:
    plan = norm_plan("fused_add_rms_norm", "add", order, kept == "residual_rounded")

    def fused_add_rms_norm(
        x: Tensor,
        weights: Tensor,
        *,
        residual: Tensor,
        config: Tile | None = None,
        out: Tensor | None = None,
        residual_out: Tensor | None = None,
        eps: float = 1e-6,
        weight_bias: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        check_fused_add_rms_norm(x, residual, weights, eps, weight_bias, out, residual_out)
        out, residual_out = fresh(x, out), fresh(x, residual_out)
        scalars = {"eps": eps, "weight_bias": weight_bias}
        small_launch.call(plan, scalars, (x, residual, weights, out, residual_out), config)
        return out, residual_out

    return Variant("fused_add_rms_norm", plan, fused_add_rms_norm)


def _gated(order: str) -> Variant:
    plan = norm_plan("gated_rms_norm", "gated", order)

    def gated_rms_norm(
        x: Tensor,
        weights: Tensor,
        *,
        z: Tensor,
        config: Tile | None = None,
        out: Tensor | None = None,
        eps: float = 1e-6,
        n_groups: int = 1,
    ) -> Tensor:
        check_gated_rms_norm(x, z, weights, eps, n_groups, out)
        out = fresh(x, out)
        small_launch.call(plan, {"eps": eps, "n_groups": n_groups}, (x, z, weights, out), config)
        return out

    return Variant("gated_rms_norm", plan, gated_rms_norm)


rms_norm_fp32_mul = _rms_norm("fp32_mul")
rms_norm_cast_before_mul = _rms_norm("cast_before_mul")
fused_add_rms_norm_fp32_mul_residual_rounded = _fused_add("fp32_mul", "residual_rounded")
fused_add_rms_norm_fp32_mul_residual_fp32 = _fused_add("fp32_mul", "residual_fp32")
fused_add_rms_norm_cast_before_mul_residual_rounded = _fused_add("cast_before_mul", "residual_rounded")
fused_add_rms_norm_cast_before_mul_residual_fp32 = _fused_add("cast_before_mul", "residual_fp32")
gated_rms_norm_fp32_mul = _gated("fp32_mul")
gated_rms_norm_cast_before_mul = _gated("cast_before_mul")
