"""FlashInfer's norms, activations and DeepSeek-V3 routing.

"FlashInfer's norm" is two: CUDA compiled at first use, and CuTe DSL, which it prefers where nvidia-cutlass-dsl is
installed and FLASHINFER_USE_CUDA_NORM is not 1.
"""

from __future__ import annotations

from ...device import capabilities
from ...registry import Aligned, DtypeIn, Kernel, NeedsPackage, Numerics, OnCapability, Predicate, Requirement
from ..libraries import Bounded, OnDemand
from .facts import CUTLASS_DSL, EVERY, FLASHINFER, FP8, NVIDIA

_HERE = "kernelmux.backends.flashinfer"
_HALF = DtypeIn(frozenset({"bfloat16", "float16"}), why="its kernels are compiled for 16-bit types")
_NVCC = NeedsPackage("ninja", to_run=True, why="the CUDA module is compiled on first use, with nvcc")

_CUDA_NORM = Predicate(f"{_HERE}.norms:cuda_norm_is_taken", "FlashInfer takes its CUDA norm")


def _norm(function: str, op: str, backend: str, promises: frozenset[str], *requirements: Requirement) -> Kernel:
    return Kernel(
        name=f"flashinfer.{function}[{backend}]",
        op=op,
        backend=backend,
        load=f"{_HERE}.norms:{function}_{backend}",
        capturable=True,
        requirements=(*requirements, NVIDIA, _HALF, FLASHINFER),
        # FlashInfer compiles its CUDA with -use_fast_math; its CuTe DSL norm asks for the approximate rsqrt.
        numerics=Numerics(rounding=("output",), fast_math=True, promises=promises),
    )


def _norms(function: str, op: str, promises: frozenset[str], *more: Requirement) -> tuple[Kernel, Kernel]:
    cute = OnCapability(EVERY - capabilities("7.5"), why="CuTe DSL compiles for 8.0 and later GPUs it knows")
    # One block a row, its size from H alone (data/include/flashinfer/norm.cuh).
    cuda_promises = promises | {"batch_invariant", "deterministic"}
    return (
        _norm(function, op, "jit_cuda", cuda_promises, OnCapability(EVERY), *more, _CUDA_NORM, _NVCC),
        _norm(function, op, "cutedsl", promises, cute, *more, Aligned("H", 8, "it reads 16 bytes"), CUTLASS_DSL),
    )


def _activation(name: str, rounding: str) -> Kernel:
    return Kernel(
        name=f"flashinfer.{name}[jit_cuda]",
        op=name,
        backend="jit_cuda",
        load=f"{_HERE}.activations:{name}",
        capturable=True,
        requirements=(
            OnCapability(EVERY),
            NVIDIA,
            _HALF,
            # Any H runs since 0.7, narrower ones with shorter loads; 16 bytes is what every release takes.
            Aligned("H", 8, "it reads 16 bytes at once"),
            _NVCC,
            FLASHINFER,
        ),
        numerics=Numerics(
            rounding=(rounding,), fast_math=True, promises=frozenset({"fp32_mul", "deterministic", "batch_invariant"})
        ),
    )


_STATIC = OnDemand(
    "static_scale",
    "it takes a given scale and the weight as stored, and neither is told by a shape",
    "demand static_scale if every call passes scale= and none weight_bias=1",
)

_TOPK = Kernel(
    name="flashinfer.fused_topk_deepseek[jit_cuda]",
    op="topk",
    backend="jit_cuda",
    load=f"{_HERE}.router:topk_deepseek",
    capturable=True,
    requirements=(
        OnCapability(FP8 - capabilities("11.0"), why="FlashInfer lists its default backend for these"),
        NVIDIA,
        OnDemand(
            "deepseek_v3_routing",
            "it does one routing only: sigmoid scores with a bias, the best two of each group, renormalized",
            "demand deepseek_v3_routing if the model routes so",
        ),
        Bounded("topk", most=8, why="its registers"),
        Bounded("E", most=384, why="its registers"),
        _NVCC,
        FLASHINFER,
    ),
    numerics=Numerics(promises=frozenset({"deepseek_v3_routing"})),
)

KERNELS = (
    *_norms("rmsnorm", "rms_norm", frozenset({"fp32_mul"})),
    *_norms("fused_add_rmsnorm", "fused_add_rms_norm", frozenset({"fp32_mul", "residual_fp32"})),
    *_norms("rmsnorm_quant", "rms_norm_fp8", frozenset({"fp32_mul", "static_scale"}), _STATIC),
    _activation("silu_and_mul", "output"),
    _activation("gelu_and_mul", "output"),
    _activation("gelu_tanh_and_mul", "output"),
    _TOPK,
)
