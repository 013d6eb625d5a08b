"""What torch.compile offers: the norms and activations, fused into one kernel each at the first call of a size."""

from __future__ import annotations

from ...registry import ANY, AnyOf, DtypeIn, Kernel, NeedsPackage, Numerics, OnCapability, VendorIn

_HERE = "kernelmux.backends.torch_compile.small"
_REQUIREMENTS = (
    OnCapability(ANY),
    DtypeIn(frozenset({"bfloat16", "float16", "float32"})),
    NeedsPackage("torch", ">=2.6", to_run=True, install="pip install 'kernelmux[torch]'"),
    AnyOf(
        (VendorIn(frozenset({"cpu"})), NeedsPackage("triton", to_run=True)), why="Inductor writes Triton for GPUs"
    ),
)  # fmt: skip


def _kernel(op: str, *promises: str) -> Kernel:
    return Kernel(
        name=f"kernelmux.{op}[torch_compile]",
        op=op,
        backend="torch_compile",
        load=f"{_HERE}:{op}",
        warmup=f"{_HERE}:warmup",
        capturable=True,
        evidence={"cpu": "measured"},
        requirements=_REQUIREMENTS,
        # Inductor drops casts between what it fuses, so only functions that round at their end are compiled.
        numerics=Numerics(rounding=("output",), promises=frozenset(promises)),
    )


KERNELS = (
    _kernel("rms_norm", "fp32_mul"),
    _kernel("fused_add_rms_norm", "fp32_mul", "residual_fp32"),
    _kernel("gated_rms_norm", "fp32_mul"),
    _kernel("silu_and_mul", "fp32_mul"),
    _kernel("gelu_and_mul", "fp32_mul"),
    _kernel("gelu_tanh_and_mul", "fp32_mul"),
    _kernel("relu2", "fp32_mul", "cast_before_mul"),
)
