"""FlashInfer's fused MoE. Every entry point declared takes the experts of each token from outside the kernel.

The trtllm-gen functions that route inside take router logits and are not called by kernelmux: the op's contract hands
over topk_ids.
"""

from __future__ import annotations

from ...device import capabilities
from ...registry import (
    ActivationIn,
    Aligned,
    DtypeIn,
    Kernel,
    KnownIssue,
    Numerics,
    OnCapability,
    Requirement,
    SchemeIn,
)
from ..libraries import Bounded, Provided, ShapeIssue, WithActivation
from .facts import (
    CONSUMER,
    CUBINS,
    CUDA_FP4,
    CUTLASS_DSL,
    DATACENTER,
    FLASHINFER,
    FP4,
    FP8,
    ISSUES,
    NVIDIA,
    SM110_CUTLASS_MOE,
    TRTLLM_NVFP4_MOE_NAN,
)

_HERE = "kernelmux.backends.flashinfer"
_HALF = DtypeIn(frozenset({"bfloat16", "float16"}))
_BF16 = DtypeIn(frozenset({"bfloat16"}))
_SILU_RELU2 = ActivationIn(frozenset({"silu", "relu2"}), why="its gelu is not the contract's")
_SILU = ActivationIn(frozenset({"silu"}), why="its block-scaled path is gated")
_STATIC_SCALES = Provided("the checkpoint must hold static scales of both inputs (a1_scale, a2_scale)")
_W4A16_REFUSED = SchemeIn(frozenset({"nvfp4"}), why="it quantizes activations to FP4 as well")
_OUTSIDE = frozenset({"routing_outside"})


def _moe(
    function: str, backend: str, run: str, prepare: str, layout: str, rounding: tuple[str, ...],
    *requirements: Requirement, promises: frozenset[str] = frozenset(),
) -> Kernel:  # fmt: skip
    return Kernel(
        name=f"flashinfer.{function}[{backend}]",
        op="fused_moe",
        backend=backend,
        load=f"{_HERE}.{run}",
        prepare=f"{_HERE}.{prepare}",
        layout=layout,
        capturable=True,
        requirements=(*requirements, NVIDIA, FLASHINFER),
        numerics=Numerics(rounding=rounding, promises=_OUTSIDE | promises),
    )


_HANG_BF16 = ShapeIssue(
    DATACENTER, "flashinfer-python", "", "N", 128,
    "CUTLASS MoE in bf16 hangs on 10.x", "https://github.com/vllm-project/vllm/pull/51492",
)  # fmt: skip
_SCALE_ROWS = WithActivation(
    frozenset({"relu2"}),
    ShapeIssue(
        FP4, "flashinfer-python", "", "N", 128,
        "CUTLASS MoE in NVFP4 refuses its own scale layout without a gate", f"{ISSUES}/4653",
    ),
)  # fmt: skip
_GARBAGE_SM120 = KnownIssue(
    CONSUMER,
    {"flashinfer-python": "<0.6.7"},
    "the grouped NVFP4 GEMM of CUTLASS gave garbage on 12.x",
    "`pip install 'flashinfer-python>=0.7,<0.8'`",
    f"{ISSUES}/2723",
)
_DENSE = OnCapability(FP8, why="CUTLASS grouped GEMMs are built for these")
_BYTES_16 = "rows must be whole 16-byte pieces"

_CUTLASS = (
    _moe(
        "cutlass_fused_moe", "cutlass", "moe_cutlass:run", "moe_cutlass:prepare_bf16", "experts-up-gate",
        ("activated inner rows", "each pair's output", "output"),
        _DENSE, _HALF, SchemeIn(frozenset({"none"})), _SILU_RELU2,
        Aligned("N", 8, _BYTES_16), Aligned("K", 8, _BYTES_16), SM110_CUTLASS_MOE, _HANG_BF16,
    ),
    _moe(
        "cutlass_fused_moe_fp8", "cutlass", "moe_cutlass:run", "moe_cutlass:prepare_fp8_tensor", "experts-up-gate-fp8",
        ("x to e4m3", "activated inner rows to e4m3", "output"),
        _DENSE, _HALF, SchemeIn(frozenset({"fp8_tensor"})), _SILU_RELU2,
        Aligned("N", 16, _BYTES_16), Aligned("K", 16, _BYTES_16), SM110_CUTLASS_MOE, _STATIC_SCALES,
    ),
    _moe(
        "cutlass_fused_moe_fp8_block", "cutlass", "moe_cutlass:run", "moe_cutlass:prepare_fp8_block",
        "experts-up-gate-fp8-block", ("x to e4m3", "activated inner rows to e4m3", "output"),
        OnCapability(capabilities("9.0"), why="its block-scaled GEMM is DeepGEMM's for 9.0"),
        _BF16, SchemeIn(frozenset({"fp8_block"})), _SILU,
        Aligned("N", 128, "whole scale blocks"), Aligned("K", 128, "whole scale blocks"),
    ),
    _moe(
        "cutlass_fused_moe_nvfp4", "cutlass", "moe_cutlass:run", "moe_cutlass:prepare_nvfp4", "experts-nvfp4-128x4",
        ("x to FP4", "activated inner rows to FP4", "output"),
        OnCapability(FP4, why="FP4 tensor cores"), _HALF, _W4A16_REFUSED, _SILU_RELU2,
        Aligned("N", 16, "whole scale blocks"), Aligned("K", 64, "FlashInfer demands it of the hidden size"), CUDA_FP4,
        SM110_CUTLASS_MOE, _SCALE_ROWS, _GARBAGE_SM120, _STATIC_SCALES,
        promises=frozenset({"w4a4"}),
    ),
)  # fmt: skip

