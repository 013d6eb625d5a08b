"""Launches of the small ops: what one is (``Launch``), and a call that costs the host little more than the driver does.

Triton's own dispatcher looks at every argument of every call. A bound call knows all but the addresses, so it goes to
the compiled kernel itself where this release of Triton is known to take that (3.6); to the dispatcher elsewhere, and
where an address is no longer a multiple of 16. Profilers that hook Triton's launches do not see the former.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import TYPE_CHECKING, Any, NamedTuple

from ...contracts.tensor_checks import row_stride
from . import jit_guard
from .small_rules import vector

if TYPE_CHECKING:
    from torch import Tensor

    from ...device import Device
    from ..compile_job import CompileJob

Call = Callable[..., None]


class Gpu(NamedTuple):
    """What a launch asks of the GPU. ``capability`` "9.0"; "" where there is none."""

    capability: str
    sms: int

    @property
    def number(self) -> tuple[int, int]:
        major, _, minor = self.capability.partition(".")
        return int(major or 0), int(minor or 0)

    @property
    def pdl(self) -> bool:
        """Whether a kernel may start before the one ahead of it has ended."""
        return self.number >= (9, 0)

    @property
    def converts_e4m3(self) -> bool:
        return self.number >= (8, 9)


class Rows(NamedTuple):
    """A tensor as its rows: how many, how wide, elements from one to the next, bytes of an element."""

    rows: int
    width: int
    stride: int
    itemsize: int


class Launch(NamedTuple):
    """One launch but for its addresses; the kernel takes ``places``, ``scalars`` and ``constants``, in this order."""

    kernel: Any
    places: tuple[int | None, ...]  # which tensor of the call each pointer is; None: a pointer that is not read
    as_bytes: tuple[int, ...]  # tensors whose elements the kernel knows as bytes
    scalars: tuple[int | float, ...]
    constants: dict[str, Any]
    grid: int
    warps: int
    stages: int
    pdl: bool

    def options(self) -> dict[str, Any]:
        chosen: dict[str, Any] = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": False}
        if self.pdl:
            chosen["launch_pdl"] = True
        return chosen


Plan = Callable[[Mapping[str, Any], Sequence["Rows | None"], Gpu, Any], Launch]
"""(scalars of the call, its tensors as rows, GPU, tile or None) -> the launch. Pure."""


def nothing(*tensors: Tensor | None) -> None:
    """What a call on no rows does."""


def unit_of(itemsize: int, *strides: int) -> int:
    """The widest vector that no row of these strides breaks, in elements."""
    return gcd(vector(itemsize), *strides)


def programs(tiles: int, per_sm: int, sms: int) -> int:
    return min(tiles, per_sm * sms) if per_sm else tiles


def rows_of(tensor: Tensor | None) -> Rows | None:
    """None for no tensor. Raises ValueError for rows that lie at no one stride."""
    if tensor is None:
        return None
    width = tensor.shape[-1] if tensor.dim() else 1
    stride = row_stride(tensor) if tensor.dim() else 0
    if stride is None:
        raise ValueError(f"rows at strides {tensor.stride()}")
    rows = tensor.numel() // max(width, 1)
    # A single row is taken as one of many side by side, so that it is computed by the same code as they.
    return Rows(rows, width, width if rows == 1 else stride, tensor.itemsize)


@lru_cache(maxsize=64)
def gpu_of(kind: str, index: int | None) -> Gpu:
    import torch

    if kind != "cuda":
        return Gpu("", 1)
    properties = torch.cuda.get_device_properties(index)
    nvidia = torch.version.hip is None
    return Gpu(f"{properties.major}.{properties.minor}" if nvidia else "", properties.multi_processor_count)


def bind(plan: Plan, scalars: Mapping[str, Any], tensors: Sequence[Tensor | None], tile: Any = None) -> Call:
    """A call(*tensors) for tensors of just these shapes, strides, dtypes and this device.

    Compiles and loads the kernel; raises FrozenError where that may not happen any more.
    """
    x = tensors[0]
    assert x is not None
    if not x.numel():
        return nothing
    copied = [nth for nth, t in enumerate(tensors) if t is not None and t.dim() and row_stride(t) is None]
    if copied:
        return _with_copies(plan, scalars, tensors, tile, copied)
    launch = plan(scalars, [rows_of(t) for t in tensors], gpu_of(x.device.type, x.device.index), tile)
    jit_guard.install()
    return _bound(launch, tensors, x.device)


def _with_copies(
    plan: Plan, scalars: Mapping[str, Any], tensors: Sequence[Tensor | None], tile: Any, copied: list[int]
) -> Call:
    """For inputs whose rows lie at no one stride: each call copies them. Outs are never so (``require_out``)."""

    def packed(given: Sequence[Tensor | None]) -> list[Tensor | None]:
        return [t.contiguous() if nth in copied and t is not None else t for nth, t in enumerate(given)]

    inner = bind(plan, scalars, packed(tensors), tile)
    return lambda *given: inner(*packed(given))


def _bound(launch: Launch, tensors: Sequence[Tensor | None], device: Any) -> Call:
    dispatched = _dispatched(launch)
    if device.type != "cuda":
        return dispatched
    import torch

    used = sorted({place for place in launch.places if place is not None})
    aligned = not any(tensors[nth].data_ptr() & 15 for nth in used)  # type: ignore[union-attr]
    with torch.cuda.device(device.index):
        compiled = launch.kernel.warmup(
            *_arguments(launch, tensors), grid=(launch.grid,), **launch.constants, **launch.options()
        )
        compiled = compiled.result() if hasattr(compiled, "result") else compiled
        entry = _entry(compiled, launch) if aligned else None
    guarded = torch.cuda.device_count() > 1
    if entry is None:
        return _on_device(dispatched, device.index) if guarded else dispatched
    start, head, tail = entry
    call: Call = _template(len(tensors), launch.places, guarded)(
        start, head, tail, launch.grid, device.index, torch._C._cuda_getCurrentRawStream, torch._C._cuda_getDevice,
        dispatched, lambda *given: _on_device(call, device.index)(*given),
    )  # fmt: skip
    return call


def _arguments(launch: Launch, tensors: Sequence[Tensor | None]) -> list[Any]:
    import torch

    given = [t.view(torch.uint8) if nth in launch.as_bytes and t is not None else t for nth, t in enumerate(tensors)]
    return [*(given[0] if place is None else given[place] for place in launch.places), *launch.scalars]


def _dispatched(launch: Launch) -> Call:
    grid, keywords = (launch.grid,), {**launch.constants, **launch.options()}
    return lambda *tensors: launch.kernel[grid](*_arguments(launch, tensors), **keywords)


def _on_device(call: Call, index: int) -> Call:
    import torch

    def elsewhere(*tensors: Tensor | None) -> None:
        with torch.cuda.device(index):
            call(*tensors)

    return elsewhere


def _entry(compiled: Any, launch: Launch) -> tuple[Any, tuple[Any, ...], tuple[Any, ...]] | None:
    """(C function, its arguments between the stream and the kernel's own, those after the pointers), if known."""
    import triton

    runner = compiled.run  # loads the kernel
    if not triton.__version__.startswith("3.6.") or type(runner).__name__ != "CudaLauncher":
        return None
    if runner.global_scratch_size or runner.profile_scratch_size:
        return None
    head = (
        compiled.function, runner.launch_cooperative_grid, runner.launch_pdl, None, None,
        compiled.packed_metadata, None, None, None,
    )  # fmt: skip
    return runner.launch, head, (*launch.scalars, *launch.constants.values())


@lru_cache(maxsize=64)
def _template(count: int, places: tuple[int | None, ...], guarded: bool) -> Callable[..., Call]:
    """A function that makes the call for ``count`` tensors: a loop over them would cost as much as the launch."""
    given = ", ".join(f"t{nth}" for nth in range(count))
    used = sorted({place for place in places if place is not None})
    pointers = ", ".join("0" if place is None else f"p{place}" for place in places)
    lines = [
        "def make(start, head, tail, grid, index, stream, current, dispatched, elsewhere):",
        f"    def call({given}):",
        *(["        if current() != index:", f"            return elsewhere({given})"] if guarded else []),
        *(f"        p{nth} = t{nth}.data_ptr()" for nth in used),
        f"        if ({' | '.join(f'p{nth}' for nth in used)}) & 15:",
        f"            return dispatched({given})",
        f"        start(grid, 1, 1, stream(index), *head, {pointers}, *tail)",
        "    return call",
    ]
    space: dict[str, Any] = {}
    exec("\n".join(lines), space)
    made: Callable[..., Call] = space["make"]
    return made


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """One declared kernel: its launch as a pure function, and what the registry asks of a kernel, made of that."""

    op: str
    plan: Plan
    run: Callable[..., Any]
    no_rows: Call = nothing  # what a call without rows has to do all the same

    def bind(self, scalars: Mapping[str, Any], *tensors: Tensor | None) -> Call:
        """The call for tensors like these: x and the others in the schema's order, then the outs."""
        x = tensors[0]
        return bind(self.plan, scalars, tensors) if x is not None and x.numel() else self.no_rows

    def compile(self, device: Device, dtype: str, shape: Mapping[str, Any]) -> Iterator[CompileJob]:
        """What calls with contiguous tensors of these sizes need; common sizes where ``shape`` names none."""
        from .small_compile import jobs

        return jobs(self.op, self.plan, device, dtype, shape)

    def warmup(self, selection: Any, ms: Iterable[int]) -> None:
        """Compile and load what calls with these row counts need. Raises DeviceNotFound where torch sees no GPU."""
        from .small_compile import warm

        warm(self, selection, ms)


_kept: dict[Any, Call] = {}
_MOST_KEPT = 4096


def call(plan: Plan, scalars: Mapping[str, Any], tensors: Sequence[Tensor | None], tile: Any = None) -> None:
    """Bind, or take the call that was bound for tensors like these, and run it."""
    about = [(t.shape, t.stride(), t.dtype, t.device) if t is not None else None for t in tensors]
    key = (plan, tile, *scalars.values(), *about)
    bound = _kept.get(key)
    if bound is None:
        if len(_kept) >= _MOST_KEPT:
            _kept.clear()
        bound = _kept[key] = bind(plan, scalars, tensors, tile)
    bound(*tensors)
