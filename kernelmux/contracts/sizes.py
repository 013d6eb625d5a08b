"""Sizes of tensors and problems, for the contracts of plain ops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..registry import Problem

ELEMENT_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float8_e4m3fn": 1, "float8_e5m2": 1, "int8": 1, "uint8": 1}


def upper_sizes(problem: Problem) -> dict[str, int]:
    """Axis -> size; of a range the upper end."""
    return {axis: value if isinstance(value, int) else value[1] for axis, value in problem.shape.items()}


def rows_of(x: Any) -> int:
    """How many rows x [..., H] has: the product of its leading sizes."""
    rows = 1
    for size in x.shape[:-1]:
        rows *= size
    return rows
