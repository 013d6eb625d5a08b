"""Problem: an op, how it is quantized, its dtype and its shape. The token count may be a range."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from kernelmux.errors import BadShape, UsageError
from kernelmux.quant import Scheme
from kernelmux.registry.value import Value

Extent = int | tuple[int, int]

_DTYPES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "float": "float32",
    "fp8": "float8_e4m3fn",
}
_KNOWN = ("bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e5m2", "int8", "uint8")


def dtype_name(dtype: object) -> str | None:
    """torch's own name of a dtype: ``bf16``, ``"torch.bfloat16"`` and ``torch.bfloat16`` all give ``bfloat16``.

    Raises UsageError for a name nobody knows.
    """
    if dtype is None:
        return None
    text = str(dtype).removeprefix("torch.")
    name = _DTYPES.get(text, text)
    if name not in _KNOWN:
        raise UsageError(f"unknown dtype {str(dtype)!r}. Known: {', '.join((*_KNOWN, *_DTYPES))}.")
    return name


class Problem(Value):
    """What a kernel is asked to do.

    ``shape`` maps axis names of the op to sizes; an axis that is not given is missing, not guessed. The op's token
    axis may be a pair (lowest, highest). ``demands`` are promises on numerics that the kernel must have declared.
    """

    op: str
    scheme: Scheme
    dtype: str | None = None
    shape: Mapping[str, Extent] = MappingProxyType({})
    activation: str | None = None
    demands: frozenset[str] = frozenset()

    def tokens(self, axis: str | None) -> tuple[int, int] | None:
        """The token count as (lowest, highest), or None when it was not given."""
        value = self.shape.get(axis) if axis else None
        if value is None:
            return None
        return (value, value) if isinstance(value, int) else value

    def brief(self) -> str:
        """The problem in one line, for messages."""
        sizes = ",".join(f"{axis}={_extent(value)}" for axis, value in self.shape.items())
        words = [self.op, f"quant {self.scheme.name}", self.dtype or "", self.activation or "", sizes]
        return ", ".join(word for word in words if word)


def _extent(value: Extent) -> str:
    return str(value) if isinstance(value, int) else f"{value[0]}..{value[1]}"


def check_shape(op: str, axes: Iterable[str], token_axis: str | None, shape: Mapping[str, Any]) -> dict[str, Extent]:
    """The shape with every size checked. Raises BadShape naming the axis, what it holds and what was expected."""
    known = tuple(axes)
    checked: dict[str, Extent] = {}
    for axis, value in shape.items():
        if axis not in known:
            raise BadShape(f"{op} has no axis {axis!r}. Its axes are {', '.join(known)}.")
        least = 0 if axis == token_axis else 1
        if isinstance(value, int) and not isinstance(value, bool):
            if value < least:
                raise BadShape(f"{axis}={value} of {op} must be at least {least}.")
            checked[axis] = value
            continue
        pair = tuple(value) if isinstance(value, (tuple, list)) else ()
        if (
            axis == token_axis
            and len(pair) == 2
            and all(isinstance(end, int) for end in pair)
            and 0 <= pair[0] <= pair[1]
        ):
            checked[axis] = (pair[0], pair[1])
            continue
        form = "a whole number or a pair (lowest, highest)" if axis == token_axis else "a whole number"
        raise BadShape(f"{axis}={value!r} of {op} must be {form}.")
    return checked
