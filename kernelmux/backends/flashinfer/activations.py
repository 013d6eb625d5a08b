"""Gated activations through FlashInfer: x [..., 2H] = [gate, up] -> [..., H].

Its kernels take no strides: what is not contiguous is copied, on the way in and on the way out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .layouts import flashinfer
from .rows import readable, settle, writable

if TYPE_CHECKING:
    from torch import Tensor


def _run(op: str, x: Tensor, out: Tensor | None) -> Tensor:
    from ...contracts.activations_math import check_gated, out_shape

    check_gated(x, out, op=op)
    shape = out_shape(op, x)
    if not x.numel():
        return x.new_empty(shape) if out is None else out
    rows = readable(x).contiguous()
    target = writable(out if out is None or out.is_contiguous() else None, rows, width=shape[-1])
    getattr(flashinfer(), op)(rows, out=target)
    return settle(out, target, shape)


def silu_and_mul(x: Tensor, weights: None = None, *, config: Any = None, out: Tensor | None = None) -> Tensor:
    return _run("silu_and_mul", x, out)


def gelu_and_mul(x: Tensor, weights: None = None, *, config: Any = None, out: Tensor | None = None) -> Tensor:
    return _run("gelu_and_mul", x, out)


def gelu_tanh_and_mul(x: Tensor, weights: None = None, *, config: Any = None, out: Tensor | None = None) -> Tensor:
    return _run("gelu_tanh_and_mul", x, out)
