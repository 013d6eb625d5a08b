"""A contract's own examples as what a kernel is checked on: for ops that nobody draws at a problem's sizes.

Imported only where torch is about to be used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import BadShape, UsageError
from ..policies.selection import Selection
from ..registry.lazy import load
from .subject import ODD_FLOOR, Subject, as_tuple, limits_of, place


def examples(selection: Selection) -> Iterator[Subject]:
    """Each example of the op that this kernel can run, its rows taken in turn for any number of rows."""
    from ..contracts.nvfp4_judge import as_judged

    op, problem = selection.op, selection.problem
    reference, where = load(op.reference), place(selection)
    promises = selection.declaration.numerics.promises
    check = load(op.check) if op.check else None
    if op.scheme_of is None and problem.scheme.name != "none":
        return  # examples of what is quantized would say so
    try:
        calls = list(load(op.examples)(device=str(where), dtype=getattr(torch, problem.dtype or "bfloat16")))
    except (TypeError, AttributeError, UsageError):  # an op of another package, with examples of its own kind
        return
    scheme_of = load(op.scheme_of) if op.scheme_of else None
    for given in calls:
        first = next(iter(given.values()))
        if not isinstance(first, Tensor) or first.dim() < 1 or not first.numel():
            continue
        if given.get("activation", problem.activation) != problem.activation:
            continue
        if scheme_of is not None and scheme_of(**given) != problem.scheme.name:
            continue
        names = [name for name in (*op.weights, *op.optional_weights) if isinstance(given.get(name), Tensor)]
        weights = {name: given[name] for name in names}
        rest = {name: value for name, value in given.items() if name not in (*op.weights, *op.optional_weights)}
        alone = [given[name] for name in op.weights]
        shape = load(op.problem)(
            first, tuple(alone) if len(alone) > 1 else next(iter(alone), None), **_without_first(rest)
        )
        sizes = {axis: size for axis, size in shape.items() if axis != op.token_axis}
        own = shape.get(op.token_axis) if op.token_axis else None

        def call(
            m: int, mixed: bool, nth: int, rest: dict[str, Any] = rest, weights: dict[str, Tensor] = weights,
            own: int | None = own,
        ) -> dict[str, Any]:  # fmt: skip
            if own is None or m == own:
                return dict(rest)
            made = _resampled(rest, m)
            if check is not None:
                check(**made, **weights)
            return made

        def want(given: Mapping[str, Any], weights: Mapping[str, Tensor] = weights) -> tuple[Tensor, ...]:
            return as_tuple(reference(**as_judged(promises, {**given, **weights})))

        yield Subject(sizes, weights, call, want, limits_of(op, problem, ODD_FLOOR), own_m=own)


def _without_first(given: Mapping[str, Any]) -> dict[str, Any]:
    return dict(list(given.items())[1:])


def _resampled(given: Mapping[str, Any], m: int) -> dict[str, Any]:
    """The call with m rows: those of its first tensor, and of all that have as many, in turn. Raises BadShape."""
    first = next(iter(given.values()))
    if first.dim() != 2:
        raise BadShape(f"an example of {list(first.shape)} has no rows to be taken in turn")
    rows = first.shape[0]
    made = {}
    for name, value in given.items():
        if isinstance(value, Tensor) and value.dim() >= 1 and value.shape[0] == rows:
            value = value[torch.arange(m, device=value.device) % rows].contiguous()
        made[name] = value
    return made
