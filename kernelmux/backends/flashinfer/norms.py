"""rms_norm and fused_add_rms_norm through FlashInfer, whose norm is CUDA or CuTe DSL as it decides when imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import NoKernel
from ...registry.decision import ACCEPTED, Conditional, Decision
from .layouts import flashinfer

if TYPE_CHECKING:
    from torch import Tensor

    from ...device import Device
    from ...registry import Packages, Problem

_SWITCH = "FLASHINFER_USE_CUDA_NORM"


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


def _rmsnorm(want_cuda: bool, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    return _norm(want_cuda, x).rmsnorm(rows, weight, eps=eps).reshape(x.shape)


def _fused_add(want_cuda: bool, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """FlashInfer works in place; the contract does not, so it works on copies."""
    import torch

    out = x.clone(memory_format=torch.contiguous_format)
    total = residual.clone(memory_format=torch.contiguous_format)
    hidden = x.shape[-1]
    _norm(want_cuda, x).fused_add_rmsnorm(out.view(-1, hidden), total.view(-1, hidden), weight, eps=eps)
    return out, total


def rmsnorm_jit_cuda(x: Tensor, weights: Tensor, *, config: Any = None, eps: float = 1e-6) -> Tensor:
    """x [..., H] -> [..., H]."""
    return _rmsnorm(True, x, weights, eps)


def rmsnorm_cutedsl(x: Tensor, weights: Tensor, *, config: Any = None, eps: float = 1e-6) -> Tensor:
    """x [..., H] -> [..., H]."""
    return _rmsnorm(False, x, weights, eps)


def fused_add_rmsnorm_jit_cuda(
    x: Tensor, weights: Tensor, *, config: Any = None, residual: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """(norm of x + residual, x + residual)."""
    return _fused_add(True, x, residual, weights, eps)


def fused_add_rmsnorm_cutedsl(
    x: Tensor, weights: Tensor, *, config: Any = None, residual: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """(norm of x + residual, x + residual)."""
    return _fused_add(False, x, residual, weights, eps)
