"""The callable face: ``km.ops.fused_moe(x, w1, w2, ...)`` selects a kernel, remembers the choice and runs it.

Each op is also ``torch.ops.kernelmux.<name>``, registered on first use with the op's schema and meta function, so that
it can be traced, exported and compiled. For inference: no op has a gradient formula.

A kernel that wants its weights in a layout of its own converts them at every call here. Where that matters, select
once, keep what ``Selection.prepare`` gives, and call the Selection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .errors import MissingPackage, UnknownOp
from .policies.select import select_backend
from .registry import Op
from .registry.discovery import registry
from .registry.lazy import load

_NAMESPACE = "kernelmux"
_libraries: list[Any] = []  # torch drops a registration with its Library object


def __getattr__(name: str) -> Callable[..., Any]:
    known = registry()
    if name.startswith("__") or name not in known.names():
        # AttributeError is what hasattr() and completion expect; the words are UnknownOp's.
        raise AttributeError(str(UnknownOp(name, known.names())))
    function = _register(known.op(name))
    globals()[name] = function
    return function


def __dir__() -> list[str]:
    return list(registry().names())


def _register(op: Op) -> Callable[..., Any]:
    """Define the torch op and return its overload packet."""
    try:
        import torch
    except ImportError as error:
        raise MissingPackage("torch", f"Running {op.name}", "pip install 'kernelmux[torch]'") from error
    library = torch.library.Library(_NAMESPACE, "FRAGMENT")
    library.define(op.schema)
    packet = getattr(torch.ops.kernelmux, op.name)
    arguments = packet.default._schema.arguments
    names = tuple(argument.name for argument in arguments)
    defaults = {argument.name: argument.default_value for argument in arguments if argument.has_default_value()}
    library.impl(op.name, _implementation(op, names, defaults), "CompositeExplicitAutograd")
    torch.library.register_fake(f"{_NAMESPACE}::{op.name}", load(op.meta), lib=library)
    _libraries.append(library)
    result: Callable[..., Any] = packet
    return result


def _implementation(op: Op, names: tuple[str, ...], defaults: dict[str, Any]) -> Callable[..., Any]:
    """Select by what the arguments are, then run. torch leaves out trailing arguments that equal their default."""
    shape_of = load(op.problem)
    check = load(op.check) if op.check else None
    scheme_of = load(op.scheme_of) if op.scheme_of else None
    first = names[0]
    optional = tuple(name for name in op.optional_weights if name in names)

    def run(*args: Any, **keywords: Any) -> Any:
        given = {**defaults, **dict(zip(names, args, strict=False)), **keywords}
        if check is not None:
            check(**given)
        quant = scheme_of(**given) if scheme_of is not None else None
        x = given.pop(first)
        tensors = {name: given.pop(name) for name in op.weights}
        weights = tuple(tensors.values()) if len(tensors) > 1 else next(iter(tensors.values()), None)
        tensors.update((name, given.pop(name)) for name in optional)
        selection = select_backend(
            op.name, device=x.device, quant=quant, dtype=x.dtype, shape=shape_of(x, weights, **given),
            activation=given.get("activation"),
        )  # fmt: skip
        return selection(x, selection.prepare(**tensors) if tensors else None, **given)

    return run
