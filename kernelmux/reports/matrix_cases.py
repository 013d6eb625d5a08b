"""What a matrix asks: every op under each of its schemes, in the ways that make a difference, on a shape in use."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from kernelmux.errors import UsageError
from kernelmux.reports.matrix import KINDS, Case, Cell

if TYPE_CHECKING:
    from kernelmux.device import Device
    from kernelmux.registry.op import Op
    from kernelmux.registry.problem import Problem

TOKENS = (1, 64, 4096)

# A shape in use for each op: experts of Qwen3-30B-A3B on two GPUs, layers of Qwen3-8B, relu2 of Nemotron-3 Nano.
_SHAPES: dict[str, dict[str, int]] = {
    "fused_moe": {"E": 128, "N": 384, "K": 2048, "topk": 8},
    "router_gemm": {"N": 128, "K": 2048},
    "topk": {"E": 128, "topk": 8},
    "relu2": {"H": 1856},
}
_USUAL = {"H": 4096, "N": 4096, "K": 4096, "E": 128, "topk": 8}
_OTHER_AXIS = 1024

# Promises a caller may demand, where they change what can be chosen.
_DEMANDS: dict[str, tuple[str, ...]] = {
    "rms_norm": ("cast_before_mul", "batch_invariant"),
    "fused_add_rms_norm": ("cast_before_mul", "batch_invariant", "residual_fp32"),
    "gated_rms_norm": ("cast_before_mul",),
    "silu_and_mul": ("no_fast_math", "cast_before_mul"),
    "rms_norm_fp8": ("static_scale",),
    "topk": ("deepseek_v3_routing",),
}
_ACTIVATIONS = ("silu", "relu2")  # a gated one and one that is not


def shape_of(op: Op) -> tuple[tuple[str, int], ...]:
    """Axis and size, without the token axis."""
    known = _SHAPES.get(op.name, _USUAL)
    return tuple((axis, known.get(axis, _OTHER_AXIS)) for axis in op.axes if axis != op.token_axis)


def dtype_of(op: Op, device: Device) -> str | None:
    """The usual dtype: bfloat16, float16 below 8.0, which has no bf16 units; else the op's first."""
    old = device.capability is not None and device.capability.major < 8
    usual = "float16" if old else "bfloat16"
    return usual if usual in op.dtypes else next(iter(op.dtypes), None)


def cases(op: Op, dtype: str | None, demands: bool = True) -> Iterator[Case]:
    """Every scheme of the op; a gated and another activation for experts; the numerics a caller may demand."""
    shape = shape_of(op)
    for scheme in sorted(op.schemes):
        if op.activations:
            for activation in (a for a in _ACTIVATIONS if a in op.activations):
                yield Case(op.name, scheme, activation, dtype, shape, activation)
            continue
        yield Case(op.name, scheme, "", dtype, shape)
        for word in _DEMANDS.get(op.name, ()) if demands else ():
            yield Case(op.name, scheme, f"demanding {word}", dtype, shape, None, (word,))


def problem_of(case: Case, op: Op, m: int | tuple[int, int]) -> Problem:
    """The problem of a case at M tokens."""
    from kernelmux.quant import Scheme
    from kernelmux.registry.problem import Problem

    tokens: dict[str, Any] = {op.token_axis: m} if op.token_axis else {}
    return Problem(
        case.op, Scheme.of(case.scheme), case.dtype, {**tokens, **dict(case.shape)}, case.activation,
        frozenset(case.demands),
    )  # fmt: skip


# -- filters

_BEFORE = ("op", "scheme", "variant", "dtype", "device", "m", "kind")
_AFTER = ("backend", "kernel", "evidence", "source", "status")
KEYS = (*_BEFORE, *_AFTER)
_FORM = "Write it like op=rms_norm, scheme=fp8_*,nvfp4, device!=t4 or backend=triton."


@dataclass(frozen=True, slots=True)
class Filter:
    """``key=glob,glob`` or ``key!=glob``; a bare glob is of ops. Several filters must all hold."""

    key: str
    globs: tuple[str, ...]
    wanted: bool = True
    text: str = ""

    @classmethod
    def parse(cls, text: str) -> Filter:
        """Raises UsageError for a key nobody knows, or for nothing behind it."""
        key, sign, globs = text.partition("=")
        wanted = not key.endswith("!")
        key = key.rstrip("!").strip().lower()
        if not sign:
            key, globs = "op", text
        parts = tuple(part for part in map(str.strip, re.split(r",(?![^\[]*\])", globs)) if part)  # not in [a, b]
        if key not in KEYS:
            raise UsageError(f"--filter {text!r}: there is nothing called {key!r} to go by. Known: {', '.join(KEYS)}.")
        if not parts:
            raise UsageError(f"--filter {text!r} says no value. {_FORM}")
        return cls(key, parts, wanted, text)

    def takes(self, value: object) -> bool:
        """Whether the filter lets a value of its key through."""
        said = "" if value is None else str(value)
        return any(fits(said, glob) for glob in self.globs) is self.wanted


def fits(text: str, glob: str) -> bool:
    """Whether a glob means this text; it may be the text itself, whose brackets are then no set of characters."""
    return text == glob or fnmatchcase(text, glob)


def takes(filters: Iterable[Filter], **values: object) -> bool:
    """Whether every filter of these keys lets its value through."""
    return all(one.takes(values[one.key]) for one in filters if one.key in values)


def takes_cell(filters: Sequence[Filter], cell: Cell) -> bool:
    """Whether a finished cell passes them all."""
    if not filters:
        return True
    case, outcome = cell.case, cell.outcome
    status = cell.result.status if cell.result else None
    return takes(
        filters, op=case.op, scheme=case.scheme, variant=case.variant, dtype=case.dtype, device=cell.device, m=cell.m,
        kind=cell.kind, backend=outcome.backend, kernel=outcome.kernel, evidence=outcome.evidence,
        source=outcome.source, status=status,
    )  # fmt: skip


# -- shards and order

T = Any


def shard_of(items: Sequence[T], shard: tuple[int, int] | None) -> list[T]:
    """Part ``index`` (from 1) of ``of``: every ``of``-th item."""
    if shard is None:
        return list(items)
    index, of = shard
    return list(items[index - 1 :: of])


def plan_id(*parts: object) -> str:
    """The identity of a run's whole list, the same for every shard of it."""
    return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()[:16]


def in_order(cells: Iterable[Cell], devices: Sequence[str]) -> tuple[Cell, ...]:
    """The order in which cells are shown: by kind and op, then as the catalog lists the devices, then by M."""
    places = {name: place for place, name in enumerate(devices)}

    def key(cell: Cell) -> tuple[Any, ...]:
        case = cell.case
        return (
            KINDS.index(cell.kind), case.op, case.scheme, case.variant, case.shape, places.get(cell.device, 1 << 30),
            case.dtype or "", cell.m, cell.outcome.kernel or "",
        )  # fmt: skip

    return tuple(sorted(cells, key=key))


Progress = Callable[[str], None]
