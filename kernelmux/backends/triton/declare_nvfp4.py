"""What the Triton backend offers for NVFP4: a native GEMM, a weight-only one, and the quantizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...device import capabilities
from ...registry import Aligned, DtypeIn, Kernel, NeedsPackage, Numerics, OnCapability, SchemeIn, VendorIn
from ...registry.decision import ACCEPTED, Rejected
from ...registry.value import Value

if TYPE_CHECKING:
    from ...device import Capability, Device
    from ...registry.decision import Decision
    from ...registry.packages import Packages
    from ...registry.problem import Problem

_HERE = "kernelmux.backends.triton"
_TRITON = NeedsPackage("triton", ">=3.6", why="3.6 is the release these kernels were compiled with")
_TORCH = NeedsPackage("torch", ">=2.9", to_run=True, install="pip install 'kernelmux[torch]'")
_NVIDIA = VendorIn(frozenset({"nvidia"}), why="its decoding is PTX")
_WIDE = DtypeIn(frozenset({"bfloat16", "float16"}))

_COMPILED = capabilities("8.0", "8.6", "8.9", "9.0", "10.0", "10.3", "12.0", "12.1")
_NATIVE_36, _NATIVE_39 = capabilities("10.0", "10.3", "12.0"), capabilities("11.0", "12.1")
# tests/unit/backends/test_nvfp4_compile.py and test_nvfp4_native_compile.py compile them for these.
_ANYWHERE_EVIDENCE: Mapping[Capability | str, str] = dict.fromkeys(_COMPILED, "compiled")
_WEIGHT_ONLY_EVIDENCE: Mapping[Capability | str, str] = {
    **_ANYWHERE_EVIDENCE,
    **dict.fromkeys(capabilities("9.0"), "measured"),  # an H200: tests/gpu/test_nvfp4_gpu.py
}
_NATIVE_EVIDENCE: Mapping[Capability | str, str] = dict.fromkeys(_NATIVE_36, "compiled")


class NativeCompiles(Value):
    """Triton's ``dot_scaled`` with e4m3 scales: 3.6 compiles it for 10.0, 10.3 and 12.0, 3.9 for 11.0 and 12.1 too."""

    def check(self, device: Device, packages: Packages, problem: Problem) -> Decision:
        if device.capability not in _NATIVE_39 or packages.has("triton", ">=3.9"):
            return ACCEPTED
        found = packages.get("triton") or "up to 3.8"
        reason = f"Triton {found} does not compile block-scaled e2m1 products for {device.arch}"
        return Rejected("package_version", reason, "`pip install -U 'triton>=3.9'`")

    def describe(self) -> str:
        return "a Triton that compiles block-scaled e2m1 products for the GPU"


def _quantizing(op: str, run: str, promises: frozenset[str] = frozenset(), warmup: str | None = None) -> Kernel:
    return Kernel(
        name=f"kernelmux.{op}[triton]",
        op=op,
        backend="triton",
        load=f"{_HERE}.nvfp4_quantize:{run}",
        compile=f"{_HERE}.nvfp4_jobs:{run}",
        warmup=warmup,
        capturable=True,
        evidence=_ANYWHERE_EVIDENCE,
        requirements=(
            OnCapability(_COMPILED),
            VendorIn(frozenset({"nvidia"})),
            DtypeIn(frozenset({"bfloat16", "float16", "float32"})),
            _TRITON,
            _TORCH,
        ),
        numerics=Numerics(promises=frozenset({"deterministic", "batch_invariant", "no_fast_math"}) | promises),
    )


KERNELS = (
    Kernel(
        name="kernelmux.nvfp4_gemm[triton]",
        op="nvfp4_gemm",
        backend="triton",
        load=f"{_HERE}.nvfp4_native:run",
        compile=f"{_HERE}.nvfp4_jobs:native",
        prepare=f"{_HERE}.nvfp4_native:prepare",
        configs=f"{_HERE}.nvfp4_configs:native_gemm",
        warmup=f"{_HERE}.nvfp4_warmup:native",
        layout="nvfp4-swizzled",
        capturable=True,
        evidence=_NATIVE_EVIDENCE,
        requirements=(
            OnCapability(_NATIVE_36 | _NATIVE_39, why="only their tensor cores multiply e2m1 with block scales"),
            _NVIDIA,
            _WIDE,
            SchemeIn(frozenset({"nvfp4"}), why="it quantizes x and needs its input scale"),
            Aligned("K", 32, "rows are read in 16 bytes"),
            NativeCompiles(),
            _TRITON,
            _TORCH,
        ),
        numerics=Numerics(rounding=("x to NVFP4", "output"), promises=frozenset({"deterministic", "no_fast_math"})),
    ),
    Kernel(
        name="kernelmux.nvfp4_weight_only[triton]",
        op="nvfp4_gemm",
        backend="triton",
        load=f"{_HERE}.nvfp4_weight_only:run",
        compile=f"{_HERE}.nvfp4_jobs:weight_only",
        prepare=f"{_HERE}.nvfp4_planes:prepare",
        configs=f"{_HERE}.nvfp4_configs:weight_only",
        warmup=f"{_HERE}.nvfp4_warmup:weight_only",
        source=f"{_HERE}.nvfp4_source:source_hash",
        layout="nvfp4-planes",
        capturable=True,
        evidence=_WEIGHT_ONLY_EVIDENCE,
        requirements=(
            OnCapability(_COMPILED),
            _NVIDIA,
            _WIDE,
            SchemeIn(frozenset({"nvfp4", "nvfp4_w4a16"})),
            Aligned("K", 16, "whole scale blocks"),
            _TRITON,
            _TORCH,
        ),
        numerics=Numerics(rounding=("output",), promises=frozenset({"deterministic", "no_fast_math", "w4a16"})),
    ),
    Kernel(
        name="kernelmux.nvfp4_mm[triton]",
        op="nvfp4_mm",
        backend="triton",
        load=f"{_HERE}.nvfp4_native:mm",
        compile=f"{_HERE}.nvfp4_jobs:native",
        configs=f"{_HERE}.nvfp4_configs:native_gemm",
        capturable=True,
        evidence=_NATIVE_EVIDENCE,
        requirements=(
            OnCapability(_NATIVE_36 | _NATIVE_39, why="only their tensor cores multiply e2m1 with block scales"),
            _NVIDIA,
            Aligned("K", 32, "rows are read in 16 bytes"),
            NativeCompiles(),
            _TRITON,
            _TORCH,
        ),
        numerics=Numerics(rounding=("output",), promises=frozenset({"deterministic", "no_fast_math"})),
    ),
    _quantizing("nvfp4_quantize", "quantize", frozenset({"bit_exact"}), warmup=f"{_HERE}.nvfp4_warmup:quantize"),
    _quantizing("silu_and_mul_nvfp4", "silu_and_mul"),
    _quantizing("rms_norm_nvfp4", "rms_norm"),
)
