"""The norms and activations through torch.compile: one compilation a width and dtype, for any number of rows.

Every function rounds once, at its end, and writes to outs that are there already: the compiled code allocates no
result, and one compilation serves calls with and without ``out``. A single row is compiled apart from several, as
torch.compile does by itself; so are rows that lie apart, and calls in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...contracts.activations_math import (
    IS_GATED,
    apply,
    check_of,
    check_silu_and_mul_fp8,
    out_shape,
    silu_and_mul_fp8_meta,
    silu_and_mul_fp8_reference,
)
from ...contracts.norms_math import (
    biased,
    check_fused_add_rms_norm,
    check_gated_rms_norm,
    check_rms_norm,
    check_rms_norm_fp8,
    normalise,
    rms_norm_fp8_meta,
    rms_norm_fp8_reference,
)
from ...errors import FrozenError
from ...registry.frozen import guard, is_capturing, is_frozen

_compiled: dict[tuple[Any, ...], Callable[..., Any]] = {}
_Results = tuple[Tensor, ...]


def _call(function: Callable[..., _Results], given: _Results, outs: _Results, *rest: Any) -> None:
    """Write ``function(*given, *rest)`` to outs by compiled code; given and outs are [..., width], any number of rows.

    Raises FrozenError as guard does, where this is not compiled yet.
    """
    if not given[0].numel():
        return
    if given[0].device.type == "cpu" and any(out is tensor for out in outs for tensor in given):
        # Inductor's C++ fails where a reduced row overwrites its input (torch 2.13: KeyError in its code generation).
        apart = tuple(torch.empty_like(out, memory_format=torch.contiguous_format) for out in outs)
        _call(function, given, apart, *rest)
        for out, result in zip(outs, apart, strict=True):
            out.copy_(result)
        return
    flat: dict[int, Tensor] = {}
    rows = [flat.setdefault(id(tensor), tensor.reshape(-1, tensor.shape[-1])) for tensor in (*given, *outs)]
    places = [id(row) for row in rows]
    key = (
        function,
        rows[0].dtype,
        rows[0].device,
        rows[0].shape[0] == 1,
        tuple((row.shape[1], row.is_contiguous()) for row in rows),
        tuple(map(places.index, places)),
        *(value is None if value is None or isinstance(value, Tensor) else value for value in rest),
    )
    compiled = _compiled.get(key)
    what = f"compile {function.__name__.strip('_')} for rows of {rows[0].shape[1]}"
    if compiled is None:
        guard(what)
        compiled = _compiled[key] = _compile(function, len(given), len(outs))
    for row in rows:
        torch._dynamo.maybe_mark_dynamic(row, 0)
    if not (is_frozen() or is_capturing()):
        compiled(*rows, *rest)
        return
    with torch.compiler.set_stance("fail_on_recompile"):
        try:
            compiled(*rows, *rest)
        except FrozenError:
            raise
        except RuntimeError as error:
            if "fail_on_recompile" not in str(error):
                raise
            guard(what)
            raise


def _compile(function: Callable[..., _Results], given: int, outs: int) -> Callable[..., None]:
    """``call(*given, *outs, *rest)``. torch.compile gives up at 8 compilations of one code object: each has its own."""

    def call(*values: Any) -> None:
        results = function(*values[:given], *values[given + outs :])
        for out, result in zip(values[given : given + outs], results, strict=True):
            out.copy_(result)

    name = f"{function.__name__.strip('_')}_{len(_compiled)}"
    own = FunctionType(call.__code__.replace(co_name=name), call.__globals__, name, None, call.__closure__)
    compiled: Callable[..., None] = torch.compile(own, fullgraph=True)
    return compiled


def _fresh(out: Tensor | None, x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out


def _rms_norm(x: Tensor, weight: Tensor, eps: float, weight_bias: float) -> _Results:
    return ((normalise(x, eps) * biased(weight, weight_bias)).to(x.dtype),)


def rms_norm(
    x: Tensor,
    weights: Tensor,
    *,
    config: Any = None,
    out: Tensor | None = None,
    eps: float = 1e-6,
    weight_bias: float = 0.0,
) -> Tensor:
    """x [..., H], weights [H] -> [..., H]."""
    check_rms_norm(x, weights, eps, weight_bias, out)
    out = _fresh(out, x)
    _call(_rms_norm, (x,), (out,), weights, eps, weight_bias)
    return out


def _fused_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float, weight_bias: float) -> _Results:
    total = x.float() + residual.float()
    return (normalise(total, eps) * biased(weight, weight_bias)).to(x.dtype), total.to(x.dtype)


def fused_add_rms_norm(
    x: Tensor,
    weights: Tensor,
    *,
    config: Any = None,
    residual: Tensor,
    out: Tensor | None = None,
    residual_out: Tensor | None = None,
    eps: float = 1e-6,
    weight_bias: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """x and residual [..., H], weights [H] -> (norm of the sum, sum), both [..., H]."""
    check_fused_add_rms_norm(x, residual, weights, eps, weight_bias, out, residual_out)
    out, residual_out = _fresh(out, x), _fresh(residual_out, x)
    _call(_fused_add_rms_norm, (x, residual), (out, residual_out), weights, eps, weight_bias)
    return out, residual_out


def _gated_rms_norm(x: Tensor, z: Tensor, weight: Tensor, eps: float, n_groups: int) -> _Results:
    return ((normalise(x.float() * F.silu(z.float()), eps, n_groups) * weight.float()).to(x.dtype),)


def gated_rms_norm(
    x: Tensor,
    weights: Tensor,
    *,
    config: Any = None,
    z: Tensor,
    out: Tensor | None = None,
    eps: float = 1e-6,
    n_groups: int = 1,
) -> Tensor:
    """x and z [..., H], weights [H] -> [..., H]."""
    check_gated_rms_norm(x, z, weights, eps, n_groups, out)
    out = _fresh(out, x)
    _call(_gated_rms_norm, (x, z), (out,), weights, eps, n_groups)
    return out


def _rms_norm_fp8(x: Tensor, weight: Tensor, scale: Tensor, eps: float, weight_bias: float) -> _Results:
    values, _ = rms_norm_fp8_reference(x, weight, scale, eps, weight_bias)
    return (values.to(torch.float8_e4m3fn),)


def _rms_norm_fp8_token(x: Tensor, weight: Tensor, eps: float, weight_bias: float) -> _Results:
    values, scale = rms_norm_fp8_reference(x, weight, None, eps, weight_bias)
    return values.to(torch.float8_e4m3fn), scale


def rms_norm_fp8(
    x: Tensor,
    weights: Tensor,
    *,
    config: Any = None,
    scale: Tensor | None = None,
    out: Tensor | None = None,
    scale_out: Tensor | None = None,
    eps: float = 1e-6,
    weight_bias: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """(e4m3 [..., H], fp32 scale [..., 1], or a copy of the given one)."""
    check_rms_norm_fp8(x, weights, scale, eps, weight_bias, out, scale_out)
    if out is None or scale_out is None:
        fresh = rms_norm_fp8_meta(x, weights, scale, eps, weight_bias)
        out, scale_out = fresh[0] if out is None else out, fresh[1] if scale_out is None else scale_out
    if scale is None:
        _call(_rms_norm_fp8_token, (x,), (out, scale_out), weights, eps, weight_bias)
    else:
        scale_out.copy_(scale)
        _call(_rms_norm_fp8, (x,), (out,), weights, scale, eps, weight_bias)
    return out, scale_out


def __getattr__(name: str) -> Callable[..., Tensor]:
    """The activations of the contract's table."""
    if name in IS_GATED:
        return _activation(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _activation(op: str) -> Callable[..., Tensor]:
    def activation(x: Tensor) -> _Results:
        return (apply(op, x.float()).to(x.dtype),)

    activation.__name__ = op
    check = check_of(op)

    def run(x: Tensor, weights: None = None, *, config: Any = None, out: Tensor | None = None) -> Tensor:
        check(x, out)
        out = x.new_empty(out_shape(op, x)) if out is None else out
        _call(activation, (x,), (out,))
        return out

    return run


def _silu_and_mul_fp8(x: Tensor) -> _Results:
    values, scale = silu_and_mul_fp8_reference(x)
    return values.to(torch.float8_e4m3fn), scale


def silu_and_mul_fp8(
    x: Tensor,
    weights: None = None,
    *,
    config: Any = None,
    out: Tensor | None = None,
    scale_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(e4m3 [..., H], fp32 scales [..., H/128]) of x [..., 2H]."""
    check_silu_and_mul_fp8(x, out, scale_out)
    if out is None or scale_out is None:
        fresh = silu_and_mul_fp8_meta(x)
        out, scale_out = fresh[0] if out is None else out, fresh[1] if scale_out is None else scale_out
    _call(_silu_and_mul_fp8, (x,), (out, scale_out))
    return out, scale_out


def warmup(selection: Any, ms: Iterable[int]) -> None:
    """Compile for the problem's H at these token counts, with default arguments, for new results and in place."""
    hidden = selection.problem.shape.get("H")
    if hidden is None:
        return
    op = selection.op
    device = "cpu" if selection.device.vendor == "cpu" else "cuda"
    dtype = getattr(torch, selection.problem.dtype or "bfloat16")
    for count in ms:
        gated = op.name == "silu_and_mul_fp8" or IS_GATED.get(op.name, False)
        call = {"x": torch.zeros(count, 2 * hidden if gated else hidden, dtype=dtype, device=device)}
        extra = {"fused_add_rms_norm": "residual", "gated_rms_norm": "z"}.get(op.name)
        if extra:
            call[extra] = call["x"].clone()
        x, weights = call.pop("x"), torch.ones(hidden, dtype=dtype, device=device) if op.weights else None
        selection(x, weights, **call)
        if op.inplace:
            selection(x, weights, **call, **{out: {"x": x, **call}[name] for out, name in op.inplace})
