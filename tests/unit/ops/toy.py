"""A toy op with every kind of argument, a kernel that binds and one that does not; it counts what is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from kernelmux.contracts.tensor_checks import require_dtype, require_out, require_rows
from kernelmux.errors import BadShape
from kernelmux.ops import calls
from kernelmux.ops.torch_ops import register
from kernelmux.policies.select import override_in_force, select_backend
from kernelmux.registry import ANY, Kernel, Numerics, OnCapability, Op, Tolerance, discovery, epoch, frozen
from kernelmux.registry.discovery import registry
from kernelmux.registry.frozen import guard

_HERE = "tests.unit.ops.toy"
counts: dict[str, int] = {}
compiled: set[int] = set()  # widths that the binding kernel has a binary for


def _count(what: str) -> None:
    counts[what] = counts.get(what, 0) + 1


def reference(x: Tensor, shift: Tensor | None = None, by: float = 1.0, times: int = 1, *, mode: str = "add") -> Tensor:
    rows = x.float() * by * times
    return rows if shift is None else rows + (shift if mode == "add" else -shift)


def check(
    x: Tensor, shift: Tensor | None = None, by: float = 1.0, times: int = 1, *, mode: str = "add",
    out: Tensor | None = None,
) -> None:  # fmt: skip
    _count("check")
    require_rows("toy", "x", x)
    require_dtype("toy", "x", x, (torch.float32, torch.bfloat16))
    if shift is not None and (shift.dim() != 1 or shift.shape[0] != x.shape[-1]):
        raise BadShape(f"toy: shift must be [{x.shape[-1]}]; got {list(shift.shape)}.")
    if mode not in ("add", "subtract"):
        raise BadShape(f"toy: unknown mode {mode!r}.")
    require_out("toy", "out", out, tuple(x.shape), x.dtype, x.device)


def meta(x: Tensor, shift: Tensor | None = None, by: float = 1.0, times: int = 1, *, mode: str = "add") -> Tensor:
    check(x, shift, by, times, mode=mode)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def problem(x: Tensor, weights: Any = None, **_: Any) -> dict[str, int]:
    return {"M": x.numel() // x.shape[-1], "H": x.shape[-1]}


def run(x: Tensor, weights: Any, *, config: Any = None, out: Tensor | None = None, **options: Any) -> Tensor:
    _count("run")
    value = reference(x, **options).to(x.dtype)
    return value if out is None else out.copy_(value)


def bind(scalars: Any, x: Tensor, shift: Tensor | None, out: Tensor) -> Any:
    if x.shape[-1] not in compiled:
        guard(f"compile toy for H={x.shape[-1]}")
        compiled.add(x.shape[-1])
    _count("bind")
    described = (x.shape, x.stride(), x.dtype, out.stride())

    def call(x: Tensor, shift: Tensor | None, out: Tensor) -> None:
        assert (x.shape, x.stride(), x.dtype, out.stride()) == described, "a launch was used for another call"
        _count("call")
        out.copy_(reference(x, shift, **scalars).to(x.dtype))

    return call


def warm(selection: Any, ms: Any) -> None:
    compiled.add(selection.problem.shape["H"])


OP = Op(
    name="toy_scale",
    summary="x times by, times times, plus or minus shift",
    schema="toy_scale(Tensor x, Tensor? shift=None, float by=1.0, int times=1, *, str mode='add') -> Tensor",
    reference=f"{_HERE}:reference",
    meta=f"{_HERE}:meta",
    examples=f"{_HERE}:examples",
    problem=f"{_HERE}:problem",
    axes=("M", "H"),
    token_axis="M",
    schemes=frozenset({"none"}),
    dtypes=("float32", "bfloat16"),
    tolerance={"float32": Tolerance(rtol=1e-6, atol=0.0, why="one product")},
    check=f"{_HERE}:check",
    outs=("out",),
    inplace=(("out", "x"),),
)
BINDS = Kernel(
    name="toy.scale[jit_cuda]", op="toy_scale", backend="jit_cuda", load=f"{_HERE}:run", bind=f"{_HERE}:bind",
    warmup=f"{_HERE}:warm", requirements=(OnCapability(ANY),), numerics=Numerics(),
)  # fmt: skip
RUNS = Kernel(
    name="toy.scale[torch]", op="toy_scale", backend="torch", load=f"{_HERE}:run",
    requirements=(OnCapability(ANY),), numerics=Numerics(),
)  # fmt: skip


@cache
def _registered() -> Callable[..., Any]:
    return register(OP, "kernelmux_toy")


@contextmanager
def world() -> Iterator[Callable[..., Any]]:
    """``toy(x, shift, by, times, mode=, out=)`` while the op is registered; the kernel that binds is chosen."""
    registry().add(OP, BINDS, RUNS)

    def choose(op: str, **options: Any) -> Any:
        own = {} if op != OP.name or override_in_force() else {"backend": BINDS.name}
        return select_backend(op, **options, **own)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls, "select_backend", choose)
        epoch.bump()
        counts.clear()
        compiled.clear()
        yield _registered()
    frozen.set_frozen(False)
    discovery.forget()
    epoch.bump()
