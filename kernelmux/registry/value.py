"""Value: small immutable values, cheap to declare.

Behaves like a frozen, slotted dataclass, with the same constructor, equality, hash and repr. Making such a class
takes 20 us where ``dataclass`` generates code for 400 us: with one class a requirement kind that is 6 ms of a first
selection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_):
        return lambda cls: cls


T = TypeVar("T")
V = TypeVar("V", bound="Value")


class _Fresh:
    """A default made anew for every value."""

    def __init__(self, make: Callable[[], Any]):
        self.make = make


def fresh(make: Callable[[], T]) -> T:
    """For a mutable default: ``seen: dict[str, int] = fresh(dict)``."""
    made: Any = _Fresh(make)
    return made  # type: ignore[no-any-return]


class _Fields(type):
    """Turns the annotations of a class into slots, and their values into defaults."""

    def __new__(meta, name: str, bases: tuple[type, ...], space: dict[str, Any]) -> _Fields:
        own = tuple(space.get("__annotations__", {}))
        space["_defaults"] = {field: space.pop(field) for field in own if field in space}
        space["_fields"] = own
        space["__slots__"] = own
        space["__match_args__"] = own
        return super().__new__(meta, name, bases, space)


@dataclass_transform(frozen_default=True)
class Value(metaclass=_Fields):
    """Base of a value: its fields are the annotations of the class itself, in their order."""

    if TYPE_CHECKING:
        _fields: tuple[str, ...]
        _defaults: dict[str, Any]
    else:

        def __init__(self, *args, **named):
            fields = self._fields
            if len(args) > len(fields):
                raise TypeError(f"{type(self).__name__} takes {len(fields)} values, not {len(args)}")
            given = dict(zip(fields, args, strict=False))
            twice = given.keys() & named.keys()
            values = {**self._defaults, **given, **named}
            if twice or values.keys() != set(fields):
                wrong = ", ".join(sorted(twice | (values.keys() ^ set(fields))))
                raise TypeError(f"{type(self).__name__}({', '.join(fields)}): missing, unknown or given twice: {wrong}")
            for field in fields:
                value = values[field]
                object.__setattr__(self, field, value.make() if type(value) is _Fresh else value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: {name} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: {name} cannot be deleted")

    def but(self: V, **changes: Any) -> V:
        """The same value with other values in some fields."""
        return type(self)(**{**dict(zip(self._fields, self._values(), strict=True)), **changes})

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, field) for field in self._fields)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self is other or self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), self._values()))

    def __repr__(self) -> str:
        inside = ", ".join(f"{field}={getattr(self, field)!r}" for field in self._fields)
        return f"{type(self).__name__}({inside})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._values()
