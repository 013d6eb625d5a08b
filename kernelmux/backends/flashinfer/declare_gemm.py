"""FlashInfer's GEMMs: nvfp4_gemm, nvfp4_mm, fp8_gemm, nvfp4_quantize, router_gemm."""

from __future__ import annotations

from ...device import capabilities
from ...registry import Aligned, DtypeIn, Kernel, KnownIssue, Numerics, OnCapability, Requirement, SchemeIn
from ..libraries import Bounded, SizesIn, Where, needs_cuda, needs_cudnn
from .facts import (
    CONSUMER,
    CUBINS,
    CUDA_FP4,
    CUDNN_FP4,
    CUDNN_FRONTEND,
    CUTLASS_DSL,
    DATACENTER,
    FLASHINFER,
    FP4,
    FP8,
    NAN_CUDNN_SM12X,
    NAN_CUTLASS,
    NVIDIA,
    PULLS,
)

_HERE = "kernelmux.backends.flashinfer"
_HALF = DtypeIn(frozenset({"bfloat16", "float16"}))
_BF16 = DtypeIn(frozenset({"bfloat16"}))
_W4A4 = SchemeIn(frozenset({"nvfp4"}), why="it quantizes x to FP4 as well")
_FP4_BYTES = "rows of packed FP4 must be whole 16-byte pieces"


_RACED = ("cutlass", "cutedsl")  # what policies/autotune.yaml has FlashInfer's autotuner race


def _mm_fp4(word: str, backend: str, layout: str, *requirements: Requirement) -> Kernel:
    return Kernel(
        name=f"flashinfer.mm_fp4[{word}]",
        op="nvfp4_gemm",
        backend=backend,
        load=f"{_HERE}.nvfp4_gemm:run_{word}",
        prepare=f"{_HERE}.nvfp4_gemm:prepare_{'shuffled' if layout == 'nvfp4-trtllm' else 'swizzled'}",
        warmup=f"{_HERE}.autotuner:warmup" if word in _RACED else None,
        layout=layout,
        capturable=True,
        requirements=(*requirements, NVIDIA, _W4A4, FLASHINFER),
        numerics=Numerics(rounding=("x to FP4", "output"), promises=frozenset({"w4a4"})),
    )


_MM_FP4 = (
    _mm_fp4(
        "cutlass", "cutlass", "nvfp4-128x4",
        OnCapability(FP4, why="CUTLASS FP4 tensor-core kernels are built for these"),
        _HALF, Aligned("N", 32, _FP4_BYTES), Aligned("K", 32, _FP4_BYTES), CUDA_FP4, NAN_CUTLASS,
    ),
    _mm_fp4(
        "cudnn", "cudnn", "nvfp4-128x4",
        OnCapability(FP4, why="cuDNN has FP4 block-scaled GEMMs for these"),
        _HALF, Aligned("N", 32, _FP4_BYTES), Aligned("K", 32, _FP4_BYTES), CUDNN_FRONTEND, CUDNN_FP4, NAN_CUDNN_SM12X,
    ),
    _mm_fp4(
        "trtllm", "trtllm", "nvfp4-trtllm",
        OnCapability(DATACENTER, why="trtllm-gen kernels exist for 10.x alone"),
        _BF16, Aligned("N", 128, "its rows are shuffled in tiles of 128"), Aligned("K", 64, "scales are read in fours"),
        CUBINS,
    ),
    _mm_fp4(
        "cutedsl", "cutedsl", "nvfp4-128x4",
        OnCapability(DATACENTER, why="written for tcgen05 tensor cores"),
        _HALF, Aligned("N", 8, "it stores eight columns at once"), Aligned("K", 32, _FP4_BYTES), CUTLASS_DSL,
    ),
    _mm_fp4(
        "cutedsl_low_latency", "cutedsl", "nvfp4-128x4",
        OnCapability(DATACENTER, why="written for tcgen05 tensor cores"),
        _HALF, Bounded("M", most=8, why="one tile of tokens"), Aligned("K", 64, "its step along K"), CUTLASS_DSL,
    ),
    _mm_fp4(
        "b12x", "b12x", "nvfp4-128x4",
        OnCapability(
            capabilities("12.0"),
            why="FlashInfer never takes it on 12.1 by itself (cutlass and cuDNN are faster there), nor does vLLM",
        ),
        _HALF, Aligned("N", 32, _FP4_BYTES), Aligned("K", 32, "TMA reads 16 bytes"), CUTLASS_DSL,
        needs_cuda(">=12.9", "b12x compiles for 12.0 with it", f"{PULLS}/3051"),
    ),
)  # fmt: skip


