"""What DeepGEMM offers: fp8_gemm with 128 x 128 blocks.

Scales are fp32 on 9.0 and powers of two (UE8M0) from 10.0 on: there the weights are quantized anew under such scales
when they are prepared, and x under such scales in every call.
"""

from __future__ import annotations

from ...device import capabilities
from ...registry import (
    Aligned,
    AnyOf,
    DtypeIn,
    Kernel,
    NeedsPackage,
    Numerics,
    OnCapability,
    Predicate,
    SchemeIn,
    VendorIn,
)
from ..libraries import Provided, Where, needs_cuda

_SM12X = capabilities("12.0", "12.1")
_UE8M0 = capabilities("10.0", "10.3") | _SM12X
# Emulated in torch for random operands, worst row against the contract's reference: 4.0-4.4% where the weights' scales
# are powers of two (x is rounded under another scale than there), 5.0-5.3% elsewhere; the contract allows 4%. vLLM
# turns DeepGEMM off for Qwen3.5 on these GPUs, for accuracy (vllm/utils/deep_gemm.py).
_POWERS_OF_TWO = Provided("scales become powers of two (UE8M0) here: about 5% from the exact product; compare first")
_LIBRARY = AnyOf(
    (
        NeedsPackage("sgl-deep-gemm", ">=0.2.3", why="DeepGEMM as SGLang builds it"),
        NeedsPackage("deep-gemm", ">=2.1", why="DeepGEMM built from its repository"),
        NeedsPackage("vllm", ">=0.33", why="vLLM's wheel holds a copy"),
    )
)

KERNELS = (
    Kernel(
        name="deepgemm.fp8_gemm_nt[deepgemm]",
        op="fp8_gemm",
        backend="deepgemm",
        load="kernelmux.backends.deepgemm.fp8_gemm:run",
        prepare="kernelmux.backends.deepgemm.fp8_gemm:prepare",
        layout="fp8-block-deepgemm",
        capturable=True,
        requirements=(
            OnCapability(
                capabilities("9.0", "10.0", "10.3") | _SM12X,
                why="it is written for wgmma and tcgen05; 11.0 has neither",
            ),
            VendorIn(frozenset({"nvidia"})),
            Where(
                _SM12X,
                Predicate("kernelmux.backends.deepgemm.exports:ready_for_sm12x", "DeepGEMM exports what 12.x needs"),
            ),
            DtypeIn(frozenset({"bfloat16", "float8_e4m3fn"}), why="its output is bf16"),
            SchemeIn(frozenset({"fp8_block"}), why="it takes a scale for every 128 x 128 block"),
            Aligned("N", 64, "its narrowest tile"),
            Aligned("K", 128, "whole scale blocks"),
            Where(_UE8M0, _POWERS_OF_TWO),
            Where(capabilities("10.0", "10.3"), needs_cuda(">=12.9", "it compiles for the 10.x family with it")),
            _LIBRARY,
        ),
        numerics=Numerics(rounding=("weights under power-of-two scales from 10.0 on", "x to e4m3", "output")),
    ),
)
