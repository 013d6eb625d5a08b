"""The norms and activations through torch.compile: one compilation a width and dtype, for any number of rows.

Every function rounds once, at its end. A single row is compiled apart from several, as torch.compile does by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...contracts.activations_math import (
    check_gated,
    check_unary,
    gelu_and_mul_reference,
    gelu_tanh_and_mul_reference,
    silu_and_mul_reference,
)
from ...contracts.norms_math import check_fused_add_rms_norm, check_gated_rms_norm, check_rms_norm, normalise
from ...errors import FrozenError
from ...registry.frozen import guard, is_capturing, is_frozen

_compiled: dict[tuple[Any, ...], Callable[..., Any]] = {}


def _call(function: Any, rows: tuple[Tensor, ...], *rest: Any) -> Any:
    """``function(*rows, *rest)`` compiled, rows being [M, width] with M left open. Raises FrozenError as guard does."""
    first = rows[0]
    key = (function, first.dtype, first.device, first.shape[1], first.shape[0] == 1, *filter(_constant, rest))
    compiled = _compiled.get(key)
    what = f"compile {function.__name__.strip('_')} for rows of {first.shape[1]}"
    if compiled is None:
        guard(what)
        # torch.compile counts compilations by code object and gives up at 8: each key gets one of its own.
        code = function.__code__.replace(co_name=f"{function.__name__}_{len(_compiled)}")
        own = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
        compiled = _compiled[key] = torch.compile(own, fullgraph=True)
    for tensor in rows:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    if not (is_frozen() or is_capturing()):
        return compiled(*rows, *rest)
    with torch.compiler.set_stance("fail_on_recompile"):
        try:
            return compiled(*rows, *rest)
        except FrozenError:
            raise
        except RuntimeError as error:
            if "fail_on_recompile" not in str(error):
                raise
            guard(what)
            raise


def _constant(value: Any) -> bool:
    return not isinstance(value, Tensor)


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return (normalise(x, eps) * weight.float()).to(x.dtype)


def _fused_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x.float() + residual.float()
    return (normalise(total, eps) * weight.float()).to(x.dtype), total.to(x.dtype)


def _gated_rms_norm(x: Tensor, z: Tensor, weight: Tensor, eps: float, n_groups: int) -> Tensor:
    return (normalise(x.float() * F.silu(z.float()), eps, n_groups) * weight.float()).to(x.dtype)


def _silu_and_mul(x: Tensor) -> Tensor:
    return silu_and_mul_reference(x).to(x.dtype)


def _gelu_and_mul(x: Tensor) -> Tensor:
    return gelu_and_mul_reference(x).to(x.dtype)


def _gelu_tanh_and_mul(x: Tensor) -> Tensor:
    return gelu_tanh_and_mul_reference(x).to(x.dtype)


def _relu2(x: Tensor) -> Tensor:
    return F.relu(x.float()).square().to(x.dtype)


def rms_norm(x: Tensor, weights: Tensor, *, config: Any = None, eps: float = 1e-6) -> Tensor:
    """x [..., H], weights [H] -> [..., H]."""
    check_rms_norm(x, weights, eps)
    if not x.numel():
        return torch.empty_like(x)
    result: Tensor = _call(_rms_norm, (_flat(x),), weights, eps)
    return result.view(x.shape)


def fused_add_rms_norm(
    x: Tensor, weights: Tensor, *, config: Any = None, residual: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """x and residual [..., H], weights [H] -> (norm of the sum, sum), both [..., H]."""
    check_fused_add_rms_norm(x, residual, weights, eps)
    if not x.numel():
        return torch.empty_like(x), torch.empty_like(x)
    normed, total = _call(_fused_add_rms_norm, (_flat(x), _flat(residual)), weights, eps)
    return normed.view(x.shape), total.view(x.shape)


def gated_rms_norm(
    x: Tensor, weights: Tensor, *, config: Any = None, z: Tensor, eps: float = 1e-6, n_groups: int = 1
) -> Tensor:
    """x and z [..., H], weights [H] -> [..., H]."""
    check_gated_rms_norm(x, z, weights, eps, n_groups)
    if not x.numel():
        return torch.empty_like(x)
    result: Tensor = _call(_gated_rms_norm, (_flat(x), _flat(z)), weights, eps, n_groups)
    return result.view(x.shape)


def _gated(function: Any, op: str, x: Tensor) -> Tensor:
    check_gated(x, op=op)
    shape = (*x.shape[:-1], x.shape[-1] // 2)
    if not x.numel():
        return x.new_empty(shape)
    result: Tensor = _call(function, (_flat(x),))
    return result.view(shape)


def silu_and_mul(x: Tensor, weights: None = None, *, config: Any = None) -> Tensor:
    """x [..., 2H] -> [..., H]."""
    return _gated(_silu_and_mul, "silu_and_mul", x)


def gelu_and_mul(x: Tensor, weights: None = None, *, config: Any = None) -> Tensor:
    """x [..., 2H] -> [..., H]."""
    return _gated(_gelu_and_mul, "gelu_and_mul", x)


def gelu_tanh_and_mul(x: Tensor, weights: None = None, *, config: Any = None) -> Tensor:
    """x [..., 2H] -> [..., H]."""
    return _gated(_gelu_tanh_and_mul, "gelu_tanh_and_mul", x)


def relu2(x: Tensor, weights: None = None, *, config: Any = None) -> Tensor:
    """x [..., H] -> [..., H]."""
    check_unary(x, op="relu2")
    if not x.numel():
        return torch.empty_like(x)
    result: Tensor = _call(_relu2, (_flat(x),))
    return result.view(x.shape)


def warmup(selection: Any, ms: Iterable[int]) -> None:
    """Compile for the problem's H at these token counts, with the default eps and one group. Nothing without an H."""
    hidden = selection.problem.shape.get("H")
    if hidden is None:
        return
    device = "cpu" if selection.device.vendor == "cpu" else "cuda"
    dtype = getattr(torch, selection.problem.dtype or "bfloat16")
    name = selection.op.name
    for count in ms:
        x = torch.zeros(count, 2 * hidden if name.endswith("_and_mul") else hidden, dtype=dtype, device=device)
        weights = torch.ones(hidden, dtype=dtype, device=device) if selection.op.weights else None
        extra = {"fused_add_rms_norm": "residual", "gated_rms_norm": "z"}.get(name)
        selection(x, weights, **({extra: x.clone()} if extra else {}))
