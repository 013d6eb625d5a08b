"""rms_norm, fused_add_rms_norm and gated_rms_norm in CUDA C++ (csrc/norms.cu): one launch, no copy, on torch's stream.

``out`` may be x itself and ``residual_out`` the residual: a thread reads all of an element before it writes it, and no
other thread reads it. x, the residual and z may lie anywhere as long as their last dimension is contiguous; where their
rows are at more than two strides, they are copied first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ...errors import BadShape
from ...registry.value import Value
from .compiler import vector_bytes
from .norm_geometry import Geometry
from .norm_variants import ENTRY, MOST_PARTS, SOURCE, VARIANTS, Variant, aligned_to, defines, jobs_of, pick

if TYPE_CHECKING:
    from torch import Tensor

    from ...device import Device
    from ..compile_job import CompileJob

Call = Callable[..., None]


class Rows(Value):
    """Where the rows of x and of a second input lie, in elements: at one stride; or, where ``inner`` is not 0, that
    many at a stride, again and again at the outer one.
    """

    count: int
    x: int
    second: int = 0
    inner: int = 0
    x_outer: int = 0
    second_outer: int = 0


def rows_of(x: Tensor, second: Tensor | None) -> Rows | None:
    """None where it takes more than two strides."""
    dims: list[tuple[int, int, int]] = []
    strides = second.stride() if second is not None else x.stride()
    for size, step, other in zip(x.shape[:-1], x.stride(), strides, strict=False):
        if size == 1:
            continue
        if dims and dims[-1][1:] == (size * step, size * other):
            dims[-1] = (dims[-1][0] * size, step, other)
        else:
            dims.append((size, step, other))
    if second is None:
        dims = [(size, step, 0) for size, step, _ in dims]
    if not dims:
        return Rows(1, 0)
    if len(dims) == 1:
        return Rows(*dims[0])
    if len(dims) > 2:
        return None
    (outer, x_outer, second_outer), (inner, step, other) = dims
    return Rows(outer * inner, step, other, inner, x_outer, second_outer)


def _no_rows(*_: Tensor) -> None:
    pass


def bind_with(
    variant: Variant, scalars: Mapping[str, Any], tensors: tuple[Tensor, ...], geometry: Geometry | str | None = None
) -> Call:
    """``call(*tensors)`` for tensors laid out like these, already checked: inputs in the schema's order, then the outs.

    ``geometry``: another than the rule's. Raises BadShape for one that the kernel cannot be built with.
    """
    op, outs = variant.op, 2 if variant.op == "fused_add_rms_norm" else 1
    x, out = tensors[0], tensors[-outs]
    second = None if op == "rms_norm" else tensors[1]
    if not x.numel():
        return _no_rows
    if not x.is_cuda:
        raise BadShape(f"{op}: x is on {x.device}; a CUDA kernel takes tensors of a GPU. Choose another backend.")
    rows = rows_of(x, second)
    if rows is None:
        inputs = 1 if second is None else 2
        straight = (*(tensor.contiguous() for tensor in tensors[:inputs]), *tensors[inputs:])
        return _copying(bind_with(variant, scalars, straight, geometry), inputs)
    bits = 0
    for tensor in tensors:
        bits |= tensor.data_ptr()
    return _bound(variant, scalars, rows, x, out, tensors[-1] if outs == 2 else None, geometry, bits)


def _copying(call: Call, inputs: int) -> Call:
    def copied(*tensors: Tensor) -> None:
        call(*(tensor.contiguous() for tensor in tensors[:inputs]), *tensors[inputs:])

    return copied


def _bound(
    variant: Variant,
    scalars: Mapping[str, Any],
    rows: Rows,
    x: Tensor,
    out: Tensor,
    total: Tensor | None,
    geometry: Geometry | str | None,
    bits: int,
) -> Call:
    """``bits``: of the tensors' addresses, or-ed. What is so aligned is compiled now, as is what is fully aligned."""
    import torch

    from ...contracts.tensor_checks import row_stride
    from . import driver, launch

    index = x.device.index if x.device.index is not None else torch.cuda.current_device()
    capability, dtype, item = driver.capability(index), str(x.dtype).removeprefix("torch."), x.element_size()
    groups = int(scalars.get("n_groups", 1))
    length, parts = x.shape[-1] // groups, rows.count * groups
    if parts >= MOST_PARTS:
        raise BadShape(f"{variant.op}: {parts} rows (times groups) are more than {MOST_PARTS}. Split the call.")
    sm_count = torch.cuda.get_device_properties(index).multi_processor_count
    chosen = pick(variant.op, length, dtype, parts, capability, sm_count, geometry)
    out_stride = row_stride(out) or 0
    total_stride = 0 if total is None else row_stride(total) or 0
    weight_bias = int(scalars.get("weight_bias", 0.0))
    vector = vector_bytes(capability)
    steps = (out_stride, total_stride, rows.x, rows.second, rows.x_outer, rows.second_outer, length)
    step_bits = 0
    for step in steps:
        step_bits |= step * item
    two, three = variant.op != "rms_norm", total is not None
    pointers = 3 + two + three
    signature = "P" * pointers + "fiqq" + "q" * two + "q" * three + ("iq" + "q" * two if rows.inner else "")
    values: list[int | float] = [float(scalars.get("eps", 1e-6)), parts, rows.x, out_stride]
    values += [rows.second] * two + [total_stride] * three
    values += [rows.inner, rows.x_outer] + [rows.second_outer] * two if rows.inner else []
    grid = chosen.grid(parts, sm_count)

    def launcher(low: int) -> Call:
        """For addresses whose lowest bit is this (0: aligned as well as the rows are)."""
        access = aligned_to(low | step_bits, vector)
        given = defines(
            variant, dtype, length, groups, weight_bias, chosen, capability, access=access, nested=rows.inner > 0
        )
        built = launch.Launcher(launch.function(SOURCE, ENTRY, given, index), signature, block=chosen.threads)
        return built.bind(grid, *((...,) * pointers), *values)

    whole = aligned_to(step_bits, vector)
    return _caller(variant.op, launch.stream_getter(), index, whole - 1, launcher, bits)


