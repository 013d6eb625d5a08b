"""A library put together from a signature snapshot: every call is bound as the real function would bind it."""

from __future__ import annotations

import enum
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "data" / "signatures"


def snapshot(package: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{package}.json").read_text(encoding="utf-8"))


def signature(text: str) -> inspect.Signature:
    """``a, b, alpha=..., *, backend`` -> a signature."""
    return inspect.signature(eval(f"lambda {text}: None"))


@dataclass
class Call:
    """One call as an adapter made it."""

    function: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    bound: dict[str, Any] = field(default_factory=dict)


def install(
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    results: Mapping[str, Callable[[dict[str, Any]], Any]],
    facts: Mapping[str, Any] | None = None,
) -> list[Call]:
    """Put fake modules of the package in place; returns the list that calls are added to.

    ``results`` maps ``module:function`` to what it returns for its bound arguments, ``facts`` ``module:name`` to other
    attributes. A call that does not fit the snapshot raises TypeError, as it would in production.
    """
    calls: list[Call] = []
    signatures = snapshot(package)["signatures"]
    modules: dict[str, ModuleType] = {}

    def module(name: str) -> ModuleType:
        if name not in modules:
            modules[name] = ModuleType(name)
            modules[name].__path__ = []  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, name, modules[name])
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(module(parent), child, modules[name])
        return modules[name]

    def fake(name: str, text: str) -> Callable[..., Any]:
        def function(*args: Any, **kwargs: Any) -> Any:
            call = Call(name, args, kwargs)
            call.bound = dict(signature(text).bind(*args, **kwargs).arguments)
            calls.append(call)
            return results[name](call.bound) if name in results else None

        return function

    for name, text in signatures.items():
        place, _, attribute = name.partition(":")
        owner, _, method = attribute.rpartition(".")
        if not owner:
            setattr(module(place), attribute, fake(name, text))
            continue
        singleton = getattr(module(place), owner, None) or type(owner, (), {"get": classmethod(lambda cls: cls())})
        setattr(singleton, method, fake(name, text))
        setattr(module(place), owner, singleton)
    for name, fact in (facts or {}).items():
        place, _, attribute = name.partition(":")
        setattr(module(place), attribute, fact)
    return calls


class ActivationType(enum.IntEnum):
    Swiglu = 3
    Relu2 = 6


class WeightLayout(enum.IntEnum):
    MajorK = 0
    BlockMajorK = 2


class Fp8QuantizationType(enum.IntEnum):
    DeepSeekFp8 = 1


class SfLayout(enum.IntEnum):
    layout_linear = 2


FLASHINFER_FACTS = {
    "flashinfer:SfLayout": SfLayout,
    "flashinfer.fused_moe:ActivationType": ActivationType,
    "flashinfer.fused_moe:Fp8QuantizationType": Fp8QuantizationType,
    "flashinfer.fused_moe:ReLU2": type("ReLU2", (), {}),
    "flashinfer.fused_moe:SwiGLU": type("SwiGLU", (), {}),
    "flashinfer.fused_moe:WeightLayout": WeightLayout,
}
