"""What the torch backend offers: a kernel for every op, on any device that torch has.

Of the kernels of one op on one backend the first by name is taken where nothing else decides, so that ``torch`` alone
means ``[torch, cast_before_mul]``, the rounding of Hugging Face's modelling code; ``[torch]`` multiplies in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...contracts.activation_table import ACTIVATIONS
from ...registry import ANY, DtypeIn, Kernel, NeedsPackage, Numerics, OnCapability, SchemeIn
from ...registry.requirements import Requirement

if TYPE_CHECKING:
    from ...device import Capability

_TORCH = NeedsPackage("torch", ">=2.4", to_run=True, install="pip install 'kernelmux[torch]'")
_FLOATS = DtypeIn(frozenset({"bfloat16", "float16", "float32"}))
_HERE = "kernelmux.backends.torch"
_ON_CPU: Mapping[Capability | str, str] = {"cpu": "measured"}
_EXACT_MATH = frozenset({"deterministic", "no_fast_math"})
_FP8 = _EXACT_MATH | {"fp32_mul"}
_BIT_EXACT = _EXACT_MATH | {"bit_exact"}
_BYTES = DtypeIn(frozenset({"uint8"}), why="two values a byte")

_PRODUCT = {
    "": (("the product with the weight",), "fp32_mul"),
    "cast_before_mul": (("the normalised row", "the product with the weight"), "cast_before_mul"),
}


def _kernel(
    op: str,
    load: str,
    numerics: Numerics,
    *variant: str,
    requires: tuple[Requirement, ...] = (_FLOATS,),
    prepare: str | None = None,
    layout: str = "plain",
    capturable: bool = True,
) -> Kernel:
    return Kernel(
        name=f"kernelmux.{op}[{', '.join(('torch', *(word for word in variant if word)))}]",
        op=op,
        backend="torch",
        load=f"{_HERE}.{load}",
        prepare=f"{_HERE}.{prepare}" if prepare else None,
        layout=layout,
        capturable=capturable,
        evidence=_ON_CPU,
        requirements=(OnCapability(ANY), *requires, _TORCH),
        numerics=numerics,
    )


def _norm(op: str, order: str) -> Kernel:
    rounding, promise = _PRODUCT[order]
    numerics = Numerics(rounding=rounding, promises=_EXACT_MATH | {promise})
    return _kernel(op, f"norms:{op}_{promise}", numerics, order)


def _norm_with_residual(order: str, residual: str) -> Kernel:
    rounding, promise = _PRODUCT[order]
    kept = residual or "residual_rounded"
    numerics = Numerics(rounding=("the new residual", *rounding), promises=_EXACT_MATH | {promise, kept})
    return _kernel("fused_add_rms_norm", f"norms:fused_add_rms_norm_{promise}_{kept}", numerics, residual, order)


def _gated(op: str, order: str) -> Kernel:
    first = ("the activated gate",) if order else ()
    promise = order or "fp32_mul"
    numerics = Numerics(rounding=(*first, "the product"), promises=_EXACT_MATH | {promise})
    return _kernel(op, f"activations:{op}_{promise}", numerics, order)


def _unary(op: str) -> Kernel:
    numerics = Numerics(rounding=("output",), promises=_EXACT_MATH | {"cast_before_mul", "fp32_mul"})
    return _kernel(op, f"activations:{op}", numerics)


KERNELS = (
    Kernel(
        name="kernelmux.fused_moe[torch]",
        op="fused_moe",
        backend="torch",
        load="kernelmux.backends.torch.fused_moe:run",
        prepare="kernelmux.backends.torch.fused_moe:prepare",
        layout="experts-hf",
        evidence=_ON_CPU,
        requirements=(
            OnCapability(ANY),
            SchemeIn(frozenset({"none"}), why="it multiplies weights of x's dtype"),
            _TORCH,
        ),
        numerics=Numerics(
            rounding=("each matrix product", "activated inner rows", "output"), promises=frozenset({"routing_outside"})
        ),
    ),
    Kernel(
        name="kernelmux.fused_moe_weight_only[torch]",
        op="fused_moe",
        backend="torch",
        load="kernelmux.backends.torch.moe_weight_only:run",
        prepare="kernelmux.backends.torch.moe_weight_only:prepare",
        layout="experts-hf",
        evidence=_ON_CPU,
        requirements=(
            OnCapability(ANY),
            DtypeIn(frozenset({"bfloat16", "float16", "float32"})),
            SchemeIn(
                frozenset(
                    {"fp8_tensor", "fp8_channel", "fp8_block", "int8_w8a8", "int8_w8a16", "nvfp4", "nvfp4_w4a16"}
                ),
                why="it dequantizes 8-bit and NVFP4 weights",
            ),
            _TORCH,
        ),
        numerics=Numerics(
            rounding=("dequantized weights", "each matrix product", "activated inner rows", "output"),
            promises=frozenset({"routing_outside", "w4a16", "w8a16"}),
        ),
    ),
    *(_norm(op, order) for op in ("rms_norm", "gated_rms_norm") for order in _PRODUCT),
    *(_norm_with_residual(order, kept) for order in _PRODUCT for kept in ("", "residual_fp32")),
    *(_gated(act.name, order) for act in ACTIVATIONS if act.gated for order in _PRODUCT),
    *(_unary(act.name) for act in ACTIVATIONS if not act.gated),
    _kernel("rms_norm_fp8", "norms:rms_norm_fp8", Numerics(rounding=("the product to e4m3",), promises=_FP8)),
    _kernel(
        "silu_and_mul_fp8", "activations:silu_and_mul_fp8",
        Numerics(rounding=("the product to e4m3",), promises=_FP8),
    ),
    _kernel("router_gemm", "router:router_gemm", Numerics(promises=frozenset({"no_fast_math"}))),
    _kernel("topk", "router:topk", Numerics(promises=_EXACT_MATH | {"deepseek_v3_routing"})),
    _kernel(
        "fp8_gemm", "fp8_gemm:run",
        Numerics(
            rounding=("x to e4m3", "dequantized operands where the GPU has no fp8 units", "output"),
            promises=frozenset({"no_fast_math"}),
        ),
        requires=(
            DtypeIn(frozenset({"bfloat16", "float16", "float8_e4m3fn"})),
            SchemeIn(frozenset({"fp8_tensor", "fp8_channel", "fp8_block"})),
        ),
        prepare="fp8_gemm:prepare", layout="fp8-rows",
    ),
    _kernel("nvfp4_quantize", "nvfp4:quantize", Numerics(promises=_BIT_EXACT)),
    _kernel("silu_and_mul_nvfp4", "nvfp4:silu_and_mul", Numerics(promises=_FP8)),
    _kernel("rms_norm_nvfp4", "nvfp4:rms_norm", Numerics(promises=_FP8)),
    _kernel(
        "nvfp4_dequantize", "nvfp4:dequantize", Numerics(rounding=("output",), promises=_BIT_EXACT), requires=(_BYTES,)
    ),
    _kernel(
        "nvfp4_mm", "nvfp4:mm", Numerics(rounding=("output",), promises=frozenset({"no_fast_math"})), requires=(_BYTES,)
    ),
    _kernel(
        "nvfp4_gemm", "nvfp4:gemm",
        Numerics(
            rounding=("x to NVFP4, with an input scale", "dequantized operands", "output"),
            promises=frozenset({"no_fast_math"}),
        ),
        requires=(DtypeIn(frozenset({"bfloat16", "float16"})), SchemeIn(frozenset({"nvfp4", "nvfp4_w4a16"}))),
        prepare="nvfp4:prepare", layout="nvfp4-linear",
    ),
)  # fmt: skip