def _caller(
    op: str, stream: Callable[[int], int], index: int, mask: int, launcher: Callable[[int], Call], bits: int
) -> Call:
    """What runs at every call: pointers, a look at their alignment, the launch."""
    aligned = launcher(0)
    less: dict[int, Call] = {}

    def pick_for(bits: int) -> Call:
        low = bits & mask
        if not low:
            return aligned
        key = low & -low
        if key not in less:
            less[key] = launcher(key)
        return less[key]

    pick_for(bits)

    def rms_norm(x: Tensor, weight: Tensor, out: Tensor) -> None:
        a, b, c = x.data_ptr(), weight.data_ptr(), out.data_ptr()
        launch = pick_for(a | b | c) if (a | b | c) & mask else aligned
        launch(stream(index), a, b, c)

    def gated_rms_norm(x: Tensor, z: Tensor, weight: Tensor, out: Tensor) -> None:
        a, b, c, d = x.data_ptr(), weight.data_ptr(), out.data_ptr(), z.data_ptr()
        launch = pick_for(a | b | c | d) if (a | b | c | d) & mask else aligned
        launch(stream(index), a, b, c, d)

    def fused_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, out: Tensor, residual_out: Tensor) -> None:
        a, b, c, d, e = x.data_ptr(), weight.data_ptr(), out.data_ptr(), residual.data_ptr(), residual_out.data_ptr()
        launch = pick_for(a | b | c | d | e) if (a | b | c | d | e) & mask else aligned
        launch(stream(index), a, b, c, d, e)

    calls: dict[str, Call] = {
        "rms_norm": rms_norm, "gated_rms_norm": gated_rms_norm, "fused_add_rms_norm": fused_add_rms_norm,
    }  # fmt: skip
    return calls[op]


