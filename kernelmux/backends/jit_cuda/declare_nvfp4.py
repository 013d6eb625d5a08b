"""NVFP4 weights times a few tokens, compiled from csrc/nvfp4_gemv.cu; more tokens go to the Triton kernel.

Both read weights of one layout, so that nothing is held twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...device import capabilities
from ...registry import Aligned, DtypeIn, Kernel, NeedsPackage, Numerics, SchemeIn
from .needs import COMPILED_HERE

if TYPE_CHECKING:
    from ...device import Capability

_HERE = "kernelmux.backends.jit_cuda.nvfp4_gemv"
# tests/unit/backends/test_nvfp4_gemv.py
_EVIDENCE: Mapping[Capability | str, str] = {
    **dict.fromkeys(capabilities("8.0", "8.6", "8.9", "10.0", "12.0"), "compiled"),
    **dict.fromkeys(capabilities("9.0"), "measured"),  # an H200: tests/gpu/test_nvfp4_gpu.py
}

KERNELS = (
    Kernel(
        name="kernelmux.nvfp4_weight_only[jit_cuda]",
        op="nvfp4_gemm",
        backend="jit_cuda",
        load=f"{_HERE}:run_any",
        prepare="kernelmux.backends.triton.nvfp4_planes:prepare",
        configs="kernelmux.backends.triton.nvfp4_configs:few_tokens",
        warmup="kernelmux.backends.triton.nvfp4_warmup:few_tokens",
        source="kernelmux.backends.triton.nvfp4_source:source_hash_of_few",
        compile=f"{_HERE}:compile_few",
        layout="nvfp4-planes",
        capturable=True,
        evidence=_EVIDENCE,
        requirements=(
            *COMPILED_HERE,
            DtypeIn(frozenset({"bfloat16", "float16"})),
            SchemeIn(frozenset({"nvfp4", "nvfp4_w4a16"})),
            Aligned("K", 16, "whole scale blocks"),
            NeedsPackage("triton", ">=3.6", why="calls of many tokens run in Triton"),
        ),
        numerics=Numerics(rounding=("output",), promises=frozenset({"deterministic", "no_fast_math", "w4a16"})),
    ),
)
