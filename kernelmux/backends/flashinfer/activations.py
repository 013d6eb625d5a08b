"""Gated activations through FlashInfer: x [..., 2H] = [gate, up] -> [..., H]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .layouts import flashinfer

if TYPE_CHECKING:
    from torch import Tensor


def silu_and_mul(x: Tensor, weights: None = None, *, config: Any = None) -> Tensor:
    return flashinfer().silu_and_mul(x.contiguous())


def gelu_and_mul(x: Tensor, weights: None = None, *, config: Any = None) -> Tensor:
    return flashinfer().gelu_and_mul(x.contiguous())


def gelu_tanh_and_mul(x: Tensor, weights: None = None, *, config: Any = None) -> Tensor:
    return flashinfer().gelu_tanh_and_mul(x.contiguous())
