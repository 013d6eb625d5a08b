"""What the Triton backend offers."""

from __future__ import annotations

from ...contracts.moe_shape import ACTIVATIONS
from ...device import capabilities
from ...registry import ANY, ActivationIn, DtypeIn, Kernel, NeedsPackage, Numerics, OnCapability, SchemeIn, VendorIn

_TORCH = NeedsPackage("torch", ">=2.4", to_run=True, install="pip install 'kernelmux[torch]'")
_TRITON = NeedsPackage("triton", ">=3.5", why="3.5 is the first release whose tensor descriptors come from the host")

KERNELS = (
    Kernel(
        name="kernelmux.fused_moe[triton]",
        op="fused_moe",
        backend="triton",
        load="kernelmux.backends.triton.fused_moe:run",
        prepare="kernelmux.backends.triton.fused_moe:prepare",
        warmup="kernelmux.backends.triton.fused_moe:warmup",
        configs="kernelmux.tuning_configs.lookup:provider",
        source="kernelmux.backends.triton.moe_source:source_hash",
        compile="kernelmux.backends.triton.moe_jobs:fused",
        layout="experts-hf",
        capturable=True,
        # 9.0: tests/gpu, benchmarks/results/fused-moe-h200.json; the others: tests/unit/backends/test_moe_compile.py.
        evidence={
            **dict.fromkeys(capabilities("8.0", "8.6", "8.9", "10.0", "10.3", "12.0", "12.1"), "compiled"),
            **dict.fromkeys(capabilities("9.0"), "measured"),
        },
        requirements=(
            OnCapability(ANY),
            VendorIn(frozenset({"nvidia", "amd"}), why="Triton compiles for GPUs"),
            DtypeIn(frozenset({"bfloat16", "float16"})),
            SchemeIn(frozenset({"none"})),
            ActivationIn(frozenset(ACTIVATIONS)),
            _TRITON,
            _TORCH,
        ),
        numerics=Numerics(
            rounding=("activated inner rows", "each pair's weighted output", "output"),
            promises=frozenset({"deterministic", "routing_outside"}),
        ),
    ),
)