def _nvfp4_mm(word: str, *requirements: Requirement) -> Kernel:
    """nvfp4_mm: both operands are packed already. trtllm is not among them: its rows of b are shuffled."""
    return Kernel(
        name=f"flashinfer.nvfp4_mm[{word}]",
        op="nvfp4_mm",
        backend=word,
        load=f"{_HERE}.nvfp4_gemm:mm_{word}",
        capturable=True,
        requirements=(*requirements, NVIDIA, FLASHINFER),
        numerics=Numerics(rounding=("output",), promises=frozenset({"w4a4"})),
    )


_NVFP4_MM = (
    _nvfp4_mm(
        "cutlass",
        OnCapability(FP4, why="CUTLASS FP4 tensor-core kernels are built for these"),
        Aligned("N", 32, _FP4_BYTES), Aligned("K", 32, _FP4_BYTES), CUDA_FP4, NAN_CUTLASS,
    ),
    _nvfp4_mm(
        "cudnn",
        OnCapability(FP4, why="cuDNN has FP4 block-scaled GEMMs for these"),
        Aligned("N", 32, _FP4_BYTES), Aligned("K", 32, _FP4_BYTES), CUDNN_FRONTEND, CUDNN_FP4, NAN_CUDNN_SM12X,
    ),
    _nvfp4_mm(
        "cutedsl",
        OnCapability(DATACENTER, why="written for tcgen05 tensor cores"),
        Aligned("N", 8, "it stores eight columns at once"), Aligned("K", 32, _FP4_BYTES), CUTLASS_DSL,
    ),
    _nvfp4_mm(
        "b12x",
        OnCapability(
            capabilities("12.0"),
            why="FlashInfer never takes it on 12.1 by itself (cutlass and cuDNN are faster there), nor does vLLM",
        ),
        Aligned("N", 32, _FP4_BYTES), Aligned("K", 32, "TMA reads 16 bytes"), CUTLASS_DSL,
        needs_cuda(">=12.9", "b12x compiles for 12.0 with it", f"{PULLS}/3051"),
    ),
)  # fmt: skip


def _mm_bf16_fp4(backend: str, *requirements: Requirement) -> Kernel:
    return Kernel(
        name=f"flashinfer.mm_bf16_fp4[{backend}]",
        op="nvfp4_gemm",
        backend=backend,
        load=f"{_HERE}.nvfp4_gemm:run_w4a16_{backend}",
        prepare=f"{_HERE}.nvfp4_gemm:prepare_w4a16_{backend}",
        layout=f"nvfp4-w4a16-{backend}",
        capturable=True,
        requirements=(
            *requirements,
            NVIDIA,
            SchemeIn(frozenset({"nvfp4_w4a16"}), why="it leaves x as it is"),
            FLASHINFER,
        ),
        numerics=Numerics(rounding=("output",), promises=frozenset({"w4a16"})),
    )


_MM_BF16_FP4 = (
    _mm_bf16_fp4(
        "cutedsl",
        OnCapability(FP4, why="FlashInfer lists it for these"),
        _BF16, Aligned("N", 64, "its weight tiles"), Aligned("K", 64, "its step along K"), CUTLASS_DSL,
    ),
    _mm_bf16_fp4(
        "cudnn",
        OnCapability(FP4, why="FlashInfer lists it for these"),
        _HALF, Aligned("N", 32, _FP4_BYTES), Aligned("K", 32, _FP4_BYTES), CUDNN_FRONTEND,
        needs_cudnn(">=9.23.1", "the first cuDNN that multiplies bf16 by FP4"),
    ),
)  # fmt: skip

_FP8_X = DtypeIn(frozenset({"bfloat16", "float16", "float8_e4m3fn"}))
_PER_TENSOR = SchemeIn(frozenset({"fp8_tensor"}), why="it takes one scale for x and one for the weight")
_PER_BLOCK = SchemeIn(frozenset({"fp8_block"}), why="it takes a scale for every 128 x 128 block")
_FP8_BYTES = "rows of FP8 must be whole 16-byte pieces"
_SLOW_CUDNN_FP8 = needs_cudnn(
    ">=9.23.1", "older ones build a plan for every shape on 12.x without bound; FlashInfer's auto leaves them out"
)


def _fp8(function: str, backend: str, layout: str, *requirements: Requirement) -> Kernel:
    return Kernel(
        name=f"flashinfer.{function}[{backend}]",
        op="fp8_gemm",
        backend=backend,
        load=f"{_HERE}.fp8_gemm:run_{function}_{backend}",
        prepare=f"{_HERE}.fp8_gemm:prepare_{'block' if layout == 'fp8-block' else 'tensor'}",
        layout=layout,
        capturable=True,
        requirements=(*requirements, NVIDIA, _FP8_X, FLASHINFER),
        numerics=Numerics(
            rounding=("x to e4m3", "output")
            + (() if layout == "fp8-block" else ("its product with the share of each row's scale",))
        ),
    )


