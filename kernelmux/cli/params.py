"""Option types the commands share."""

from __future__ import annotations

import re
from typing import Any

import click

from kernelmux.errors import BadShape

Extent = int | tuple[int, int]

_PAIR = re.compile(r"(?P<axis>[A-Za-z_][A-Za-z0-9_]*)\s*=\s*(?P<low>\d+)(?:\s*\.\.\s*(?P<high>\d+))?")
_FORM = "Write it like E=128,N=384,K=2048,topk=8, with M=1..512 for a range."
_LARGEST = 2**31 - 1  # Triton indexes rows with int32


def parse_shape(text: str) -> dict[str, Extent]:
    """Read "E=128,N=384,M=1..512": axis to extent, or to (low, high). Raises BadShape, naming the pair that is off."""
    shape: dict[str, Extent] = {}
    for pair in text.split(","):
        found = _PAIR.fullmatch(pair.strip())
        if found is None:
            what = f"{pair.strip()!r} is not axis=number" if pair.strip() else "a pair is empty"
            raise BadShape(f"--shape {text!r}: {what}. {_FORM}")
        axis, low = found["axis"], int(found["low"])
        if axis in shape:
            raise BadShape(f"--shape {text!r}: {axis} is given twice. {_FORM}")
        high = int(found["high"]) if found["high"] else low
        if high > _LARGEST:
            raise BadShape(f"--shape {text!r}: {axis} is above {_LARGEST}, the largest extent a kernel can index.")
        if high < low:
            raise BadShape(
                f"--shape {text!r}: the range {axis}={low}..{high} runs backwards. Write the smaller end first."
            )
        if high == 0 and axis != "M":
            raise BadShape(f"--shape {text!r}: {axis} must be at least 1. {_FORM}")
        shape[axis] = (low, high) if found["high"] else low
    return shape


class ShapeParam(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on only
    """``--shape E=128,N=384,K=2048,topk=8``."""

    name = "shape"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Extent]:
        return value if isinstance(value, dict) else parse_shape(str(value))


SHAPE = ShapeParam()