_GEN = OnCapability(DATACENTER, why="trtllm-gen MoE kernels exist for 10.x alone")
_TILES = "rows are shuffled in tiles of 128"
_ROUTABLE = Bounded("E", most=2048, why="its routing kernel's limit")

_TRTLLM = (
    _moe(
        "trtllm_bf16_routed_moe", "trtllm", "moe_trtllm:run_bf16", "moe_trtllm:prepare_bf16", "experts-trtllm-bf16",
        ("activated inner rows", "output"),
        _GEN, _BF16, SchemeIn(frozenset({"none"})), _SILU_RELU2, Aligned("N", 128, _TILES), Aligned("K", 128, _TILES),
        _ROUTABLE, CUBINS,
    ),
    _moe(
        "trtllm_fp8_block_scale_routed_moe", "trtllm", "moe_trtllm:run_fp8_block", "moe_trtllm:prepare_fp8_block",
        "experts-trtllm-fp8-block", ("x to e4m3", "activated inner rows to e4m3", "output"),
        _GEN, _BF16, SchemeIn(frozenset({"fp8_block"})), _SILU,
        Aligned("N", 128, "whole scale blocks"), Aligned("K", 128, "whole scale blocks"), _ROUTABLE, CUBINS,
    ),
    _moe(
        "trtllm_fp4_block_scale_routed_moe", "trtllm", "moe_trtllm:run_nvfp4", "moe_trtllm:prepare_nvfp4",
        "experts-trtllm-nvfp4", ("x to FP4", "activated inner rows to FP4", "output"),
        _GEN, _BF16, _W4A16_REFUSED, _SILU_RELU2, Aligned("N", 128, _TILES), Aligned("K", 128, _TILES), _ROUTABLE,
        CUBINS, CUDA_FP4, TRTLLM_NVFP4_MOE_NAN, _STATIC_SCALES,
        promises=frozenset({"w4a4"}),
    ),
)  # fmt: skip

_TCGEN05 = OnCapability(DATACENTER, why="written for tcgen05 tensor cores")
_CUTEDSL_SHAPE = (
    Aligned("K", 256, "it reads whole tiles of 256 columns, without a tail"),
    Aligned("N", 64, "rows of up and gate alternate in 64s"),
    WithActivation(frozenset({"relu2"}), Aligned("N", 128, "its tile of rows")),
)

_CUTEDSL = (
    _moe(
        "cute_dsl_fused_moe", "cutedsl", "moe_cutedsl:run_w4a4", "moe_cutedsl:prepare_w4a4", "experts-cutedsl-nvfp4",
        ("x to FP4", "activated inner rows to FP4", "output"),
        _TCGEN05, _BF16, _W4A16_REFUSED, _SILU_RELU2, *_CUTEDSL_SHAPE, CUTLASS_DSL, _STATIC_SCALES,
        promises=frozenset({"w4a4"}),
    ),
    _moe(
        "cute_dsl_fused_moe_w4a16", "cutedsl", "moe_cutedsl:run_w4a16", "moe_cutedsl:prepare_w4a16",
        "experts-cutedsl-nvfp4-w4a16", ("activated inner rows", "output"),
        _TCGEN05, _BF16, SchemeIn(frozenset({"nvfp4_w4a16"})), _SILU_RELU2, *_CUTEDSL_SHAPE, CUTLASS_DSL,
        promises=frozenset({"w4a16"}),
    ),
)  # fmt: skip

KERNELS = (*_CUTLASS, *_TRTLLM, *_CUTEDSL)
