"""Calls: what an op does with a call it has not seen, and the launches it has bound for those it has.

A call is first checked in full, then a kernel is selected for it and, where the kernel can ``bind``, a launch made for
just these shapes, strides and dtypes; a guard on the tensors says which later calls it serves. A kernel that cannot
bind is called through its Selection, which then is what is kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import BadShape, UsageError
from ..policies.select import asked, select_backend, variables
from ..registry import Op, epoch
from ..registry.lazy import load
from . import face
from .guards import Check, guard_of, is_plain, needs_gradient
from .signature import Signature

LIMIT = 4096  # keys a table; about 2 KB each
_ALIKE = 8  # calls kept for one key: other strides, other dtypes, with and without inference mode

Entry = tuple[Check, Callable[..., Any], bool]  # guard, launch, whether no tensor requires grad
Table = dict[Any, tuple[Entry, ...]]


class Tables:
    """Entries by key: ``fresh`` for calls that return new tensors, ``into`` for those that write given ones.

    ``apart`` holds such pairs for what an override block or the environment asks for.
    """

    def __init__(self) -> None:
        self.fresh: Table = {}
        self.into: Table = {}
        self.apart: dict[Any, tuple[Table, Table]] = {}

    def of(self, wish: Any) -> tuple[Table, Table]:
        """(fresh, into) under this override and environment; None is neither."""
        if wish is None:
            return self.fresh, self.into
        if len(self.apart) >= LIMIT:
            self.apart.clear()
        return self.apart.setdefault(wish, ({}, {}))

    def clear(self) -> None:
        self.fresh.clear()
        self.into.clear()
        self.apart.clear()


class Calls:
    """The calls of one op: ``eager`` from Python, ``dispatched`` from torch's dispatcher.

    The two keep their own tables: below the dispatcher the thread's dispatch keys are others, so no guard fits both.
    ``dispatcher(*arguments, *outs)`` is set by whoever registers the op with torch.
    """

    def __init__(self, op: Op, signature: Signature):
        self.op, self.signature = op, signature
        self.variables = variables(op.name)
        self.eager, self.below = Tables(), Tables()
        self.dispatcher: Callable[..., Any] | None = None
        self._check = load(op.check) if op.check else None
        self._shape_of = load(op.problem)
        self._meta = load(op.meta)
        self._scheme_of = load(op.scheme_of) if op.scheme_of else None
        self._allocating = face.allocating(signature) if op.outs else ""
        epoch.listen(self.forget)
        epoch.listen_op(lambda name: self.forget() if name == op.name else None)

    def forget(self) -> None:
        """Bind anew at the next calls."""
        self.eager.clear()
        self.below.clear()

    # the two ways in

    def call(self, arguments: tuple[Any, ...], outs: tuple[Any, ...]) -> Any:
        """A call from Python that no bound launch serves."""
        given = tuple(out for out in outs if out is not None)
        if given and len(given) < len(outs):
            raise self.partly()
        self.admit(arguments, given)
        tensors = self._tensors(arguments) + given
        pairs = zip(self.signature.arguments, arguments, strict=True)
        if not all(argument.plain(value) for argument, value in pairs) or not is_plain(tensors):
            assert self.dispatcher is not None
            return self.dispatcher(*arguments, *outs)
        return self._run(self.eager, arguments, given)

    def dispatched(self, arguments: tuple[Any, ...], outs: tuple[Any, ...]) -> Any:
        """A call from torch's dispatcher that no bound launch serves. With outs it returns nothing."""
        self.admit(arguments, outs)
        result = self._run(self.below, arguments, outs)
        return None if outs else result

    def partly(self) -> UsageError:
        """The error for a call that gives some of its outs."""
        names = self.op.outs
        return UsageError(f"{self.op.name} writes {' and '.join(names)}: give all of them or none.")

    def admit(self, arguments: Sequence[Any], outs: Sequence[Any] = ()) -> None:
        """Raise for what no check of an op looks at: BadShape for a tensor left out, UsageError for a gradient.

        torch's dispatcher takes None for any tensor. No op has a gradient formula, so a call that autograd would have
        to record is refused.
        """
        tensors = (*self._tensors(tuple(arguments)), *outs)
        for argument, tensor in zip(self.signature.tensors, tensors, strict=False):
            if tensor is None and not argument.optional:
                raise BadShape(f"{self.op.name}: {argument.name} must be a tensor, not None.")
        names = (*(argument.name for argument in self.signature.tensors), *self.op.outs)
        asking = [name for name, asks in zip(names, needs_gradient(tensors), strict=False) if asks]
        if not asking:
            return
        raise UsageError(
            f"{self.op.name} has no gradient: it is for inference, and {', '.join(asking)} require"
            f"{'s' if len(asking) == 1 else ''} grad. Call it under torch.no_grad() or torch.inference_mode()."
        )

    # what they share

    def apart(self, tables: Tables) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """What looks launches up under the override block and environment of this call, for the written functions."""
        fresh, into = tables.of(asked(self.variables))
        return fresh.get, into.get

    def _tensors(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        pairs = zip(self.signature.arguments, arguments, strict=True)
        return tuple(value for argument, value in pairs if argument.is_tensor)

    def _run(self, tables: Tables, arguments: tuple[Any, ...], outs: tuple[Any, ...]) -> Any:
        tensors = self._tensors(arguments)
        table = tables.of(asked(self.variables))[1 if outs else 0]
        key = face.key_of(self.signature, arguments)
        present = [tensor for tensor in (*tensors, *outs) if tensor is not None]
        known = (call for check, call, _ in table.get(key, ()) if check(*present))  # another thread may have been first
        call = next(known, None) or self._learn(tables, table, key, arguments, outs)
        result = call(*tensors, *outs)
        return _given_back(outs) if outs else result

    def _learn(
        self, tables: Tables, table: Table, key: Any, arguments: tuple[Any, ...], outs: tuple[Any, ...]
    ) -> Callable[..., Any]:
        """Check the call, choose and bind a kernel, remember the launch for calls like this one."""
        before = epoch.value
        settled = {a.name: a.settled(value) for a, value in zip(self.signature.arguments, arguments, strict=True)}
        if self._check is not None:
            self._check(**settled, **dict(zip(self.op.outs, outs, strict=False)))
        tensors = self._tensors(arguments)
        device = tensors[0].device
        with _current(device):
            call = self._bound(settled, tensors, outs)
        if not outs and tables is self.below:
            call = _unaliased(call)
        call = _on_device(call, device)
        if before == epoch.value:
            if len(table) >= LIMIT:
                table.clear()
            present = [tensor for tensor in (*tensors, *outs) if tensor is not None]
            entry = (guard_of(*present), call, not any(tensor.requires_grad for tensor in present))
            table[key] = (entry, *table.get(key, ()))[:_ALIKE]
        return call

    def _bound(self, settled: dict[str, Any], tensors: tuple[Any, ...], outs: tuple[Tensor, ...]) -> Callable[..., Any]:
        """The launch for a call that has passed its check: ``call(*tensors, *outs)``."""
        op = self.op
        scalars = {argument.name: settled[argument.name] for argument in self.signature.scalars}
        x, weights, rest = self._split(settled)
        quant = self._scheme_of(**settled) if self._scheme_of is not None else None
        selection = select_backend(
            op.name, device=x.device, quant=quant, dtype=x.dtype, shape=self._shape_of(x, _alone(weights, op), **rest),
            activation=rest.get("activation"),
        )  # fmt: skip
        selection.check()  # may give it another kernel
        kernel = selection.declaration
        whole = kernel.prepare is None and kernel.configs is None and not (op.check_values and _checked_mode())
        layouts = self._layouts(settled) if op.outs else []
        if layouts and not any(0 in shape for shape, _, _ in layouts) and kernel.bind is not None and whole:
            made = outs or tuple(torch.empty_strided(s, st, dtype=d, device=x.device) for s, st, d in layouts)
            call = load(kernel.bind, f"running {kernel.name}")(scalars, *tensors, *made)
        elif layouts and all(0 in shape for shape, _, _ in layouts):
            call = _nothing
        else:
            return self._through(selection, scalars, bool(outs))
        if outs:
            return call
        around = {"call": call, "empty": _empty_on(x.device)}
        around |= {f"layout{i}": layout for i, layout in enumerate(layouts)}
        return face.make("allocating", self._allocating, around)

    def _split(self, settled: dict[str, Any]) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """(x, the weights by name, everything else)."""
        rest = dict(settled)
        x = rest.pop(self.signature.arguments[0].name)
        names = [*self.op.weights, *(name for name in self.op.optional_weights if name in rest)]
        return x, {name: rest.pop(name) for name in names}, rest

    def _through(self, selection: Any, scalars: dict[str, Any], writes: bool) -> Callable[..., Any]:
        """A call of the Selection itself, for a kernel that does not bind."""
        names = tuple(argument.name for argument in self.signature.tensors) + (self.op.outs if writes else ())

        def call(*tensors: Any) -> Any:
            x, weights, rest = self._split(dict(zip(names, tensors, strict=True)))
            return selection(x, selection.prepare(**weights) if weights else None, **rest, **scalars)

        return call

    def _layouts(self, settled: dict[str, Any]) -> list[tuple[tuple[int, ...], tuple[int, ...], torch.dtype]]:
        """Shape, strides and dtype of every result, as the op's meta function says."""
        shadows = {name: _shadow(value) if isinstance(value, Tensor) else value for name, value in settled.items()}
        results = self._meta(**shadows)
        found = results if isinstance(results, (tuple, list)) else (results,)
        return [(tuple(one.shape), tuple(one.stride()), one.dtype) for one in found]


def _given_back(outs: tuple[Any, ...]) -> Any:
    return outs[0] if len(outs) == 1 else outs


def _alone(weights: dict[str, Any], op: Op) -> Any:
    """The weights as an op's problem function takes them: itself where there is one, else a tuple."""
    given = tuple(weights[name] for name in op.weights)
    return given if len(given) > 1 else next(iter(given), None)


def _checked_mode() -> bool:
    return os.environ.get("KERNELMUX_CHECKED", "") not in ("", "0")


def _shadow(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _nothing(*_: Any) -> None:
    """There is no row: nothing to write."""


def _unaliased(call: Callable[..., Any]) -> Callable[..., Any]:
    """A call whose results are never its arguments: the dispatcher's schema says that they are new."""

    def apart(*tensors: Any) -> Any:
        results = call(*tensors)
        if isinstance(results, (tuple, list)):
            return tuple(_copied(result, tensors) for result in results)
        return _copied(results, tensors)

    return apart


def _copied(result: Any, tensors: tuple[Any, ...]) -> Any:
    return result.clone() if any(result is tensor for tensor in tensors) else result


def _empty_on(device: torch.device) -> Callable[..., Tensor]:
    """``empty(shape, strides, dtype)`` there; the one torch.compile's own code allocates with costs half as much."""
    from torch._C._dynamo import guards

    quick: Callable[..., Tensor] | None = getattr(guards, f"_empty_strided_{device.type}", None)
    return quick if quick is not None and device.type in ("cpu", "cuda") else partial(_empty, device)


def _empty(device: torch.device, shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(shape, strides, dtype=dtype, device=device)


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Make it the current GPU for a while, where there are several."""
    several = device.type == "cuda" and torch.cuda.device_count() > 1
    return torch.cuda.device(device) if several else nullcontext()


def _on_device(call: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """A call that runs on the tensors' GPU, whichever is the current one. Costs nothing where there is but one."""
    if device.type != "cuda" or torch.cuda.device_count() < 2:
        return call
    current, index = torch._C._cuda_getDevice, device.index

    def there(*tensors: Any) -> Any:
        if current() == index:
            return call(*tensors)
        with torch.cuda.device(index):
            return call(*tensors)

    return there
