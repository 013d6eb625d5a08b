"""Compile the small ops ahead of their launch, for any NVIDIA capability, with no GPU.

The plan of a launch runs on stand-ins for contiguous tensors, so that what is compiled is what a call with such tensors
looks for in Triton's cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from ...contracts.fp8_outputs import BLOCK
from ...errors import CompileFailed, DeviceNotFound
from ..compile_job import CompileFacts, CompileJob
from .small_launch import Gpu, Launch, Plan, Rows, Variant
from .stand_in import DType, StandIn, StandInDriver, resources

if TYPE_CHECKING:
    from ...device import Capability, Device

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def stand_ins(op: str, m: int, hidden: int, dtype: str, static: bool = False) -> list[tuple[Rows, str] | None]:
    """What ``op`` takes at M rows of H: contiguous tensors as rows, and the dtypes the kernel sees.

    ``static``: rms_norm_fp8 with a given scale.
    """
    size = BYTES[dtype]
    row, wide = (Rows(m, hidden, hidden, size), dtype), (Rows(m, 2 * hidden, 2 * hidden, size), dtype)
    weight, byte = (Rows(1, hidden, 0, size), dtype), (Rows(m, hidden, hidden, 1), "uint8")
    one = (Rows(1, 1, 0, 4), "float32")
    if op == "rms_norm":
        return [row, weight, row]
    if op == "fused_add_rms_norm":
        return [row, row, weight, row, row]
    if op == "gated_rms_norm":
        return [row, row, weight, row]
    if op == "rms_norm_fp8":
        return [row, weight, one if static else None, byte, one if static else (Rows(m, 1, 1, 4), "float32")]
    if op == "silu_and_mul_fp8":
        return [wide, byte, (Rows(m, hidden // BLOCK, hidden // BLOCK, 4), "float32")]
    return [wide if op.endswith("_and_mul") else row, row]


def launch_of(
    plan: Plan, op: str, gpu: Gpu, m: int, hidden: int, dtype: str, scalars: Mapping[str, Any] | None = None,
    tile: Any = None, static: bool = False,
) -> tuple[Launch, list[str]]:  # fmt: skip
    """The launch of a call with contiguous tensors, and the dtype of each of its pointers."""
    tensors = stand_ins(op, m, hidden, dtype, static)
    launch = plan(scalars or {}, [t and t[0] for t in tensors], gpu, tile)
    dtypes = [tensors[place or 0][1] for place in launch.places]  # type: ignore[index]
    return launch, dtypes


def compile_launch(launch: Launch, dtypes: Iterable[str], capability: Capability) -> Any:
    """Triton's CompiledKernel for ``capability``, from its cache or into it. Raises whatever Triton raises.

    Triton's driver is a stand-in while it compiles, and again what it was.
    """
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    size = {"uint8": 1, "float32": 4}
    pointers = [StandIn(DType(name, size.get(name, 2), name != "uint8")) for name in dtypes]
    before = driver._active
    driver.set_active(StandInDriver(GPUTarget("cuda", capability.sm, 32)))
    launch.kernel.device_caches.clear()
    try:
        return launch.kernel.warmup(
            *pointers, *launch.scalars, grid=(launch.grid,), **launch.constants, **launch.options()
        )
    finally:
        driver._active = before
        launch.kernel.device_caches.clear()


COMMON_H = (128, 512, 2048, 2688, 2880, 4096, 5120, 5376, 7168, 8192, 16384)
COMMON_M = (1, 16, 256, 4096, 16384)


def jobs(op: str, plan: Plan, device: Device, dtype: str, shape: Mapping[str, Any]) -> Iterator[CompileJob]:
    """One job for each kernel that contiguous calls of these sizes launch; a range of M stands for its powers of two.

    gated_rms_norm in one group, and rms_norm_fp8 with either kind of scale.
    """
    gpu = Gpu(str(device.capability or ""), device.sm_count)
    seen = set()
    for hidden in (shape["H"],) if "H" in shape else COMMON_H:
        for m, static in product(_row_counts(shape.get("M", COMMON_M)), _scales(op)):
            launch, dtypes = launch_of(plan, op, gpu, m, hidden, dtype, static=static)
            key = (launch.kernel, *launch.constants.values(), launch.warps, launch.stages, *dtypes)
            if key not in seen:
                seen.add(key)
                run, facts = partial(_needed, launch, dtypes, device), partial(_facts, launch, dtypes, device)
                yield CompileJob(f"{op} H={hidden} M={m}", run, facts)


def _scales(op: str) -> tuple[bool, ...]:
    """Whether a scale is given: what there is of it to compile."""
    return (False, True) if op == "rms_norm_fp8" else (False,)


def _row_counts(m: Any) -> list[int]:
    if isinstance(m, int):
        return [m]
    if len(m) != 2:
        return list(m)
    least, most = m
    return [least, *(1 << k for k in range(most.bit_length()) if least < 1 << k < most), most]


def _needed(launch: Launch, dtypes: list[str], device: Device) -> bool:
    """Compile it; False where Triton's cache had it. Raises CompileFailed with what the compiler said."""
    from triton import knobs

    assert device.capability is not None
    hits: list[bool] = []
    before, knobs.compilation.listener = knobs.compilation.listener, lambda **said: hits.append(said["cache_hit"])
    try:
        compile_launch(launch, dtypes, device.capability)
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise CompileFailed(f"{launch.kernel.__name__} for {device.arch}: {first}", str(error)) from error
    finally:
        knobs.compilation.listener = before
    return not all(hits)


def _facts(launch: Launch, dtypes: list[str], device: Device) -> CompileFacts:
    assert device.capability is not None
    compiled = compile_launch(launch, dtypes, device.capability)
    return CompileFacts(*resources(compiled.asm["cubin"]), compiled.metadata.shared)


def warm(variant: Variant, selection: Any, ms: Iterable[int]) -> None:
    """Bind calls with these row counts on zeros: contiguous tensors, one group, either kind of scale."""
    import torch

    if not torch.cuda.is_available():
        raise DeviceNotFound(
            f"{selection.kernel} can be warmed only on a GPU, and torch sees none here. Warm it where it will run."
        )
    device = torch.device("cuda", selection.device.index or 0)
    hidden, dtype = selection.problem.shape["H"], selection.problem.dtype or "bfloat16"
    for m, static in product(ms, _scales(variant.op)):
        tensors: list[torch.Tensor | None] = []
        for about in stand_ins(variant.op, m, hidden, dtype, static):
            if about is None:
                tensors.append(None)
                continue
            rows, name = about
            flat = rows.stride == 0
            size = (rows.width,) if flat else (rows.rows, rows.width)
            tensors.append(torch.zeros(size, dtype=getattr(torch, name), device=device))
        variant.bind({}, *tensors)
    torch.cuda.synchronize(device)
