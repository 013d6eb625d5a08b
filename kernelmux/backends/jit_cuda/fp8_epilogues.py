"""rms_norm_fp8 and silu_and_mul_fp8 on an NVIDIA GPU: csrc/fp8_epilogues.cu, compiled here, one launch a call.

How a row of rms_norm_fp8 is dealt out depends on its length and the GPU alone, never on the number of rows: the result
of a row is the same in any batch. No other thread reads what a thread of silu_and_mul_fp8 reads; it writes elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ...contracts.fp8_outputs import BLOCK
from ...errors import UsageError
from ...registry.value import Value
from . import activation_geometry, launch
from .activation_geometry import (
    MOST_ACCESSES,
    Geometry,
    alignment_of,
    choose,
    division,
    measured_row,
)
from .activations import COMMON_H, COMMON_M, DTYPES, Defines, geometry_of, sizes
from .compiler import vector_bytes
from .rows_of_tensors import capability_of, in_parts, require_gpu, signed, sm_count, uniform_rows

if TYPE_CHECKING:
    from torch import Tensor

    from ...device import Capability, Device
    from ..compile_job import CompileJob

SOURCE = "fp8_epilogues"
BLOCKS, BLOCKS_SIGNATURE = "block_scales", "PPPiiiiiqqq"
ROWS, ROWS_SIGNATURE = "row_scales", "PPPPPiifqqq"
QUICK = {BLOCKS: 0, ROWS: 1}  # for blocks it takes a third more registers
MOST_THREADS, MOST_HELD = 1024, 32  # values of x that a thread holds, so that nothing spills

Call = Callable[..., None]
_calls: dict[tuple[Any, ...], Call] = {}


# silu_and_mul_fp8


def silu_and_mul_fp8(
    x: Tensor,
    weights: None = None,
    *,
    config: Any = None,
    out: Tensor | None = None,
    scale_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(e4m3 [..., H], fp32 scales [..., H/128]) of x [..., 2H]. ``config``: a Geometry or its name."""
    import torch

    from ...contracts.activations_math import check_silu_and_mul_fp8

    check_silu_and_mul_fp8(x, out, scale_out)
    index = require_gpu("silu_and_mul_fp8", x)
    hidden = x.shape[-1] // 2
    if out is None:
        out = x.new_empty((*x.shape[:-1], hidden), dtype=torch.float8_e4m3fn)
    if scale_out is None:
        scale_out = x.new_empty((*x.shape[:-1], hidden // BLOCK), dtype=torch.float32)
    if out.numel():
        key = ("silu", x.dtype, x.shape, x.stride(), out.stride(), scale_out.stride(), index, str(config))
        _known(key, lambda: bound_blocks(x, out, scale_out, geometry_of(config)))(x, out, scale_out)
    return out, scale_out


def bind_silu_and_mul_fp8(scalars: Mapping[str, Any], x: Tensor, out: Tensor, scale_out: Tensor) -> Call:
    """``call(x, out, scale_out)`` for tensors of these shapes, strides, dtype and device; all were checked."""
    return bound_blocks(x, out, scale_out) if out.numel() else _nothing


def bound_blocks(
    x: Tensor, out: Tensor, scale_out: Tensor, geometry: Geometry | None = None, *, fast: bool | None = None
) -> Call:
    """``call(x, out, scale_out)``; with that geometry and with or without fast math, where they are given."""
    index, hidden = x.device.index, out.shape[-1]
    dtype = str(x.dtype).removeprefix("torch.")
    item = DTYPES[dtype][1]
    capability, sms = capability_of(index), sm_count(index)
    most = vector_bytes(capability)
    (to,), (scales,) = uniform_rows(out), uniform_rows(scale_out)
    runs = list(uniform_rows(x))
    known = alignment_of(item * hidden, *(item * count for run in runs for count in (run.offset, run.stride)))
    known_out = alignment_of(hidden, to.stride)
    elements = most // item
    per_row = hidden // elements

    def launches(alignment: int, alignment_out: int) -> Iterator[tuple[tuple[int, ...], Call]]:
        for whole in runs:
            chosen = geometry or choose("silu_and_mul_fp8", dtype, whole.rows * per_row, capability, sms)
            given = block_defines(dtype, chosen, elements, min(known, alignment), min(known_out, alignment_out))
            function = launch.function(SOURCE, BLOCKS, given, index, fast=fast)
            launcher = launch.Launcher(
                function, BLOCKS_SIGNATURE, block=chosen.threads, pdl=activation_geometry.OVERLAP
            )
            magic, shift = division(per_row)
            for run in in_parts(whole, max((MOST_ACCESSES - 1) // per_row, 1)):
                accesses = run.rows * per_row
                numbers = (accesses, per_row, signed(magic), shift, 0, run.stride, to.stride, scales.stride)
                call = launcher.bind(chosen.grid(accesses, sms), ..., ..., ..., *numbers)
                yield (run.offset * item, run.first * to.stride, run.first * scales.stride * 4), call

    bound = _aligned(launches, index, (most, elements))

    def call(x: Tensor, out: Tensor, scale_out: Tensor) -> None:
        a, b = x.data_ptr(), out.data_ptr()
        bound(a, b, a, b, scale_out.data_ptr())

    return call


def block_defines(dtype: str, geometry: Geometry, elements: int, alignment: int, alignment_out: int) -> Defines:
    """What csrc/fp8_epilogues.cu is compiled with for blocks."""
    name, item = DTYPES[dtype]
    return (
        ("ACCESS_BYTES", max(min(elements * item, alignment), item)),
        ("ACT", "silu"),
        ("DTYPE", name),
        ("ELEMENTS", elements),
        ("EPILOGUE", "BLOCK_SCALES"),
        *activation_geometry.FP8,
        ("OUT_BYTES", min(elements, alignment_out)),
        ("QUICK", QUICK[BLOCKS]),
        ("STORES", geometry.stores.upper()),
        ("UNROLL", geometry.unroll),
    )


# rms_norm_fp8


class RowGeometry(Value):
    """``lanes`` threads a row, ``rows`` rows side by side in a block. A row that no thread could hold is read again."""

    lanes: int
    rows: int = 1
    long: bool = False

    @property
    def name(self) -> str:
        """``256x1``; ``1024x1-long``."""
        return f"{self.lanes}x{self.rows}" + ("-long" if self.long else "")

    @staticmethod
    def parse(name: str) -> RowGeometry:
        """Raises UsageError for a name of another form."""
        found = re.fullmatch(r"(\d+)x(\d+)(-long)?", name)
        if found is None:
            raise UsageError(f"geometry {name!r} is not of the form 256x1 (threads a row x rows).")
        return RowGeometry(int(found[1]), int(found[2]), bool(found[3]))


def elements_of(hidden: int, item_bytes: int, capability: Capability) -> int:
    """Of a chunk: a full access, or the largest power of two that divides the row."""
    most = vector_bytes(capability) // item_bytes
    return min(most, hidden & -hidden)


def row_geometries(hidden: int, dtype: str, capability: Capability) -> tuple[RowGeometry, ...]:
    """What is worth timing for rows of that length, the default in front."""
    elements = elements_of(hidden, DTYPES[dtype][1], capability)
    chunks = hidden // elements
    found: dict[str, RowGeometry] = {}
    for held in (2, 1, 4, 3, 8, 16, 32):
        lanes = 32 * -(-chunks // (32 * held))
        if held * elements > MOST_HELD or lanes > MOST_THREADS:
            continue
        for rows in (4, 1, 8) if lanes == 32 else (1,):
            geometry = RowGeometry(lanes, rows)
            found.setdefault(geometry.name, geometry)
    return tuple(found.values()) or (RowGeometry(MOST_THREADS, 1, long=True),)


def row_geometry(hidden: int, dtype: str, capability: Capability) -> RowGeometry:
    """How rows of that length are dealt out, however many there are: as measured on that capability, or by default."""
    name = measured_row(str(capability), DTYPES[dtype][1], hidden)
    return RowGeometry.parse(name) if name else row_geometries(hidden, dtype, capability)[0]


def rms_norm_fp8(
    x: Tensor,
    weights: Tensor,
    *,
    scale: Tensor | None = None,
    eps: float = 1e-6,
    weight_bias: float = 0.0,
    config: Any = None,
    out: Tensor | None = None,
    scale_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(e4m3 [..., H], fp32 scale) of x [..., H]: the given scale, or one a row, [..., 1]."""
    import torch

    from ...contracts.norms_math import check_rms_norm_fp8

    check_rms_norm_fp8(x, weights, scale, eps, weight_bias, out, scale_out)
    index = require_gpu("rms_norm_fp8", x)
    if out is None:
        out = x.new_empty(x.shape, dtype=torch.float8_e4m3fn)
    if scale_out is None:
        scale_out = scale if scale is not None else x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    if out.numel():
        strides = (x.stride(), out.stride(), scale_out.stride())
        given = (scale is None, eps, weight_bias, str(config))
        geometry = RowGeometry.parse(config) if isinstance(config, str) else config
        call = _known(
            ("norm", x.dtype, x.shape, *strides, index, *given),
            lambda: bound_rows(x, weights, scale, out, scale_out, eps, weight_bias, geometry),
        )
        call(x, weights, scale, out, scale_out)
    elif scale is not None and scale_out is not scale:
        scale_out.copy_(scale)
    return out, scale_out


def bind_rms_norm_fp8(
    scalars: Mapping[str, Any], x: Tensor, weight: Tensor, scale: Tensor | None, out: Tensor, scale_out: Tensor
) -> Call:
    """``call(x, weight, scale, out, scale_out)`` for tensors of these shapes, strides, dtypes and this device."""
    eps, bias = scalars.get("eps", 1e-6), scalars.get("weight_bias", 0.0)
    if not out.numel():
        return _nothing if scale is None else _copy_scale
    return bound_rows(x, weight, scale, out, scale_out, eps, bias)


def bound_rows(
    x: Tensor, weight: Tensor, scale: Tensor | None, out: Tensor, scale_out: Tensor, eps: float, weight_bias: float,
    geometry: RowGeometry | None = None, *, fast: bool | None = None,
) -> Call:  # fmt: skip
    """``call(x, weight, scale, out, scale_out)``; with that geometry and fast math or not, where they are given."""
    index, hidden = x.device.index, x.shape[-1]
    dtype = str(x.dtype).removeprefix("torch.")
    item = DTYPES[dtype][1]
    capability = capability_of(index)
    elements = elements_of(hidden, item, capability)
    chosen = geometry or row_geometry(hidden, dtype, capability)
    (to,) = uniform_rows(out)
    scale_stride = next(iter(uniform_rows(scale_out))).stride if scale is None else 0
    runs = list(uniform_rows(x))
    known = alignment_of(item * elements, *(item * count for run in runs for count in (run.offset, run.stride)))
    known_out = alignment_of(elements, to.stride)

    def launches(alignment: int, alignment_out: int) -> Iterator[tuple[tuple[int, ...], Call]]:
        access, stored = min(known, alignment), min(known_out, alignment_out)
        given = row_defines(hidden, dtype, chosen, elements, access, stored, scale is not None, weight_bias)
        function = launch.function(SOURCE, ROWS, given, index, fast=fast)
        launcher = launch.Launcher(
            function, ROWS_SIGNATURE, block=chosen.lanes * chosen.rows, pdl=activation_geometry.OVERLAP
        )
        for run in runs:
            numbers = (run.rows, 0, float(eps), run.stride, to.stride, scale_stride)
            call = launcher.bind(-(-run.rows // chosen.rows), ..., ..., ..., ..., ..., *numbers)
            yield (run.offset * item, 0, 0, run.first * to.stride, run.first * scale_stride * 4), call

    bound = _aligned(launches, index, (elements * item, elements))

    def call(x: Tensor, weight: Tensor, scale: Tensor | None, out: Tensor, scale_out: Tensor) -> None:
        a, b, c = x.data_ptr(), weight.data_ptr(), out.data_ptr()
        given = 0 if scale is None else scale.data_ptr()
        bound(a | b, c, a, b, given, c, scale_out.data_ptr())

    return call


def row_defines(
    hidden: int, dtype: str, geometry: RowGeometry, elements: int, alignment: int, alignment_out: int, static: bool,
    weight_bias: float,
) -> Defines:  # fmt: skip
    """What csrc/fp8_epilogues.cu is compiled with for rows."""
    name, item = DTYPES[dtype]
    return (
        ("ACCESS_BYTES", max(min(elements * item, alignment), item)),
        ("DTYPE", name),
        ("ELEMENTS", elements),
        ("EPILOGUE", "ROW_SCALES"),
        ("HIDDEN", hidden),
        ("LANES", geometry.lanes),
        *activation_geometry.FP8,
        ("LONG", int(geometry.long)),
        ("OUT_BYTES", min(elements, alignment_out)),
        ("QUICK", QUICK[ROWS]),
        ("ROWS", geometry.rows),
        ("STATIC", int(static)),
        ("STORES", "KEEP"),
        ("WEIGHT_BIAS", int(weight_bias)),
    )


# what they share


def _known(key: tuple[Any, ...], make: Callable[[], Call]) -> Call:
    call = _calls.get(key)
    if call is None:
        if len(_calls) > 4096:
            _calls.clear()
        call = _calls[key] = make()
    return call


def _nothing(*_: Any) -> None:
    """There is no row."""


def _copy_scale(x: Tensor, weight: Tensor, scale: Tensor, out: Tensor, scale_out: Tensor) -> None:
    """There is no row, and still a scale to be given back."""
    scale_out.copy_(scale)


def _aligned(
    launches: Callable[[int, int], Iterator[tuple[tuple[int, ...], Call]]], index: int, widest: tuple[int, int]
) -> Call:
    """``bound(bits read from, bits written to, *pointers)``: by how addresses are aligned, at most to ``widest``."""
    stream = launch.stream_getter()
    most, most_out = widest
    mask, mask_out = most - 1, most_out - 1
    known: dict[tuple[int, int], Call] = {}

    def make(alignment: int, alignment_out: int) -> Call:
        made = list(launches(alignment, alignment_out))
        if len(made) == 1:
            return made[0][1]

        def several(stream: int, *pointers: int) -> None:
            for offsets, one in made:
                one(stream, *(pointer and pointer + offset for pointer, offset in zip(pointers, offsets, strict=True)))

        return several

    full = make(most, most_out)

    def bound(bits: int, bits_out: int, *pointers: int) -> None:
        bits, bits_out = bits & mask, bits_out & mask_out
        if not bits and not bits_out:
            full(stream(index), *pointers)
            return
        alignments = (bits & -bits or most, bits_out & -bits_out or most_out)
        made = known.get(alignments)
        if made is None:
            made = known[alignments] = make(*alignments)
        made(stream(index), *pointers)

    return bound


# compile caches


def compile_silu_and_mul_fp8(device: Device, dtype: str, shape: Mapping[str, Any]) -> list[CompileJob]:
    """What calls with such a dtype and shape will need: aligned tensors."""
    assert device.capability is not None
    return _jobs(BLOCKS, blocks_needed(device.capability, device.sm_count, dtype, shape), device.capability)


def compile_rms_norm_fp8(device: Device, dtype: str, shape: Mapping[str, Any]) -> list[CompileJob]:
    """What calls with rows of such a length will need, with a scale given and not: aligned tensors, weight_bias 0."""
    assert device.capability is not None
    return _jobs(ROWS, rows_needed(device.capability, dtype, shape), device.capability)


def warmup_silu_and_mul_fp8(selection: Any, ms: Iterable[int]) -> None:
    """Load what aligned calls with these token counts need onto the current GPU. Without an H, what usual ones do."""
    index, dtype, hidden = _current(selection)
    for m in ms:
        for defines in blocks_needed(capability_of(index), sm_count(index), dtype, {"M": m, "H": hidden}):
            launch.function(SOURCE, BLOCKS, defines, index)


def warmup_rms_norm_fp8(selection: Any, ms: Iterable[int]) -> None:
    """Load what aligned calls need onto the current GPU, for any token count. Without an H, what usual ones do."""
    index, dtype, hidden = _current(selection)
    for defines in rows_needed(capability_of(index), dtype, {"H": hidden}):
        launch.function(SOURCE, ROWS, defines, index)


def blocks_needed(capability: Capability, sms: int, dtype: str, shape: Mapping[str, Any]) -> Iterator[Defines]:
    """The kernels for these sizes, a repeated one included; of an axis that is left out its usual sizes."""
    elements = vector_bytes(capability) // DTYPES[dtype][1]
    for hidden in sizes(shape.get("H"), COMMON_H):
        for rows in sizes(shape.get("M"), COMMON_M):
            if hidden % BLOCK == 0:
                geometry = choose("silu_and_mul_fp8", dtype, rows * (hidden // elements), capability, sms)
                yield block_defines(dtype, geometry, elements, 32, 32)


def rows_needed(capability: Capability, dtype: str, shape: Mapping[str, Any]) -> Iterator[Defines]:
    """As blocks_needed."""
    for hidden in sizes(shape.get("H"), COMMON_H):
        elements = elements_of(hidden, DTYPES[dtype][1], capability)
        geometry = row_geometry(hidden, dtype, capability)
        for static in (False, True):
            yield row_defines(hidden, dtype, geometry, elements, 32, 32, static, 0.0)


def _current(selection: Any) -> tuple[int, str, Any]:
    import torch

    problem = selection.problem
    return torch.cuda.current_device(), problem.dtype or "bfloat16", problem.shape.get("H")


def _jobs(kernel: str, found: Iterable[Defines], capability: Capability) -> list[CompileJob]:
    from . import cache as disk

    return [disk.job(SOURCE, kernel, dict(defines), capability) for defines in dict.fromkeys(found)]
