"""The activations in Triton, one Variant (``run``, ``bind``) a declared rounding.

x [..., 2H] = [gate, up], or x [..., H], of any row stride gives [..., H] of x's dtype, into ``out`` where it is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...contracts.activation_table import ACTIVATIONS
from ...contracts.activations_math import check_gated, check_unary
from . import small_launch
from .activation_kernels import activate_tiles
from .small_launch import Gpu, Launch, Plan, Rows, Variant, programs, unit_of
from .small_rules import Tile, column_tile

if TYPE_CHECKING:
    from torch import Tensor


def activation_plan(op: str, gated: bool, order: str) -> Plan:
    """Tensors of a call: x, out."""

    def plan(scalars: Mapping[str, Any], tensors: Sequence[Rows | None], gpu: Gpu, tile: Any) -> Launch:
        x, out = tensors
        assert x is not None
        assert out is not None
        t = tile or column_tile(op, x.rows, out.width, x.itemsize, gpu.capability, gpu.sms)
        unit = unit_of(x.itemsize, x.stride, out.stride)
        column_tiles = -(-out.width // t.block)
        constants = dict(
            H=out.width, UNIT=unit, OP=op, GATED=gated, CAST=order == "cast_before_mul",
            ROWS=t.rows, BLOCK=t.block, COLUMN_TILES=column_tiles, STAGES=t.stages, PERSISTENT=t.per_sm > 0,
            PDL=gpu.pdl,
        )  # fmt: skip
        grid = programs(-(-x.rows // t.rows) * column_tiles, t.per_sm, gpu.sms)
        numbers = (x.rows, x.stride // unit, out.stride // unit)
        return Launch(activate_tiles, (0, 1), (), numbers, constants, grid, t.warps, t.stages, gpu.pdl)

    return plan


def _activation(op: str, gated: bool, order: str) -> Variant:
    plan = activation_plan(op, gated, order)

    def activation(x: Tensor, weights: None = None, *, config: Tile | None = None, out: Tensor | None = None) -> Tensor:
        if gated:
            check_gated(x, out, op=op)
        else:
            check_unary(x, out, op=op)
        if out is None:
            out = x.new_empty((*x.shape[:-1], x.shape[-1] // 2 if gated else x.shape[-1]))
        small_launch.call(plan, {}, (x, out), config)
        return out

    return Variant(op, plan, activation)


# <op>_<order> of the gated ones, <op> of the others, which have but one rounding.
VARIANTS = {
    **{
        f"{a.name}_{order}": _activation(a.name, True, order)
        for a in ACTIVATIONS if a.gated for order in ("cast_before_mul", "fp32_mul")
    },
    **{a.name: _activation(a.name, False, "") for a in ACTIVATIONS if not a.gated},
}  # fmt: skip


def __getattr__(name: str) -> Variant:
    try:
        return VARIANTS[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
