"""Signature: the arguments of an op as its schema has them, and the schemas of its overloads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from ..registry import Op

_PYTHON = {"ScalarType": "torch.dtype", "Tensor": "Tensor"}  # what an annotation says; other types say it themselves
_ACCEPTED: dict[str, tuple[type, ...]] = {
    "float": (float, int),
    "int": (int,),
    "bool": (bool,),
    "str": (str,),
    "ScalarType": (torch.dtype,),
}


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument: ``kind`` is Tensor, float, int, bool, str or ScalarType."""

    name: str
    kind: str
    optional: bool
    keyword: bool
    default: Any
    has_default: bool

    @property
    def is_tensor(self) -> bool:
        return self.kind == "Tensor"

    @property
    def annotation(self) -> str:
        return _PYTHON.get(self.kind, self.kind) + (" | None" if self.optional else "")

    def plain(self, value: Any) -> bool:
        """Whether torch's dispatcher would take this value, without converting it by rules of its own."""
        if value is None:
            return self.optional
        return isinstance(value, torch.Tensor) if self.is_tensor else type(value) in _ACCEPTED.get(self.kind, ())

    def settled(self, value: Any) -> Any:
        """The value as the dispatcher hands it on: a float where the schema says so."""
        return float(value) if self.kind == "float" and value is not None else value


@dataclass(frozen=True, slots=True)
class Signature:
    """The arguments of an op in the order of its schema, then the names of what takes its results."""

    name: str
    arguments: tuple[Argument, ...]
    outs: tuple[str, ...]
    returns: int
    inplace: tuple[str, ...]  # the argument that each out may be, in the order of outs; empty: no such overload

    @classmethod
    def of(cls, op: Op) -> Signature:
        """Raises RuntimeError (torch's own) for a schema that does not parse."""
        parsed = torch._C.parse_schema(op.schema)
        pairs = dict(op.inplace)
        arguments = tuple(
            Argument(
                name=given.name,
                kind=str(given.real_type).removeprefix("Optional[").removesuffix("]"),
                optional=str(given.type).startswith("Optional["),
                keyword=given.kwarg_only,
                default=given.default_value,
                has_default=given.has_default_value(),
            )
            for given in parsed.arguments
        )
        whole = bool(op.outs) and all(name in pairs for name in op.outs)
        return cls(
            op.name, arguments, op.outs, len(parsed.returns), tuple(pairs[name] for name in op.outs) if whole else ()
        )

    @property
    def tensors(self) -> tuple[Argument, ...]:
        return tuple(argument for argument in self.arguments if argument.is_tensor)

    @property
    def scalars(self) -> tuple[Argument, ...]:
        return tuple(argument for argument in self.arguments if not argument.is_tensor)

    @property
    def out_schema(self) -> str:
        """``name.out(..., *, Tensor(a!) out) -> ()``."""
        parts = [_in_schema(argument) for argument in self.arguments if not argument.keyword]
        parts.append("*")
        parts += [_in_schema(argument) for argument in self.arguments if argument.keyword]
        parts += [f"Tensor({letter}!) {name}" for letter, name in zip("abcdefgh", self.outs, strict=False)]
        return f"{self.name}.out({', '.join(parts)}) -> ()"

    @property
    def inplace_schema(self) -> str:
        """``name.inplace(Tensor(a!) x, ...) -> ()``: the results replace arguments."""
        letters = dict(zip(self.inplace, "abcdefgh", strict=False))
        parts, starred = [], False
        for argument in self.arguments:
            if argument.keyword and not starred:
                parts.append("*")
                starred = True
            parts.append(_in_schema(argument, letters.get(argument.name)))
        return f"{self.name}.inplace({', '.join(parts)}) -> ()"


def _in_schema(argument: Argument, letter: str | None = None) -> str:
    kind = f"Tensor({letter}!)" if letter else argument.kind
    text = f"{kind}{'?' if argument.optional else ''} {argument.name}"
    return f"{text}={_written(argument.default)}" if argument.has_default else text


def _written(value: Any) -> str:
    """A default in the words of a schema."""
    if isinstance(value, str):
        return f"'{value}'"
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"a schema has no word for {value}")
    return repr(value)
