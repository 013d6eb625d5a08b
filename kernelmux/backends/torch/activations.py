"""The activations in torch, one function a declared rounding. x [..., 2H] = [gate, up] -> [..., H]; relu2 keeps H."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ...contracts.activations_math import (
    ACT_OF_OP,
    check_gated,
    check_unary,
    gelu_and_mul_reference,
    gelu_tanh_and_mul_reference,
    silu_and_mul_reference,
)


def _rounded_gate(op: str, x: Tensor) -> Tensor:
    """act(gate) rounded to x's dtype, times up, rounded again: Hugging Face's ``act_fn(gate) * up``."""
    check_gated(x, op=op)
    gate, up = x.chunk(2, dim=-1)
    return ACT_OF_OP[op](gate.float()).to(x.dtype) * up


def silu_and_mul_cast_before_mul(x: Tensor, weights: None = None, *, config: Any = None) -> Tensor:
    """silu(gate) rounded, times up."""
    return _rounded_gate("silu_and_mul", x)


def silu_and_mul_fp32_mul(x: Tensor, weights: None = None, *, config: Any = None) -> Tensor:
    """silu(gate) * up in fp32, rounded once."""
    check_gated(x, op="silu_and_mul")
    return silu_and_mul_reference(x).to(x.dtype)


def gelu_and_mul_cast_before_mul(x: Tensor, weights: None = None, *, config: Any = None) -> Tensor:
    """gelu(gate) rounded, times up."""
    return _rounded_gate("gelu_and_mul", x)


def gelu_and_mul_fp32_mul(x: Tensor, weights: None = None, *, config: Any = None) -> Tensor:
    """gelu(gate) * up in fp32, rounded once."""
    check_gated(x, op="gelu_and_mul")
    return gelu_and_mul_reference(x).to(x.dtype)


def gelu_tanh_and_mul_cast_before_mul(x: Tensor, weights: None = None, *, config: Any = None) -> Tensor:
    """The tanh-approximated gelu(gate) rounded, times up."""
    return _rounded_gate("gelu_tanh_and_mul", x)


def gelu_tanh_and_mul_fp32_mul(x: Tensor, weights: None = None, *, config: Any = None) -> Tensor:
    """The tanh-approximated gelu(gate) * up in fp32, rounded once."""
    check_gated(x, op="gelu_tanh_and_mul")
    return gelu_tanh_and_mul_reference(x).to(x.dtype)


def relu2(x: Tensor, weights: None = None, *, config: Any = None) -> Tensor:
    """max(x, 0)^2 in x's dtype, rounded once; torch squares 16-bit values in fp32."""
    check_unary(x)
    return F.relu(x).square()
