"""The activations on an NVIDIA GPU: csrc/activations.cu, compiled on this machine, one launch a call.

For each op of the contract a function a declared rounding: ``<op>_fp32_mul``, ``<op>_cast_before_mul`` for the gated
ones, ``<op>`` for the others; ``bind_...``, ``compile_...`` and ``warmup_...`` for the Kernel's hooks. The CUDA
formula of an op is its line in csrc/formulas.cuh, under the op's name without ``_and_mul``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from ...contracts.activation_table import ACTIVATIONS
from ...registry.value import Value
from . import activation_geometry, launch
from .activation_geometry import (
    MOST_ACCESSES,
    Geometry,
    access_bytes,
    alignment_of,
    choose,
    division,
    most_threads,
)
from .compiler import vector_bytes
from .rows_of_tensors import Rows, capability_of, in_parts, require_gpu, signed, sm_count, uniform_rows

if TYPE_CHECKING:
    from torch import Tensor

    from ...device import Capability, Device
    from ..compile_job import CompileJob

SOURCE, KERNEL, SIGNATURE = "activations", "activation", "PPiiiiiqq"
DTYPES = {"bfloat16": ("bf16", 2), "float16": ("fp16", 2), "float32": ("fp32", 4)}
COMMON_H = (2048, 4096, 8192)
COMMON_M = (1, 16, 256, 4096, 16384)

Defines = tuple[tuple[str, "str | int"], ...]
Call = Callable[..., None]


class Variant(Value):
    """An op in one rounding order."""

    op: str
    gated: bool
    order: str

    @property
    def name(self) -> str:
        return f"{self.op}_{self.order}" if self.gated else self.op

    def defines(self, dtype: str, geometry: Geometry, access: int) -> Defines:
        """What csrc/activations.cu is compiled with."""
        return (
            ("ACCESS_BYTES", access),
            ("ACT", self.op.removesuffix("_and_mul")),
            ("DTYPE", DTYPES[dtype][0]),
            ("GATED", int(self.gated)),
            *geometry.memory,
            ("ROUNDS", 2 if self.order == "cast_before_mul" and self.gated else 1),
            ("STORES", geometry.stores.upper()),
            ("UNROLL", geometry.unroll),
        )


VARIANTS: Mapping[str, Variant] = {
    variant.name: variant
    for activation in ACTIVATIONS
    for order in (("fp32_mul", "cast_before_mul") if activation.gated else ("fp32_mul",))
    for variant in (Variant(activation.name, activation.gated, order),)
}


def __getattr__(name: str) -> Any:
    for prefix, make in (("bind_", _bind), ("compile_", _jobs), ("warmup_", _warmup), ("", _run)):
        if name.startswith(prefix) and (variant := VARIANTS.get(name.removeprefix(prefix))) is not None:
            return partial(make, variant)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# calls


def _run(variant: Variant, x: Tensor, weights: None = None, *, config: Any = None, out: Tensor | None = None) -> Tensor:
    """act(gate) * up, or act(x), [..., H], into ``out`` where it is given. ``config``: a Geometry or its name."""
    _check_of(variant.op)(x, out)
    index = require_gpu(variant.op, x)
    if out is None:
        out = x.new_empty((*x.shape[:-1], x.shape[-1] // 2) if variant.gated else tuple(x.shape))
    if out.numel():
        key = (variant.name, x.dtype, x.shape, x.stride(), out.stride(), index, str(config))
        call = _calls.get(key)
        if call is None:
            if len(_calls) > 4096:
                _calls.clear()
            call = _calls[key] = bound(variant, x, out, geometry_of(config))
        call(x, out)
    return out


_calls: dict[tuple[Any, ...], Call] = {}


@cache
def _check_of(op: str) -> Callable[..., None]:
    from ...contracts import activations_math

    return activations_math.check_of(op)


def geometry_of(config: Any) -> Geometry | None:
    return Geometry.parse(config) if isinstance(config, str) else config


def _bind(variant: Variant, scalars: Mapping[str, Any], x: Tensor, out: Tensor) -> Call:
    """``call(x, out)`` for tensors of these shapes, strides, dtype and device; all were checked."""
    return bound(variant, x, out) if out.numel() else _nothing


def _nothing(*_: Any) -> None:
    """There is no row."""


def bound(
    variant: Variant, x: Tensor, out: Tensor, geometry: Geometry | None = None, *, fast: bool | None = None
) -> Call:
    """``call(x, out)``; with that geometry and with or without fast math, where they are given."""
    index, width = x.device.index, out.shape[-1]
    dtype = str(x.dtype).removeprefix("torch.")
    item = DTYPES[dtype][1]
    (to,) = uniform_rows(out)
    runs = list(uniform_rows(x))
    if not variant.gated and len(runs) == 1 and out.numel() < MOST_ACCESSES and _is_one_run(runs[0], to, width):
        width, runs, to = out.numel(), [Rows(0, 0, 1, 0)], Rows(0, 0, 1, 0)  # rows without gaps are one long row
    known = alignment_of(
        *(item * count for run in runs for count in (width, run.offset, run.stride, to.stride)),
    )

    def launches(alignment: int) -> Call:
        made = list(_launches(variant, dtype, index, width, runs, to, min(known, alignment), geometry, fast))
        if len(made) == 1:
            return made[0][2]

        def several(stream: int, from_: int, into: int) -> None:
            for from_offset, into_offset, one in made:
                one(stream, from_ + from_offset, into + into_offset)

        return several

    return _aligned(launches, index)


def _is_one_run(run: Rows, to: Rows, width: int) -> bool:
    return run.rows == 1 or run.stride == to.stride == width


def _launches(
    variant: Variant, dtype: str, index: int, width: int, runs: list[Rows], to: Rows, alignment: int,
    geometry: Geometry | None, fast: bool | None,
) -> Iterator[tuple[int, int, Call]]:  # fmt: skip
    """(bytes into x, bytes into out, launch(stream, x, out)) of a call whose pointers are aligned so."""
    item = DTYPES[dtype][1]
    capability, sms = capability_of(index), sm_count(index)
    for whole in runs:
        chosen = geometry or choose(
            variant.op, dtype, whole.rows * -(-width * item // vector_bytes(capability)), capability, sms
        )
        access = access_bytes(capability, item, alignment, chosen.share)
        per_row = width * item // access
        function = launch.function(SOURCE, KERNEL, variant.defines(dtype, chosen, access), index, fast=fast)
        launcher = launch.Launcher(function, SIGNATURE, block=chosen.threads, pdl=activation_geometry.OVERLAP)
        magic, shift = division(per_row)
        for run in in_parts(whole, max((MOST_ACCESSES - 1) // per_row, 1)):
            accesses = run.rows * per_row
            numbers = (accesses, per_row, signed(magic), shift, 0, run.stride, to.stride)
            call = launcher.bind(chosen.grid(accesses, sms), ..., ..., *numbers)
            yield run.offset * item, run.first * to.stride * item, call


def _aligned(launches: Callable[[int], Call], device_index: int) -> Call:
    """``call(x, out)`` of ``launches(alignment)``: tensors that lie at full alignment take the shortest way."""
    most = vector_bytes(capability_of(device_index))
    stream, mask = launch.stream_getter(), most - 1
    full = launches(most)
    others: dict[int, Call] = {}

    def call(x: Tensor, out: Tensor) -> None:
        a, b = x.data_ptr(), out.data_ptr()
        bits = (a | b) & mask
        if not bits:
            full(stream(device_index), a, b)
            return
        alignment = bits & -bits
        made = others.get(alignment)
        if made is None:
            made = others[alignment] = launches(alignment)
        made(stream(device_index), a, b)

    return call


# compile caches


def _jobs(variant: Variant, device: Device, dtype: str, shape: Mapping[str, Any]) -> list[CompileJob]:
    """What calls with such a dtype and shape will need: aligned tensors whose rows lie one behind the other."""
    from . import cache as disk

    assert device.capability is not None
    found = dict.fromkeys(needed(variant, device.capability, device.sm_count, dtype, shape))
    return [disk.job(SOURCE, KERNEL, dict(defines), device.capability) for defines in found]


def _warmup(variant: Variant, selection: Any, ms: Iterable[int]) -> None:
    """Load what aligned calls with these token counts need onto the current GPU. Without an H, what usual ones do."""
    import torch

    index = torch.cuda.current_device()
    dtype, hidden = selection.problem.dtype or "bfloat16", selection.problem.shape.get("H")
    for m in ms:
        for defines in needed(variant, capability_of(index), sm_count(index), dtype, {"M": m, "H": hidden}):
            launch.function(SOURCE, KERNEL, defines, index)


def needed(
    variant: Variant, capability: Capability, sms: int, dtype: str, shape: Mapping[str, Any]
) -> Iterator[Defines]:
    """The kernels for these sizes, a repeated one included; of an axis that is left out its usual sizes."""
    item, widest = DTYPES[dtype][1], vector_bytes(capability)
    for hidden in sizes(shape.get("H"), COMMON_H):
        for rows in sizes(shape.get("M"), COMMON_M):
            width = hidden if variant.gated else rows * hidden
            accesses = (rows if variant.gated else 1) * -(-width * item // widest)
            geometry = choose(variant.op, dtype, accesses, capability, sms)
            yield variant.defines(
                dtype, geometry, access_bytes(capability, item, alignment_of(width * item), geometry.share)
            )


def sizes(given: Any, usual: tuple[int, ...]) -> list[int]:
    """The sizes asked for; of a range its ends and the powers of two between, where another geometry may begin."""
    if given is None:
        return list(usual)
    if isinstance(given, int):
        return [given]
    low, high = given
    return sorted({low, high, *(1 << i for i in range(40) if low < 1 << i < high)})


assert most_threads(4) == 512, "csrc/activations.cu says so too"
