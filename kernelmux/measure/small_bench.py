"""Races over M and H, and what is made of them: the work behind ``kernelmux bench`` and the benchmark scripts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ..device import Device
from ..errors import NoKernel, UsageError
from ..policies.policy import Policy
from ..policies.resolve import resolve, speaks_of
from ..policies.select import select_backend
from ..policies.selection import Selection
from ..quant import Scheme
from ..registry import Kernel, Op, Problem
from ..registry.discovery import registry
from ..registry.packages import Packages

if TYPE_CHECKING:
    from .small import Race
    from .small_point import Point

USUAL_M = (1, 16, 256, 4096)
USUAL_H = (2048, 4096, 8192)


class Stand(Protocol):
    """Who times: a ``SmallStand`` on a live GPU."""

    def race(self, op: Op, point: Point, contestants: Sequence[Any], rounds: int = 25, refused: Any = None) -> Race: ...


def races(
    stand: Stand,
    device: Device,
    op_names: Sequence[str],
    ms: Sequence[int],
    hs: Sequence[int],
    dtype: str = "bfloat16",
    backends: Collection[str] = (),
    peers: bool = True,
    rounds: int = 25,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Race]:
    """Race every op at every M and H, one after the other. ``backends``: only these, or kernels of these names.

    Raises UsageError for an op without the axes M and H, or for a word that names no kernel.
    """
    from . import small_contestants as who
    from .small_point import Point, check_op

    known = registry()
    ops = [check_op(known.op(name), known.ops()) for name in op_names]
    for op in ops:
        _check_words(op, backends, known.kernels(op.name))
    for op in ops:
        declared = [k for k in known.kernels(op.name) if not backends or any(speaks_of(b, k) for b in backends)]
        for h in hs:
            for m in ms:
                point = Point(op.name, m, h, dtype)
                contestants, refused = who.kernels(op, point, device, declared)
                if peers:
                    contestants += [other for other in (who.flashinfer(op), who.compiled(op)) if other is not None]
                say(f"{point.brief()}: {len(contestants)} contestants")
                yield stand.race(op, point, [*contestants, *who.copies()], rounds, refused)


def _check_words(op: Op, backends: Collection[str], kernels: Sequence[Kernel]) -> None:
    for word in backends:
        if not any(word in (kernel.backend, kernel.name) for kernel in kernels):
            has = ", ".join(sorted({kernel.backend for kernel in kernels}))
            raise UsageError(f"{op.name} has no kernel on {word!r}. It has: {has}.")


def selected(point: Point, device: Device) -> dict[str, Any]:
    """What select_backend takes for the point now, and by what it decides."""
    return _said(lambda: select_backend(point.op, device=device, dtype=point.dtype, shape={"M": point.m, "H": point.h}))


def selected_by_policy(point: Point, device: Device) -> dict[str, Any]:
    """What it would take where nothing has been measured."""
    known = registry()
    problem = Problem(point.op, Scheme.of(None), point.dtype, {"M": point.m, "H": point.h})
    policy = Policy.builtin(point.op)
    return _said(lambda: resolve(point.op, device, Packages.installed(), problem, policy=policy, registry=known))


def _said(choose: Callable[[], Selection]) -> dict[str, Any]:
    try:
        found = choose()
    except NoKernel as error:
        return {"kernel": None, "source": None, "why": str(error).splitlines()[0]}
    return {"kernel": found.kernel, "source": found.source, "why": found.why}


def named_kernels(op_names: Sequence[str]) -> dict[str, Kernel]:
    """Every kernel of these ops by name."""
    return {kernel.name: kernel for name in op_names for kernel in registry().kernels(name)}