_FP8_GEMM = (
    _fp8(
        "bmm_fp8", "cublas", "fp8-tensor",
        OnCapability(FP8, why="cuBLASLt multiplies FP8 on these"),
        _PER_TENSOR, Aligned("N", 16, _FP8_BYTES), Aligned("K", 16, _FP8_BYTES),
    ),
    _fp8(
        "bmm_fp8", "cudnn", "fp8-tensor",
        OnCapability(FP8, why="FlashInfer lists it for these"),
        _PER_TENSOR, Aligned("N", 16, _FP8_BYTES), Aligned("K", 16, _FP8_BYTES), CUDNN_FRONTEND,
        Where(CONSUMER, _SLOW_CUDNN_FP8),
    ),
    _fp8(
        "bmm_fp8", "cutlass", "fp8-tensor",
        OnCapability(FP4, why="CUTLASS FP8 kernels of FlashInfer begin with 10.0"),
        _PER_TENSOR, Aligned("N", 16, _FP8_BYTES), Aligned("K", 16, _FP8_BYTES),
    ),
    _fp8(
        "gemm_fp8_nt_groupwise", "cutlass", "fp8-block",
        OnCapability(DATACENTER | CONSUMER, why="FlashInfer lists it for these; 11.0 is not among them"),
        _PER_BLOCK, Aligned("N", 128, "whole scale blocks"), Aligned("K", 128, "whole scale blocks"),
    ),
    _fp8(
        "gemm_fp8_nt_groupwise", "trtllm", "fp8-block",
        OnCapability(DATACENTER, why="trtllm-gen kernels exist for 10.x alone"),
        _PER_BLOCK, Aligned("N", 128, "whole scale blocks"), Aligned("K", 128, "whole scale blocks"),
        Bounded("K", least=256, why="two steps of its pipeline"), CUBINS,
    ),
)  # fmt: skip

_UNWRITTEN = KnownIssue(
    capabilities("7.5", "8.0", "8.6", "8.9", "9.0"),
    {},
    "below 10.0 fp4_quantize returns memory that was never written, without an error",
    "use the torch or triton kernel there",
)


def _quantize(backend: str, *requirements: Requirement) -> Kernel:
    return Kernel(
        name=f"flashinfer.fp4_quantize[{backend}]",
        op="nvfp4_quantize",
        backend=backend,
        load=f"{_HERE}.quantize:run_{backend}",
        capturable=True,
        requirements=(*requirements, NVIDIA, _HALF, Aligned("K", 16, "whole scale blocks"), CUDA_FP4, FLASHINFER),
        numerics=Numerics(rounding=("block scale to e4m3", "value to e2m1"), fast_math=True),
    )


_QUANTIZE = (
    _quantize("jit_cuda", OnCapability(FP4, why="its conversion is compiled for 10.0 and later"), _UNWRITTEN),
    _quantize(
        "cutedsl",
        OnCapability(DATACENTER, why="SGLang runs it on 10.x alone; elsewhere the CUDA one"),
        _UNWRITTEN, CUTLASS_DSL,
    ),
)  # fmt: skip

_ROUTER = (
    Kernel(
        name="flashinfer.mm_bf16[cublas]",
        op="router_gemm",
        backend="cublas",
        load=f"{_HERE}.router:run_cublas",
        capturable=True,
        requirements=(
            OnCapability(capabilities("8.0", "8.6") | FP8, why="cuBLASLt multiplies bf16 on these"),
            NVIDIA,
            _BF16,
            FLASHINFER,
        ),
        numerics=Numerics(),
    ),
    Kernel(
        name="flashinfer.mm_M1_16[jit_cuda]",
        op="router_gemm",
        backend="jit_cuda",
        load=f"{_HERE}.router:run_few_tokens",
        capturable=True,
        requirements=(
            OnCapability(capabilities("9.0") | DATACENTER, why="DeepSeek's router kernel is built for these"),
            NVIDIA,
            _BF16,
            SizesIn(
                ("K", "N"),
                frozenset({(7168, 256), (7168, 384), (7168, 896), (6144, 256)}),
                "hidden size x experts its fp32-output kernels are compiled for",
            ),
            Bounded("M", least=1, most=16, why="a kernel for each token count"),
            FLASHINFER,
        ),
        numerics=Numerics(),
    ),
)

KERNELS = (*_MM_FP4, *_NVFP4_MM, *_MM_BF16_FP4, *_FP8_GEMM, *_QUANTIZE, *_ROUTER)
