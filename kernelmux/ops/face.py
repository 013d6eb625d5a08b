"""The Python functions of an op, written out from its signature as dataclasses write theirs.

A call of ``km.ops.rms_norm`` that is like an earlier one looks the launch up and runs it; anything else goes to
``otherwise``. What is written for ``rms_norm`` reads, in short::

    def rms_norm(x, weight, eps=1e-06, weight_bias=0.0, *, out=None):
        if tracing():
            return dispatched(x, weight, eps, weight_bias, out)
        if not profiler._is_profiler_enabled and not intercepted(x):
            into = INTO if override() is None and unset(VARIABLES) else apart()
            for check, call, free in into((x.shape, eps, weight_bias), ()):
                if check(x, weight, out) and (free or not recording()):
                    call(x, weight, out)
                    return out
        return otherwise((x, weight, eps, weight_bias), (out,))

The functions are closures: torch.compile follows those, and no name of theirs can be confused with an argument's.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from ..registry import Kernel, Op
from .signature import Argument, Signature

Function = Callable[..., Any]

_TABLES = [
    "if override() is None and unset(VARIABLES):",
    "    fresh, into = FRESH, INTO",
    "else:",
    "    fresh, into = apart()",
]


def make(name: str, source: str, around: Mapping[str, Any]) -> Function:
    """The function of this name that ``source`` defines, with ``around`` as the variables it closes over."""
    made: Function = _built(name, source, tuple(around))(**around)
    made.__module__, made.__qualname__ = "kernelmux.ops", name
    return made


@cache
def _built(name: str, source: str, around: tuple[str, ...]) -> Function:
    """``build(**around)``, which returns the function; compiled once for all that are written alike."""
    whole = f"def build({', '.join(around)}):\n{_indented(source)}\n    return {name}\n"
    file = f"<kernelmux.ops {name} {hash(whole) & 0xFFFFFFFF:08x}>"
    linecache.cache[file] = (len(whole), None, whole.splitlines(keepends=True), file)  # tracebacks and inspect
    space: dict[str, Any] = {"__name__": __name__}
    exec(compile(whole, file, "exec"), space)
    built: Function = space["build"]
    return built


def public(signature: Signature) -> str:
    """``km.ops.<name>``: returns the results, in ``out`` where one is given.

    Closes over tracing, dispatched, profiler, intercepted, override, unset, VARIABLES, FRESH, INTO, apart, recording
    and otherwise.
    """
    first = signature.tensors[0].name
    return "\n".join(
        [
            f"def {signature.name}({_parameters(signature, [f'{name}=None' for name in signature.outs])}):",
            "    if tracing():",
            f"        return dispatched({_listed([*_names(signature.arguments), *signature.outs])})",
            f"    if not profiler._is_profiler_enabled and not intercepted({first}):",
            *_indent([*_TABLES, *_lookups(signature)], 2),
            f"    return otherwise({_tuple(_names(signature.arguments))}, {_tuple(signature.outs)})",
        ]
    )


def kernel_of_default(signature: Signature) -> str:
    """What torch's dispatcher calls for ``name``; closes over what ``public`` does from override on."""
    bare = Signature(signature.name, signature.arguments, (), signature.returns, ())
    return _kernel("default", bare, _parameters(bare), bare.arguments, ())


def kernel_of_out(signature: Signature) -> str:
    """What torch's dispatcher calls for ``name.out``."""
    return _kernel("out", signature, _parameters(signature, signature.outs), signature.arguments, signature.outs)


def kernel_of_inplace(signature: Signature) -> str:
    """What torch's dispatcher calls for ``name.inplace``: the arguments are their own outs."""
    return _kernel("inplace", signature, _parameters(signature), signature.arguments, signature.inplace)


def _kernel(name: str, signature: Signature, parameters: str, given: Iterable[Argument], outs: Iterable[str]) -> str:
    outs = tuple(outs)
    returned = "" if outs else "return "
    return "\n".join(
        [
            f"def {name}({parameters}):",
            *_indent([*_TABLES, *_matches(signature, outs, returns=not outs)], 1),
            f"    {returned}otherwise({_tuple(_names(given))}, {_tuple(outs)})",
        ]
    )


