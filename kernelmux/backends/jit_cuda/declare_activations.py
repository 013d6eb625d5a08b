"""The activations compiled from csrc/activations.cu in both roundings, and the ops of csrc/fp8_epilogues.cu.

An activation's result depends on the element alone; a value of rms_norm_fp8 on its row, one of silu_and_mul_fp8 on its
block of 128: not on the number of rows, or on how they are dealt out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...contracts.activation_table import ACTIVATIONS
from ...device import capabilities
from ...registry import DtypeIn, Kernel, Numerics
from .needs import COMPILED_HERE

if TYPE_CHECKING:
    from ...device import Capability

_HERE = "kernelmux.backends.jit_cuda"
_PROMISES = frozenset({"deterministic", "batch_invariant", "no_fast_math"})
_FLOATS = DtypeIn(frozenset({"bfloat16", "float16", "float32"}))
# tests/unit/backends/test_jit_activations.py compiles them for these.
_EVIDENCE: Mapping[Capability | str, str] = {
    **dict.fromkeys(capabilities("8.0", "8.9", "10.0", "10.3", "12.0"), "compiled"),
    **dict.fromkeys(capabilities("9.0"), "measured"),  # an H200: tests/gpu/test_small_ops_gpu.py
}


def _kernel(op: str, module: str, variant: str, numerics: Numerics, *words: str) -> Kernel:
    return Kernel(
        name=f"kernelmux.{op}[{', '.join(('jit_cuda', *words))}]",
        op=op,
        backend="jit_cuda",
        load=f"{_HERE}.{module}:{variant}",
        bind=f"{_HERE}.{module}:bind_{variant}",
        compile=f"{_HERE}.{module}:compile_{variant}",
        warmup=f"{_HERE}.{module}:warmup_{variant}",
        source=f"{_HERE}.source:{module}",
        capturable=True,
        evidence=_EVIDENCE,
        requirements=(*COMPILED_HERE, _FLOATS),
        numerics=numerics,
    )


def _gated(op: str, order: str) -> Kernel:
    promise = order or "fp32_mul"
    first, words = (("the activated gate",), (order,)) if order else ((), ())
    numerics = Numerics(rounding=(*first, "the product"), promises=_PROMISES | {promise})
    return _kernel(op, "activations", f"{op}_{promise}", numerics, *words)


def _unary(op: str) -> Kernel:
    both = frozenset({"cast_before_mul", "fp32_mul"})
    return _kernel(op, "activations", op, Numerics(rounding=("the result",), promises=_PROMISES | both))


KERNELS = (
    *(_gated(each.name, order) for each in ACTIVATIONS if each.gated for order in ("", "cast_before_mul")),
    *(_unary(each.name) for each in ACTIVATIONS if not each.gated),
    *(
        _kernel(op, "fp8_epilogues", op, Numerics(rounding=("the product to e4m3",), promises=_PROMISES | {"fp32_mul"}))
        for op in ("rms_norm_fp8", "silu_and_mul_fp8")
    ),
)
