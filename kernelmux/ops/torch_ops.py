"""Register an op with torch, in all its overloads, and make its Python function."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.autograd import profiler
from torch.overrides import has_torch_function_unary

from ..policies import select
from ..registry import Op
from ..registry.discovery import registry
from ..registry.frozen import guard
from ..registry.lazy import load
from . import face
from .calls import Calls, Tables
from .signature import Signature

NAMESPACE = "kernelmux"
# Ops that mutate, and whatever reads rows, want the strides they were traced with.
_TAGS = tuple(
    getattr(torch.Tag, name)
    for name in ("pt2_compliant_tag", "needs_exact_strides")
    if hasattr(torch.Tag, name)
)  # fmt: skip
_libraries: list[Any] = []  # torch drops a registration with its Library object


def register(op: Op, namespace: str = NAMESPACE) -> Callable[..., Any]:
    """Define ``torch.ops.kernelmux.<name>`` with its overloads; return ``km.ops.<name>``."""
    guard(f"register {namespace}::{op.name}", "by a call of it, or with km.warmup()")
    signature = Signature.of(op)
    calls = Calls(op, signature)
    library = torch.library.Library(namespace, "FRAGMENT")
    library.define(op.schema, tags=_TAGS)
    if op.outs:
        library.define(signature.out_schema, tags=_TAGS)
    if signature.inplace:
        library.define(signature.inplace_schema, tags=_TAGS)
    packet = getattr(getattr(torch.ops, namespace), op.name)
    names = tuple(argument.name for argument in signature.arguments)
    fake = _fakes(op, calls, names)
    written = {"default": face.kernel_of_default, "out": face.kernel_of_out, "inplace": face.kernel_of_inplace}
    overloads = packet.overloads()
    for overload in overloads:
        qualified = op.name if overload == "default" else f"{op.name}.{overload}"
        kernel = face.make(overload, written[overload](signature), _around(calls, calls.below, calls.dispatched))
        library.impl(qualified, kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{namespace}::{qualified}", fake[overload], lib=library)
    _libraries.append(library)
    around = {"default": packet.default}
    if op.outs:
        around |= {"out_": packet.out, "partly": calls.partly}
    if signature.inplace:
        around["inplace"] = packet.inplace
    dispatched = face.make(op.name, face.dispatched(signature), around)
    calls.dispatcher = dispatched
    function = face.make(op.name, face.public(signature), {
        "tracing": torch.compiler.is_dynamo_compiling,
        "dispatched": dispatched,
        "profiler": profiler,
        "intercepted": has_torch_function_unary,
        **_around(calls, calls.eager, calls.call),
    })  # fmt: skip
    return face.describe(function, op, signature, registry().kernels(op.name))


def _around(calls: Calls, tables: Tables, otherwise: Callable[..., Any]) -> dict[str, Any]:
    return {
        "override": select.override_in_force,
        "unset": select.environment_without,
        "VARIABLES": calls.variables,
        "recording": torch.is_grad_enabled,
        "FRESH": tables.fresh.get,
        "INTO": tables.into.get,
        "apart": partial(calls.apart, tables),
        "otherwise": otherwise,
    }


def _fakes(op: Op, calls: Calls, names: tuple[str, ...]) -> dict[str, Callable[..., Any]]:
    """The meta function of each overload. torch leaves out trailing arguments that equal their default."""
    meta = load(op.meta)
    check = load(op.check) if op.check else None
    signature = calls.signature
    defaults = {argument.name: argument.default for argument in signature.arguments if argument.has_default}

    def settle(args: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, Any]:
        given = {**defaults, **dict(zip(names, args, strict=False)), **keywords}
        calls.admit([given[name] for name in names], [given[out] for out in op.outs if out in given])
        return given

    def default(*args: Any, **keywords: Any) -> Any:
        return meta(**settle(args, keywords))

    def out(*args: Any, **keywords: Any) -> None:
        given = settle(args, keywords)
        if check is not None:
            check(**given)

    def inplace(*args: Any, **keywords: Any) -> None:
        given = settle(args, keywords)
        if check is not None:
            check(**given, **{out: given[argument] for out, argument in zip(op.outs, signature.inplace, strict=True)})

    return {"default": default, "out": out, "inplace": inplace}
