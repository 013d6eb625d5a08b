"""What torch.compile offers: the norms and activations, fused into one kernel each at the first call of a size.

The functions it is given round once, at their end. Whether its code does is found out: by
``tests/unit/backends/test_torch_compile.py`` on a CPU and ``tests/gpu/test_small_ops_gpu.py`` on a GPU.
"""

from __future__ import annotations

from ...contracts.activation_table import ACTIVATIONS
from ...device import capabilities
from ...registry import ANY, AnyOf, DtypeIn, Kernel, NeedsPackage, Numerics, OnCapability, Requirement, VendorIn

_HERE = "kernelmux.backends.torch_compile.small"
_CPU = VendorIn(frozenset({"cpu"}))
_REQUIREMENTS: tuple[Requirement, ...] = (
    OnCapability(ANY),
    DtypeIn(frozenset({"bfloat16", "float16", "float32"})),
    NeedsPackage("torch", ">=2.6", to_run=True, install="pip install 'kernelmux[torch]'"),
    AnyOf((_CPU, NeedsPackage("triton", to_run=True)), why="Inductor writes Triton for GPUs"),
)
_E4M3 = AnyOf(
    (_CPU, OnCapability(capabilities("8.9", "9.0", "10.x", "11.0", "12.x"))),
    why="Triton converts to e4m3 on 8.9 and later",
)


def _kernel(op: str, *promises: str, requires: tuple[Requirement, ...] = ()) -> Kernel:
    return Kernel(
        name=f"kernelmux.{op}[torch_compile]",
        op=op,
        backend="torch_compile",
        load=f"{_HERE}:{op}",
        warmup=f"{_HERE}:warmup",
        capturable=True,
        evidence={"cpu": "measured"},
        requirements=(*_REQUIREMENTS, *requires),
        # Inductor drops casts between what it fuses, so only functions that round at their end are compiled.
        numerics=Numerics(rounding=("output",), promises=frozenset(promises)),
    )


KERNELS = (
    _kernel("rms_norm", "fp32_mul"),
    _kernel("fused_add_rms_norm", "fp32_mul", "residual_fp32"),
    _kernel("gated_rms_norm", "fp32_mul"),
    _kernel("rms_norm_fp8", "fp32_mul", requires=(_E4M3,)),
    *(
        _kernel(activation.name, "fp32_mul", *(() if activation.gated else ("cast_before_mul",)))
        for activation in ACTIVATIONS
    ),
    _kernel("silu_and_mul_fp8", "fp32_mul", requires=(_E4M3,)),
)
