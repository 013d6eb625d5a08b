"""The norms compiled from csrc/norms.cu, in every rounding.

Their results depend on the row alone: not on the number of rows, on how they are dealt out, or on how they are aligned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...device import capabilities
from ...registry import DtypeIn, Kernel, Numerics
from .needs import COMPILED_HERE

if TYPE_CHECKING:
    from ...device import Capability

_HERE = "kernelmux.backends.jit_cuda.norms"
_PROMISES = frozenset({"deterministic", "batch_invariant", "no_fast_math"})
_FLOATS = DtypeIn(frozenset({"bfloat16", "float16", "float32"}))
# tests/unit/backends/test_jit_norms.py compiles them for these.
_EVIDENCE: Mapping[Capability | str, str] = {
    **dict.fromkeys(capabilities("8.0", "8.9", "10.0", "10.3", "12.0"), "compiled"),
    **dict.fromkeys(capabilities("9.0"), "measured"),  # an H200: tests/gpu/test_small_ops_gpu.py
}

_PRODUCT = {
    "": (("the product with the weight",), "fp32_mul"),
    "cast_before_mul": (("the normalised row", "the product with the weight"), "cast_before_mul"),
}


def _kernel(op: str, order: str, residual: str = "") -> Kernel:
    rounding, promise = _PRODUCT[order]
    promises, variant = _PROMISES | {promise}, f"{op}_{promise}"
    if op == "fused_add_rms_norm":
        kept = residual or "residual_rounded"
        rounding, promises, variant = ("the new residual", *rounding), promises | {kept}, f"{variant}_{kept}"
    return Kernel(
        name=f"kernelmux.{op}[{', '.join(('jit_cuda', *filter(None, (residual, order))))}]",
        op=op,
        backend="jit_cuda",
        load=f"{_HERE}:{variant}",
        bind=f"{_HERE}:bind_{variant}",
        compile=f"{_HERE}:compile_{variant}",
        warmup=f"{_HERE}:warmup",
        source="kernelmux.backends.jit_cuda.source:norms",
        capturable=True,
        evidence=_EVIDENCE,
        requirements=(*COMPILED_HERE, _FLOATS),
        numerics=Numerics(rounding=rounding, promises=promises),
    )


KERNELS = (
    *(_kernel(op, order) for op in ("rms_norm", "gated_rms_norm") for order in _PRODUCT),
    *(_kernel("fused_add_rms_norm", order, kept) for order in _PRODUCT for kept in ("", "residual_fp32")),
)
