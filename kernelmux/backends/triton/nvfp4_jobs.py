"""What calls of the NVFP4 kernels will need of Triton on some GPU, for ``kernelmux compile``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import CompileFailed
from ..compile_job import CompileFacts, CompileJob
from . import nvfp4_native_rules
from .nvfp4_configs import tile_at
from .nvfp4_quantize_rules import geometry
from .stand_in import DType, StandIn, StandInDriver, resources

if TYPE_CHECKING:
    from ...device import Device

COMMON_M = (1, 16, 64, 256, 1024, 4096)
COMMON = {"N": 4096, "K": 4096, "H": 4096}


def weight_only(device: Device, dtype: str, shape: Mapping[str, Any]) -> Iterator[CompileJob]:
    """One job for each launch of the weight-only GEMM at these sizes."""
    from .nvfp4_compile import compile_gemm

    capability = device.capability
    assert capability is not None
    n, k = _size(shape, "N"), _size(shape, "K")
    made = ((m, tile_at(m, n, k, device.sm_count, capability)) for m in _counts(shape))
    for m, tile in _unlike(made):
        what = f"nvfp4_weight_only {tile.short()} M={m}"
        yield _job(what, device, partial(compile_gemm, tile, capability, dtype, n, k, m))


def native(device: Device, dtype: str, shape: Mapping[str, Any]) -> Iterator[CompileJob]:
    """One job for each launch of the native GEMM at these sizes."""
    from .nvfp4_native_compile import compile_native

    capability = device.capability
    assert capability is not None
    n, k = _size(shape, "N"), _size(shape, "K")
    out = dtype if dtype in ("bfloat16", "float16") else "bfloat16"  # nvfp4_mm takes packed bytes
    made = ((m, nvfp4_native_rules.heuristic(m, n, k, capability, device.sm_count)) for m in _counts(shape))
    for m, tile in _unlike(made):
        what = f"nvfp4 native {tile.short()} M={m}"
        yield _job(what, device, partial(compile_native, tile, capability, out, m, n, k))


def quantize(device: Device, dtype: str, shape: Mapping[str, Any]) -> Iterator[CompileJob]:
    """One job for each launch of the quantizer, with linear and swizzled scales."""
    return _rows("nvfp4_quantize_rows", device, dtype, _size(shape, "K"), shape)


def silu_and_mul(device: Device, dtype: str, shape: Mapping[str, Any]) -> Iterator[CompileJob]:
    """As `quantize`, behind silu_and_mul."""
    return _rows("silu_and_mul_nvfp4_rows", device, dtype, _size(shape, "H"), shape, wide=2)


def rms_norm(device: Device, dtype: str, shape: Mapping[str, Any]) -> Iterator[CompileJob]:
    """As `quantize`, behind rms_norm."""
    return _rows("rms_norm_nvfp4_rows", device, dtype, _size(shape, "H"), shape, scalars=(1e-6, 0.0))


def _rows(
    name: str, device: Device, dtype: str, k: int, shape: Mapping[str, Any], wide: int = 1,
    scalars: tuple[float, ...] = (),
) -> Iterator[CompileJob]:  # fmt: skip
    seen = set()
    for m in _counts(shape):
        for swizzled in (False, True):
            written = -(-m // 128) * 128 if swizzled else m
            block, width, warps = geometry(written, k, bool(scalars))
            key = (block, width, warps, swizzled)
            if key not in seen:
                seen.add(key)
                what = f"{name} K={k} M={m}{' swizzled' if swizzled else ''}"
                build = partial(_compile_rows, name, device, dtype, m, k, wide, scalars, written, key)
                yield _job(what, device, build)


def _compile_rows(
    name: str, device: Device, dtype: str, m: int, k: int, wide: int, scalars: tuple[float, ...], written: int,
    key: tuple[int, int, int, bool],
) -> Any:  # fmt: skip
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from . import nvfp4_quantize_kernels as kernels

    assert device.capability is not None
    driver.set_active(StandInDriver(GPUTarget("cuda", device.capability.sm, 32)))
    block, width, warps, swizzled = key
    kernel: Any = getattr(kernels, name)
    x = StandIn(DType(dtype, 4 if dtype == "float32" else 2))
    byte, factor = StandIn(DType("uint8", 1, False)), StandIn(DType("float32", 4))
    tensors = (x, x, factor) if scalars else (x, factor)
    kernel.device_caches.clear()
    return kernel.warmup(
        *tensors, byte, byte, m, k, wide * k, k // 2, 0 if swizzled else k // 16, *scalars,
        ROWS=block, WIDTH=width, SWIZZLED=swizzled, num_warps=warps,
        grid=(-(-written // block), -(-k // width)),
    )  # fmt: skip


def _size(shape: Mapping[str, Any], axis: str) -> int:
    return int(shape.get(axis, COMMON[axis]))


def _counts(shape: Mapping[str, Any]) -> list[int]:
    m = shape.get("M", COMMON_M)
    if isinstance(m, int):
        return [m] if m else []
    if len(m) != 2:
        return list(m)
    least, most = max(1, m[0]), m[1]
    return [least, *(1 << k for k in range(most.bit_length()) if least < 1 << k < most), most]


def _unlike(made: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    seen = set()
    for m, tile in made:
        if tile not in seen:
            seen.add(tile)
            yield m, tile


def _job(what: str, device: Device, build: Callable[[], Any]) -> CompileJob:
    return CompileJob(what, partial(_run, what, device, build), partial(_facts, build))


def _run(what: str, device: Device, build: Callable[[], Any]) -> bool:
    """Compile it; False where Triton's cache had it. Triton's driver is again what it was."""
    from triton import knobs
    from triton.runtime import driver

    hits: list[bool] = []
    before, listening = driver._active, knobs.compilation.listener
    knobs.compilation.listener = lambda **said: hits.append(said["cache_hit"])
    try:
        build()
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise CompileFailed(f"{what} for {device.arch}: {first}", str(error)) from error
    finally:
        driver._active, knobs.compilation.listener = before, listening
    return not all(hits)


def _facts(build: Callable[[], Any]) -> CompileFacts:
    from triton.runtime import driver

    before = driver._active
    try:
        made = build()
    finally:
        driver._active = before
    return CompileFacts(*resources(made.asm["cubin"]), made.metadata.shared)
