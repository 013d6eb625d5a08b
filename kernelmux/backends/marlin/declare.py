"""What Marlin offers: NVFP4, MXFP4 and FP8 weights multiplied by 16-bit activations.

It is a change of numerics: activations are not quantized, also where the checkpoint says they should be. A Selection
says so by its scheme and by the promise ``w4a16`` or ``w8a16``.
"""

from __future__ import annotations

from ...device import capabilities
from ...registry import (
    ActivationIn,
    Aligned,
    DtypeIn,
    Kernel,
    NeedsPackage,
    Numerics,
    OnCapability,
    Requirement,
    SchemeIn,
    VendorIn,
)
from ..libraries import Where

_HERE = "kernelmux.backends.marlin"
_TURING = capabilities("7.5")
_AMPERE_TO_HOPPER = capabilities("8.0", "8.6", "8.9", "9.0")
_BLACKWELL = capabilities("10.0", "10.3", "12.0", "12.1")
_COMMON: tuple[Requirement, ...] = (
    VendorIn(frozenset({"nvidia"})),
    Where(_TURING, DtypeIn(frozenset({"float16"}), why="7.5 has no bf16 tensor cores")),
    Where(_AMPERE_TO_HOPPER | _BLACKWELL, DtypeIn(frozenset({"bfloat16"}), why="scales are prepared in bf16")),
    NeedsPackage(
        "vllm",
        ">=0.33,<0.34",
        why="its calls were bound against 0.33.0; Marlin's Python functions move between releases",
        link="https://github.com/vllm-project/vllm/tree/main/csrc/quantization/marlin",
    ),
)
# vLLM lists 7.5 and everything later; nobody has reported it on 11.0. Its 0.33.0 wheel holds Marlin in machine code for
# 7.5, 8.0, 8.9 and 12.0, the dense one for 9.0 too (read with cuobjdump); elsewhere the driver compiles the PTX of 8.0.
_GPUS = OnCapability(
    _TURING | _AMPERE_TO_HOPPER | _BLACKWELL, why="vLLM lists 7.5 and later; nobody has reported it on 11.0"
)
_FP4_SCHEMES = SchemeIn(frozenset({"nvfp4", "nvfp4_w4a16"}))
_W4A16 = frozenset({"w4a16"})
_W8A16 = frozenset({"w8a16"})
_FP8_SCHEMES = SchemeIn(frozenset({"fp8_tensor", "fp8_channel", "fp8_block"}))

KERNELS = (
    Kernel(
        name="vllm.marlin_nvfp4[marlin]",
        op="nvfp4_gemm",
        backend="marlin",
        load=f"{_HERE}.linear:run_nvfp4",
        prepare=f"{_HERE}.linear:prepare_nvfp4",
        layout="marlin-nvfp4",
        capturable=True,
        requirements=(_GPUS, _FP4_SCHEMES, Aligned("K", 16, "whole scale blocks"), *_COMMON),
        numerics=Numerics(rounding=("weights to 16 bits", "output"), promises=_W4A16),
    ),
    Kernel(
        name="vllm.marlin_fp8[marlin]",
        op="fp8_gemm",
        backend="marlin",
        load=f"{_HERE}.linear:run_fp8",
        prepare=f"{_HERE}.linear:prepare_fp8",
        layout="marlin-fp8",
        capturable=True,
        requirements=(_GPUS, _FP8_SCHEMES, Aligned("K", 64, "its tile"), Aligned("N", 64, "its tile"), *_COMMON),
        numerics=Numerics(rounding=("scales to 16 bits", "output"), promises=_W8A16),
    ),
    Kernel(
        name="vllm.marlin_moe_nvfp4[marlin]",
        op="fused_moe",
        backend="marlin",
        load=f"{_HERE}.moe:run",
        prepare=f"{_HERE}.moe:prepare_nvfp4",
        layout="experts-marlin-nvfp4",
        capturable=True,
        requirements=(
            _GPUS,
            _FP4_SCHEMES,
            ActivationIn(frozenset({"silu", "gelu", "gelu_tanh", "relu2"})),
            Aligned("N", 16, "whole scale blocks"),
            Aligned("K", 64, "its tile"),
            *_COMMON,
        ),
        numerics=Numerics(
            rounding=("weights to 16 bits", "both projections", "activated inner rows", "output"),
            promises=_W4A16 | {"routing_outside"},
        ),
    ),
    Kernel(
        name="vllm.marlin_moe_fp8[marlin]",
        op="fused_moe",
        backend="marlin",
        load=f"{_HERE}.moe:run",
        prepare=f"{_HERE}.moe:prepare_fp8",
        layout="experts-marlin-fp8",
        capturable=True,
        requirements=(
            _GPUS,
            _FP8_SCHEMES,
            ActivationIn(frozenset({"silu", "gelu", "gelu_tanh"}), why="its padding takes a gate for granted"),
            Aligned("N", 64, "its tile"),
            Aligned("K", 128, "its tile"),
            *_COMMON,
        ),
        numerics=Numerics(
            rounding=("scales to 16 bits", "both projections", "activated inner rows", "output"),
            promises=_W8A16 | {"routing_outside"},
        ),
    ),
    Kernel(
        name="vllm.marlin_moe_mxfp4[marlin]",
        op="fused_moe",
        backend="marlin",
        load=f"{_HERE}.moe:run",
        prepare=f"{_HERE}.moe:prepare_mxfp4",
        layout="experts-marlin-mxfp4",
        capturable=True,
        requirements=(
            _GPUS,
            SchemeIn(frozenset({"mxfp4"})),
            ActivationIn(frozenset({"silu", "gelu", "gelu_tanh"}), why="it takes a gate for granted"),
            Aligned("N", 64, "its tile"),
            Aligned("K", 128, "its tile"),
            *_COMMON,
        ),
        numerics=Numerics(
            rounding=("weights to 16 bits", "both projections", "activated inner rows", "output"),
            promises=_W4A16 | {"routing_outside"},
        ),
    ),
)
