"""Planted kernels that a policy prefers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kernelmux.policies.policy import Policy
from kernelmux.policies.rule import read_rule
from kernelmux.policies.select import select_backend
from kernelmux.policies.selection import Selection
from kernelmux.registry import Kernel
from kernelmux.registry.discovery import registry

SHAPES = {
    "silu_and_mul": {"M": 8, "H": 192},
    "rms_norm": {"M": 4, "H": 256},
    "nvfp4_gemm": {"M": 4, "N": 256, "K": 256},
    "nvfp4_quantize": {"M": 4, "K": 256},
    "router_gemm": {"M": 4, "N": 64, "K": 256},
    "topk": {"M": 4, "E": 32, "topk": 4},
    "fused_moe": {"M": 4, "E": 8, "N": 64, "K": 128, "topk": 2},
    "fp8_gemm": {"M": 4, "N": 256, "K": 256},
}

Choose = Callable[..., Selection]


def preferring(op: str, *names: str) -> Policy:
    rule = {
        "id": "planted",
        "when": {"op": op},
        "prefer": [*names],
        "why": "planted",
        "evidence": "https://example.org",
    }
    return Policy((read_rule(rule),))


def choose(kernels: Any, op: str = "silu_and_mul", **asked: Any) -> Selection:
    """Register the planted kernels and select: they are preferred in this order, then torch."""
    given = [kernels] if isinstance(kernels, Kernel) else list(kernels)
    known = {kernel.name for kernel in registry().kernels(op)}
    new = [kernel for kernel in given if kernel.name not in known]
    if new:
        registry().add(*new)
    policy = preferring(op, *(kernel.name for kernel in given), f"kernelmux.{op}[torch]")
    question: dict[str, Any] = {"device": "cpu", "dtype": "bfloat16", "shape": SHAPES[op], "policy": policy}
    return select_backend(op, **{**question, **asked})