def dispatched(signature: Signature) -> str:
    """The call through torch's dispatcher, by position; closes over default, out_, inplace and partly.

    Where each out is the argument it may replace, the overload is ``inplace``: an output of ``out`` must not alias an
    input.
    """
    outs = signature.outs
    passed = [f"{a.name}={a.name}" if a.keyword else a.name for a in signature.arguments]
    lines = [f"def {signature.name}({_listed([*_names(signature.arguments), *outs])}):"]
    if outs:
        results = f"return {_result(outs)}"
        lines.append(f"    if {' and '.join(f'{name} is None' for name in outs)}:")
        lines.append(f"        return default({_listed(passed)})")
        if len(outs) > 1:
            lines.append(f"    if {' or '.join(f'{name} is None' for name in outs)}:")
            lines.append("        raise partly()")
        if signature.inplace:
            pairs = zip(outs, signature.inplace, strict=True)
            lines.append(f"    if {' and '.join(f'{out} is {argument}' for out, argument in pairs)}:")
            lines += [f"        inplace({_listed(passed)})", f"        {results}"]
        lines += [f"    out_({_listed([*passed, *(f'{name}={name}' for name in outs)])})", f"    {results}"]
    else:
        lines.append(f"    return default({_listed(passed)})")
    return "\n".join(lines)


def allocating(signature: Signature) -> str:
    """A bound call with its results made anew; closes over call, empty and layout0, layout1, ..."""
    tensors = _names(signature.tensors)
    return "\n".join(
        [
            f"def allocating({_listed(tensors)}):",
            *(f"    {name} = empty(*layout{i})" for i, name in enumerate(signature.outs)),
            f"    call({_listed([*tensors, *signature.outs])})",
            f"    return {_result(signature.outs)}",
        ]
    )


def repeated(places: tuple[int, ...]) -> str:
    """A guard of tensors some of which are one: ``places[i]`` is where the i-th stood first. Closes over check."""
    names = [f"t{i}" for i in range(len(places))]
    same = [f"t{i} is t{first}" for i, first in enumerate(places) if i != first]
    firsts = [f"t{i}" for i, first in enumerate(places) if i == first]
    return f"def repeated({_listed(names)}):\n    return {' and '.join(same)} and check({_listed(firsts)})"


def key_of(signature: Signature, arguments: tuple[Any, ...]) -> Any:
    """The key that the written functions look a call up by."""
    parts = [arguments[i] for i, argument in enumerate(signature.arguments) if not argument.is_tensor]
    parts += [arguments[i] is None for i, argument in enumerate(signature.arguments) if _may_lack(argument)]
    shape = next(
        value.shape for value, argument in zip(arguments, signature.arguments, strict=True) if argument.is_tensor
    )
    return (shape, *parts) if parts else shape


def describe(function: Function, op: Op, signature: Signature, kernels: Iterable[Kernel]) -> Function:
    """Give the public function its annotations and a docstring for ``help``."""
    result = "Tensor" if signature.returns == 1 else f"tuple[{', '.join(['Tensor'] * signature.returns)}]"
    function.__annotations__ = {
        **{argument.name: argument.annotation for argument in signature.arguments},
        **dict.fromkeys(signature.outs, "Tensor | None"),
        "return": result,
    }
    function.__doc__ = documentation(op, signature, kernels)
    return function


