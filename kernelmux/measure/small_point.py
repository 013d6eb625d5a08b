"""One problem of a small op (axes M and H) and the tensors to time it on: random, never zero, drawn on the GPU."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..registry import Op
from ..registry.lazy import load

AXES = ("M", "H")
GLOBAL_SCALE = 4e-3  # of values about 1 that become NVFP4: the largest of many by 448 * 6
_ARGUMENT = re.compile(r"(Tensor\??|int|float|bool|str)\s+(\w+)(?:\s*=\s*([^,]+))?")


@dataclass(frozen=True, slots=True)
class Point:
    """An op at M rows of hidden size H. ``options`` are numbers for arguments that are not at their default."""

    op: str
    m: int
    h: int
    dtype: str = "bfloat16"
    options: Mapping[str, Any] = field(default_factory=dict)

    def brief(self) -> str:
        said = "".join(f", {name}={value}" for name, value in self.options.items())
        return f"{self.op} M={self.m} H={self.h} {self.dtype}{said}"


@dataclass(frozen=True, slots=True)
class Inputs:
    """The arguments of one call by name, in the order of the op's schema, and tensors for its results."""

    given: Mapping[str, Any]
    outs: tuple[Tensor, ...]

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """What the schema calls tensors, None where one is left out."""
        return tuple(value for value in self.given.values() if value is None or isinstance(value, Tensor))

    @property
    def scalars(self) -> dict[str, Any]:
        return {k: v for k, v in self.given.items() if not (v is None or isinstance(v, Tensor))}

    def poison(self) -> None:
        """Fill the results with NaN, so that what is not written is seen."""
        for out in self.outs:
            poison(out)


def poison(out: Tensor) -> None:
    """Every element NaN, also of the 8-bit floats that fill_ does not take."""
    if out.dtype.itemsize == 1:
        out.view(torch.uint8).fill_(0x7F)  # NaN of e4m3fn
    else:
        out.fill_(float("nan"))


def small_ops(ops: Any) -> list[Op]:
    """Those of ``ops`` that this room can draw inputs for: rows of one hidden size, nothing quantized beforehand."""
    return [op for op in ops if tuple(op.axes) == AXES and op.token_axis == "M" and op.schemes == {"none"}]


def check_op(op: Op, known: Any) -> Op:
    """Raise UsageError unless the op is one of the small ones."""
    if op not in small_ops([op]):
        names = ", ".join(other.name for other in small_ops(known))
        raise UsageError(f"{op.name} has the axes {', '.join(op.axes)}; only ops of M and H are timed here: {names}.")
    return op


def draw(op: Op, point: Point, sets: int, device: torch.device | str, seed: int = 0) -> list[Inputs]:
    """``sets`` independent sets of arguments and results. Contiguous rows; norm weights around 1."""
    generator = torch.Generator(device=device).manual_seed(seed)
    return [_one(op, point, torch.device(device), generator) for _ in range(sets)]


def bytes_moved(inputs: Inputs) -> tuple[int, int]:
    """(read, written): every input tensor once, every result once."""
    read = sum(t.numel() * t.element_size() for t in inputs.tensors if t is not None)
    return read, sum(out.numel() * out.element_size() for out in inputs.outs)


def _one(op: Op, point: Point, device: torch.device, generator: torch.Generator) -> Inputs:
    dtype = getattr(torch, point.dtype)
    width = point.h * widening(op)
    given: dict[str, Any] = {}
    for kind, name, default in arguments(op):
        if not kind.startswith("Tensor"):
            given[name] = point.options.get(name, _scalar(kind, default))
        elif kind == "Tensor?":
            number = point.options.get(name)
            given[name] = None if number is None else torch.tensor([number], device=device, dtype=torch.float32)
        elif name in op.weights:
            weight = torch.empty(point.h, device=device, dtype=torch.float32)
            given[name] = weight.normal_(1.0, 0.25, generator=generator).to(dtype)
        elif name == "global_scale":
            number = point.options.get(name, GLOBAL_SCALE)
            given[name] = torch.tensor([number], device=device, dtype=torch.float32)
        else:
            rows = torch.empty(point.m, width, device=device, dtype=dtype)
            given[name] = rows.normal_(0.0, 2.0 if name == "residual" else 1.0, generator=generator)
    made = load(op.meta)(**given)
    outs = made if isinstance(made, tuple) else (made,)
    return Inputs(given, tuple(torch.empty_like(out, device=device) for out in outs))


@lru_cache(maxsize=64)
def arguments(op: Op) -> tuple[tuple[str, str, str | None], ...]:
    """(kind, name, default) of each argument of the op's schema, in order."""
    inside = op.schema[op.schema.index("(") + 1 : op.schema.index(") ->")]
    return tuple((kind, name, default) for kind, name, default in _ARGUMENT.findall(inside))


def _scalar(kind: str, default: str | None) -> Any:
    if kind == "bool":
        return default == "True"
    if kind == "str":
        return (default or "").strip().strip("'\"")
    return {"int": int, "float": float}[kind](default or 0)


@lru_cache(maxsize=64)
def widening(op: Op) -> int:
    """How many times H the rows of x are wide: 2 for a gated activation."""
    wide = 1 << 20
    return wide // int(load(op.problem)(torch.empty(1, wide, device="meta"), None)["H"])
