"""The norms through FlashInfer, whose norm is CUDA or CuTe DSL as it decides when imported.

FlashInfer's fused_add works in place: x becomes the norm, the residual the sum. In place is therefore what it does
without a copy; otherwise both are copied to where the results belong, and it works there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import NoKernel, UsageError
from ...registry.decision import ACCEPTED, Conditional, Decision
from .layouts import flashinfer
from .rows import readable, settle, vector, writable

if TYPE_CHECKING:
    from torch import Tensor

    from ...device import Device
    from ...registry import Packages, Problem

_SWITCH = "FLASHINFER_USE_CUDA_NORM"
_WIDEST = {True: 16, False: 128}  # CUDA's widest load; CuTe DSL takes tensors aligned to up to 128 bytes


def cuda_norm_is_taken(device: Device, packages: Packages, problem: Problem) -> Decision:
    """FlashInfer takes its CUDA norm where nvidia-cutlass-dsl is missing, or when told to before it is imported."""
    import os

    if os.environ.get(_SWITCH) == "1" or not packages.has("nvidia-cutlass-dsl"):
        return ACCEPTED
    return Conditional((f"nvidia-cutlass-dsl is installed: set {_SWITCH}=1 before FlashInfer is imported",))


def _norm(want_cuda: bool, x: Tensor) -> Any:
    """FlashInfer's norm module, if its own choice is the one that was selected. Raises NoKernel otherwise."""
    norm = flashinfer("norm")
    if bool(norm._use_cuda_norm(x.device)) is not want_cuda:
        kind, other = ("CUDA", "CuTe DSL") if want_cuda else ("CuTe DSL", "CUDA")
        mend = (
            f"Set {_SWITCH}=1 before it is imported" if want_cuda else f"Install nvidia-cutlass-dsl and unset {_SWITCH}"
        )
        raise NoKernel(f"FlashInfer runs its {other} norm in this process, not the {kind} one. {mend}.")
    return norm


def _rmsnorm(want_cuda: bool, x: Tensor, weight: Tensor, eps: float, weight_bias: float, out: Tensor | None) -> Tensor:
    import torch

    from ...contracts.norms_math import check_rms_norm

    check_rms_norm(x, weight, eps, weight_bias, out)
    norm, widest = _norm(want_cuda, x), _WIDEST[want_cuda]
    if not x.numel():
        return torch.empty_like(x) if out is None else out
    rows = readable(x, widest)
    target = writable(out, rows, widest)
    (norm.gemma_rmsnorm if weight_bias else norm.rmsnorm)(rows, vector(weight), eps=eps, out=target)
    return settle(out, target, tuple(x.shape))


def _fused_add(
    want_cuda: bool,
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    weight_bias: float,
    out: Tensor | None,
    residual_out: Tensor | None,
) -> tuple[Tensor, Tensor]:
    import torch

    from ...contracts.norms_math import check_fused_add_rms_norm

    check_fused_add_rms_norm(x, residual, weight, eps, weight_bias, out, residual_out)
    norm, shape = _norm(want_cuda, x), tuple(x.shape)
    if not x.numel():
        return (
            torch.empty_like(x) if out is None else out,
            torch.empty_like(x) if residual_out is None else residual_out,
        )
    written = []
    for given, target in ((x, out), (residual, residual_out)):
        rows = given.reshape(-1, shape[-1])
        place = writable(target, rows, _WIDEST[want_cuda])
        if place.data_ptr() != rows.data_ptr():
            place.copy_(rows)
        written.append(place)
    (norm.gemma_fused_add_rmsnorm if weight_bias else norm.fused_add_rmsnorm)(*written, vector(weight), eps=eps)
    return settle(out, written[0], shape), settle(residual_out, written[1], shape)


def rmsnorm_jit_cuda(
    x: Tensor,
    weights: Tensor,
    *,
    config: Any = None,
    out: Tensor | None = None,
    eps: float = 1e-6,
    weight_bias: float = 0.0,
) -> Tensor:
    """x [..., H] -> [..., H]."""
    return _rmsnorm(True, x, weights, eps, weight_bias, out)


def rmsnorm_cutedsl(
    x: Tensor,
    weights: Tensor,
    *,
    config: Any = None,
    out: Tensor | None = None,
    eps: float = 1e-6,
    weight_bias: float = 0.0,
) -> Tensor:
    """x [..., H] -> [..., H]."""
    return _rmsnorm(False, x, weights, eps, weight_bias, out)


def fused_add_rmsnorm_jit_cuda(
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
    """(norm of x + residual, x + residual)."""
    return _fused_add(True, x, residual, weights, eps, weight_bias, out, residual_out)


def fused_add_rmsnorm_cutedsl(
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
    """(norm of x + residual, x + residual)."""
    return _fused_add(False, x, residual, weights, eps, weight_bias, out, residual_out)


def _rmsnorm_quant(
    want_cuda: bool,
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    eps: float,
    weight_bias: float,
    out: Tensor | None,
    scale_out: Tensor | None,
) -> tuple[Tensor, Tensor]:
    import torch

    from ...contracts.norms_math import check_rms_norm_fp8

    check_rms_norm_fp8(x, weight, scale, eps, weight_bias, out, scale_out)
    if scale is None or weight_bias:
        raise UsageError(
            "FlashInfer's rmsnorm_quant takes a given scale and the weight as stored. "
            "Pass scale= and weight_bias=0, or choose another kernel of rms_norm_fp8."
        )
    norm, shape = _norm(want_cuda, x), tuple(x.shape)
    if scale_out is None:
        scale_out = scale.clone()
    elif scale_out is not scale:
        scale_out.copy_(scale)
    if not x.numel():
        return (torch.empty(shape, dtype=torch.float8_e4m3fn, device=x.device) if out is None else out), scale_out
    rows = readable(x, _WIDEST[want_cuda])
    target = writable(out, rows, _WIDEST[want_cuda], dtype=torch.float8_e4m3fn)
    norm.rmsnorm_quant(target, rows, vector(weight), scale.view(1), eps=eps)
    return settle(out, target, shape), scale_out


def rmsnorm_quant_jit_cuda(
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
    """(e4m3 [..., H], the given scale)."""
    return _rmsnorm_quant(True, x, weights, scale, eps, weight_bias, out, scale_out)


def rmsnorm_quant_cutedsl(
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
    """(e4m3 [..., H], the given scale)."""
    return _rmsnorm_quant(False, x, weights, scale, eps, weight_bias, out, scale_out)