def documentation(op: Op, signature: Signature, kernels: Iterable[Kernel]) -> str:
    name = op.name
    backends = ", ".join(sorted({kernel.backend for kernel in kernels})) or "none"
    overloads = [f"torch.ops.kernelmux.{name}"]
    parts = [f"{op.summary[:1].upper()}{op.summary[1:]}.", f"Schema: ``{op.schema}``."]
    parts.append(f"Defined for {', '.join(op.dtypes)}; schemes: {', '.join(sorted(op.schemes))}. Backends: {backends}.")
    if op.outs:
        takers = " and ".join(f"``{out}``" for out in op.outs)
        verb = "takes the result and is" if len(op.outs) == 1 else "take the results (give both or neither) and are"
        pairs = ", ".join(f"``{out}`` may be ``{argument}`` itself" for out, argument in op.inplace)
        parts.append(
            f"{takers} {verb} returned: contiguous, or whole rows of a larger buffer.{f' {pairs}.' if pairs else ''}"
        )
        overloads += [f".{overload}" for overload in ("out", *(["inplace"] if signature.inplace else []))]
    parts.append(
        f"No gradient: call it under torch.no_grad() or torch.inference_mode(). Traceable as {', '.join(overloads)}."
    )
    parts.append(
        "Raises BadShape for arguments that do not fit (before anything runs), NoKernel where no kernel can run them, "
        "FrozenError after km.freeze() for what km.warmup() has not seen."
    )
    return "\n\n".join(parts) + "\n"


def _lookups(signature: Signature) -> list[str]:
    """Both kinds of a call: with every out given, or with none. Some of them is for ``otherwise`` to refuse."""
    outs = signature.outs
    if not outs:
        return _matches(signature, (), returns=True)
    return [
        f"if {' and '.join(f'{out} is not None' for out in outs)}:",
        *_indent(_matches(signature, outs, returns=True), 1),
        f"elif {' is '.join(outs)} is None:" if outs[1:] else "else:",
        *_indent(_matches(signature, (), returns=True), 1),
    ]


def _matches(signature: Signature, outs: tuple[str, ...], *, returns: bool) -> list[str]:
    """Look for a call with this key whose guard passes, and run it."""
    tensors = _names(signature.tensors)
    key = [f"{signature.tensors[0].name}.shape", *_names(signature.scalars)]
    key += [f"{argument.name} is None" for argument in signature.arguments if _may_lack(argument)]
    told = f"({_listed(key)})" if len(key) > 1 else key[0]
    call = f"call({_listed([*tensors, *outs])})"
    after = [call, f"return {_result(outs)}" if returns else "return"] if outs else [f"return {call}"]
    return [
        "try:",
        f"    found = {'into' if outs else 'fresh'}({told}, ())",
        "except (AttributeError, TypeError):",
        "    found = ()",
        "for check, call, free in found:",
        f"    if check({_given(signature, outs)}) and (free or not recording()):",
        *_indent(after, 2),
    ]


def _given(signature: Signature, outs: Iterable[str]) -> str:
    """The arguments of a guard: every tensor that is there."""
    lacking = [argument.name for argument in signature.arguments if _may_lack(argument)]
    names = [*_names(signature.tensors), *outs]
    if not lacking:
        return _listed(names)
    if len(lacking) == 1:
        without = [name for name in names if name != lacking[0]]
        return f"*({_tuple(without)} if {lacking[0]} is None else {_tuple(names)})"
    return f"*[tensor for tensor in {_tuple(names)} if tensor is not None]"


def _may_lack(argument: Argument) -> bool:
    return argument.is_tensor and argument.optional


def _parameters(signature: Signature, outs: Iterable[str] = ()) -> str:
    def written(argument: Argument) -> str:
        return f"{argument.name}={argument.default!r}" if argument.has_default else argument.name

    front = [written(argument) for argument in signature.arguments if not argument.keyword]
    behind = [*(written(argument) for argument in signature.arguments if argument.keyword), *outs]
    return _listed([*front, *(["*", *behind] if behind else [])])


def _names(arguments: Iterable[Argument]) -> list[str]:
    return [argument.name for argument in arguments]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _tuple(names: Iterable[str]) -> str:
    return f"({''.join(f'{name}, ' for name in names)})" if names else "()"


def _result(outs: Iterable[str]) -> str:
    return _listed(outs)


def _indent(lines: Iterable[str], depth: int) -> list[str]:
    return [f"{'    ' * depth}{line}" for line in lines]


def _indented(source: str) -> str:
    return "\n".join(_indent(source.splitlines(), 1))
