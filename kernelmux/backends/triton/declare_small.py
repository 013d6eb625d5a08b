"""The norms, the activations and what ends in e4m3: what the Triton backend offers of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...contracts.activation_table import ACTIVATIONS
from ...device import Capability, capabilities
from ...registry import ANY, DtypeIn, Kernel, NeedsPackage, Numerics, OnCapability, VendorIn
from ...registry.decision import ACCEPTED, Conditional, Rejected
from ...registry.value import Value

if TYPE_CHECKING:
    from ...device import Device
    from ...registry.decision import Decision
    from ...registry.packages import Packages
    from ...registry.problem import Problem

_HERE = "kernelmux.backends.triton"
_NOT_ASSEMBLED = capabilities("11.0")


class Assembled(Value):
    """A GPU whose machine code the assembler inside Triton's wheel writes. Those of 3.5 and 3.6 do not know 11.0."""

    def check(self, device: Device, packages: Packages, problem: Problem) -> Decision:
        if device.capability not in _NOT_ASSEMBLED:
            return ACCEPTED
        if packages.has("triton", ">=3.7"):
            return Conditional((f"nobody has compiled this with Triton's assembler for {device.arch} so far",))
        return Rejected(
            "assembler",
            f"the assembler in Triton {packages.get('triton') or 'up to 3.6'} does not know {device.arch}",
            "use jit_cuda, which NVRTC of CUDA 13 compiles for it, or a later Triton",
        )

    def describe(self) -> str:
        return "a GPU that Triton's assembler knows"


_REQUIREMENTS = (
    OnCapability(ANY),
    VendorIn(frozenset({"nvidia", "amd"}), why="Triton compiles for GPUs"),
    Assembled(),
    DtypeIn(frozenset({"bfloat16", "float16", "float32"})),
    NeedsPackage("triton", ">=3.5", why="3.5 is the first release that knows every GPU this kernel was compiled for"),
    NeedsPackage("torch", ">=2.4", to_run=True, install="pip install 'kernelmux[torch]'"),
)
# tests/unit/backends/test_small_compile.py
_EVIDENCE: Mapping[Capability | str, str] = {
    **dict.fromkeys(capabilities("8.0", "8.6", "8.9", "10.0", "10.3", "12.0", "12.1"), "compiled"),
    **dict.fromkeys(capabilities("9.0"), "measured"),  # an H200: tests/gpu/test_triton_small_gpu.py
}
_PROMISES = frozenset({"batch_invariant", "deterministic", "no_fast_math"})

_PRODUCT = {
    "fp32_mul": ("the product with the weight",),
    "cast_before_mul": ("the normalised row", "the product with the weight"),
}


def _kernel(op: str, at: str, rounding: tuple[str, ...], promises: set[str], *variant: str) -> Kernel:
    """``at``: module:name of its Variant."""
    return Kernel(
        name=f"kernelmux.{op}[{', '.join(('triton', *(word for word in variant if word)))}]",
        op=op,
        backend="triton",
        load=f"{_HERE}.{at}.run",
        bind=f"{_HERE}.{at}.bind",
        compile=f"{_HERE}.{at}.compile",
        warmup=f"{_HERE}.{at}.warmup",
        source=f"{_HERE}.small_source:source_hash",
        capturable=True,
        evidence=_EVIDENCE,
        requirements=_REQUIREMENTS,
        numerics=Numerics(rounding=rounding, promises=_PROMISES | promises),
    )


def _word(order: str) -> str:
    """What a name says of its order: nothing of fp32_mul."""
    return "" if order == "fp32_mul" else order


def _norm(op: str, order: str) -> Kernel:
    return _kernel(op, f"norms:{op}_{order}", _PRODUCT[order], {order}, _word(order))


def _norm_with_residual(order: str, kept: str) -> Kernel:
    op = "fused_add_rms_norm"
    word = "" if kept == "residual_rounded" else kept
    rounding = ("the new residual", *_PRODUCT[order])
    return _kernel(op, f"norms:{op}_{order}_{kept}", rounding, {order, kept}, word, _word(order))


def _gated(op: str, order: str) -> Kernel:
    first = ("the activated gate",) if order == "cast_before_mul" else ()
    return _kernel(op, f"activations:{op}_{order}", (*first, "the product"), {order}, _word(order))


KERNELS = (
    *(_norm(op, order) for op in ("rms_norm", "gated_rms_norm") for order in _PRODUCT),
    *(_norm_with_residual(order, kept) for order in _PRODUCT for kept in ("residual_rounded", "residual_fp32")),
    *(_gated(a.name, order) for a in ACTIVATIONS if a.gated for order in _PRODUCT),
    *(
        _kernel(a.name, f"activations:{a.name}", ("output",), {"cast_before_mul", "fp32_mul"})
        for a in ACTIVATIONS if not a.gated
    ),
    _kernel("rms_norm_fp8", "fp8_epilogues:rms_norm_fp8", ("the quotient by the scale",), {"fp32_mul"}),
    _kernel("silu_and_mul_fp8", "fp8_epilogues:silu_and_mul_fp8", ("the quotient by the scale",), {"fp32_mul"}),
)  # fmt: skip
