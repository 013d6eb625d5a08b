"""The activations in torch: for each op of the contract a function a declared rounding, made from its formula.

``<op>_cast_before_mul`` and ``<op>_fp32_mul`` for x [..., 2H] = [gate, up] -> [..., H], ``<op>`` for x [..., H].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...contracts.activations_math import (
    FORMULAS,
    IS_GATED,
    apply,
    block_scale,
    check_gated,
    check_silu_and_mul_fp8,
    check_unary,
)
from ...contracts.fp8_outputs import BLOCK
from ...contracts.gemm_fp8_math import to_fp8
from .norms import into


def __getattr__(name: str) -> Callable[..., Tensor]:
    for order in ("cast_before_mul", "fp32_mul"):
        op = name.removesuffix(f"_{order}")
        if op != name and IS_GATED.get(op):
            return _gated(op, order)
    if name in IS_GATED and not IS_GATED[name]:
        return _unary(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _gated(op: str, order: str) -> Callable[..., Tensor]:
    def run(x: Tensor, weights: None = None, *, config: Any = None, out: Tensor | None = None) -> Tensor:
        check_gated(x, out, op=op)
        if order == "fp32_mul":
            return into(out, apply(op, x.float()).to(x.dtype))
        gate, up = x.chunk(2, dim=-1)
        return into(out, FORMULAS[op](gate.float()).to(x.dtype) * up)

    return run


def _unary(op: str) -> Callable[..., Tensor]:
    def run(x: Tensor, weights: None = None, *, config: Any = None, out: Tensor | None = None) -> Tensor:
        check_unary(x, out, op=op)
        return into(out, FORMULAS[op](x.float()).to(x.dtype))

    return run


def silu_and_mul_fp8(
    x: Tensor,
    weights: None = None,
    *,
    config: Any = None,
    out: Tensor | None = None,
    scale_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(e4m3 [..., H], fp32 scales [..., H/128]) of x [..., 2H]."""
    check_silu_and_mul_fp8(x, out, scale_out)
    product = apply("silu_and_mul", x.float())
    scale = block_scale(product)
    return into(out, to_fp8(product / scale.repeat_interleave(BLOCK, dim=-1))), into(scale_out, scale)
