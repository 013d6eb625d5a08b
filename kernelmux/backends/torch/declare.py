"""What the torch backend offers."""

from __future__ import annotations

from ...registry import ANY, Kernel, NeedsPackage, Numerics, OnCapability, SchemeIn

_TORCH = NeedsPackage("torch", ">=2.4", to_run=True, install="pip install 'kernelmux[torch]'")

KERNELS = (
    Kernel(
        name="kernelmux.fused_moe[torch]",
        op="fused_moe",
        backend="torch",
        load="kernelmux.backends.torch.fused_moe:run",
        prepare="kernelmux.backends.torch.fused_moe:prepare",
        layout="experts-hf",
        evidence={"cpu": "measured"},
        requirements=(OnCapability(ANY), SchemeIn(frozenset({"none"})), _TORCH),
        numerics=Numerics(rounding=("each matrix product", "activated inner rows", "output")),
    ),
)