_calls: dict[tuple[Any, ...], Call] = {}
_MOST_CALLS = 4096


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _call(variant: Variant, scalars: dict[str, Any], tensors: tuple[Tensor, ...], config: Any) -> None:
    """Launch with the call bound for such tensors before, if any. ``config``: a geometry, its name, or None."""
    geometry = config if isinstance(config, (str, Geometry)) else None
    key = (variant, *scalars.values(), geometry, *map(_layout, tensors))
    call = _calls.get(key)
    if call is None:
        if len(_calls) >= _MOST_CALLS:
            _calls.clear()
        call = _calls[key] = bind_with(variant, scalars, tensors, geometry)
    call(*tensors)


def _fresh(x: Tensor) -> Tensor:
    import torch

    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _runner(variant: Variant) -> Callable[..., Any]:
    from ...contracts import norms_math as contract

    def rms_norm(
        x: Tensor, weights: Tensor, *, config: Any = None, out: Tensor | None = None,
        eps: float = 1e-6, weight_bias: float = 0.0,
    ) -> Tensor:  # fmt: skip
        contract.check_rms_norm(x, weights, eps, weight_bias, out)
        out = _fresh(x) if out is None else out
        _call(variant, {"eps": eps, "weight_bias": weight_bias}, (x, weights, out), config)
        return out

    def fused_add_rms_norm(
        x: Tensor, weights: Tensor, *, config: Any = None, out: Tensor | None = None,
        residual_out: Tensor | None = None, residual: Tensor, eps: float = 1e-6, weight_bias: float = 0.0,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        contract.check_fused_add_rms_norm(x, residual, weights, eps, weight_bias, out, residual_out)
        out = _fresh(x) if out is None else out
        residual_out = _fresh(x) if residual_out is None else residual_out
        scalars = {"eps": eps, "weight_bias": weight_bias}
        _call(variant, scalars, (x, residual, weights, out, residual_out), config)
        return out, residual_out

    def gated_rms_norm(
        x: Tensor, weights: Tensor, *, config: Any = None, out: Tensor | None = None,
        z: Tensor, eps: float = 1e-6, n_groups: int = 1,
    ) -> Tensor:  # fmt: skip
        contract.check_gated_rms_norm(x, z, weights, eps, n_groups, out)
        out = _fresh(x) if out is None else out
        _call(variant, {"eps": eps, "n_groups": n_groups}, (x, z, weights, out), config)
        return out

    runners: dict[str, Callable[..., Any]] = {
        "rms_norm": rms_norm, "fused_add_rms_norm": fused_add_rms_norm, "gated_rms_norm": gated_rms_norm,
    }  # fmt: skip
    return runners[variant.op]


def _binder(variant: Variant) -> Callable[..., Call]:
    def bind(op_args: Mapping[str, Any], *tensors: Tensor) -> Call:
        return bind_with(variant, op_args, tensors)

    return bind


def _jobs(variant: Variant) -> Callable[..., Iterator[CompileJob]]:
    def jobs(device: Device, dtype: str, shape: Mapping[str, Any]) -> Iterator[CompileJob]:
        return jobs_of(variant, device, dtype, shape)

    return jobs


# What the declarations name: rms_norm_fp32_mul, bind_rms_norm_fp32_mul, compile_rms_norm_fp32_mul, ...
for _variant in VARIANTS:
    globals()[_variant.name] = _runner(_variant)
    globals()[f"bind_{_variant.name}"] = _binder(_variant)
    globals()[f"compile_{_variant.name}"] = _jobs(_variant)


def warmup(selection: Any, ms: Iterable[int]) -> None:
    """Compile and load what calls with these token counts need, with eps and groups as they default. Needs an H."""
    import torch

    hidden = selection.problem.shape.get("H")
    if hidden is None:
        return
    dtype = getattr(torch, selection.problem.dtype or "bfloat16")
    for count in ms:
        x = torch.zeros(count, hidden, dtype=dtype, device="cuda")
        extra = {"fused_add_rms_norm": "residual", "gated_rms_norm": "z"}.get(selection.op.name)
        selection(x, torch.ones(hidden, dtype=dtype, device="cuda"), **({extra: x.clone()} if extra else {}))
