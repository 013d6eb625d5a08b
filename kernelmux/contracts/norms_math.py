"""The norms in torch: references, the two roundings as specified, meta functions, checks, example inputs.

Imported only where torch is about to be used.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BadShape
from .tensor_checks import FLOATS, require_dtype, require_like, require_rows, require_vector


def normalise(rows: Tensor, eps: float, n_groups: int = 1) -> Tensor:
    """fp32 [..., H], each of n_groups parts of the last dimension divided by its sqrt(mean of squares + eps)."""
    parts = rows.float().unflatten(-1, (n_groups, rows.shape[-1] // n_groups))
    return (parts * torch.rsqrt(parts.square().mean(dim=-1, keepdim=True) + eps)).flatten(-2)


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Return [..., H] fp32."""
    return normalise(x, eps) * weight.float()


def fused_add_rms_norm_reference(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Return (norm of the sum, sum), both [..., H] fp32, nothing rounded."""
    total = x.float() + residual.float()
    return normalise(total, eps) * weight.float(), total


def gated_rms_norm_reference(x: Tensor, z: Tensor, weight: Tensor, eps: float = 1e-6, n_groups: int = 1) -> Tensor:
    """Return [..., H] fp32."""
    return normalise(x.float() * F.silu(z.float()), eps, n_groups) * weight.float()


def rms_norm_meta(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """[..., H] like x, contiguous, unwritten. Checks the arguments as a call does."""
    check_rms_norm(x, weight, eps)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def fused_add_rms_norm_meta(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Two tensors like x, contiguous, unwritten. Checks the arguments as a call does."""
    check_fused_add_rms_norm(x, residual, weight, eps)
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        torch.empty_like(x, memory_format=torch.contiguous_format),
    )


def gated_rms_norm_meta(x: Tensor, z: Tensor, weight: Tensor, eps: float = 1e-6, n_groups: int = 1) -> Tensor:
    """[..., H] like x, contiguous, unwritten. Checks the arguments as a call does."""
    check_gated_rms_norm(x, z, weight, eps, n_groups)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def check_rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6, *, op: str = "rms_norm") -> None:
    """Raise BadShape naming the first argument that does not fit: x [..., H], weight [H] of the same dtype."""
    require_rows(op, "x", x)
    require_dtype(op, "x", x, FLOATS)
    require_vector(op, "weight", weight, x)
    if not 0.0 <= eps < float("inf"):
        raise BadShape(f"{op}: eps={eps} must be a number of at least 0, as in 1e-6.")


def check_fused_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6) -> None:
    """Raise BadShape naming the first argument that does not fit: as for rms_norm, and residual like x."""
    check_rms_norm(x, weight, eps, op="fused_add_rms_norm")
    require_like("fused_add_rms_norm", "residual", residual, x)


def check_gated_rms_norm(x: Tensor, z: Tensor, weight: Tensor, eps: float = 1e-6, n_groups: int = 1) -> None:
    """Raise BadShape naming the first argument that does not fit: as for rms_norm, z like x, n_groups divides H."""
    check_rms_norm(x, weight, eps, op="gated_rms_norm")
    require_like("gated_rms_norm", "z", z, x)
    if n_groups < 1 or x.shape[-1] % n_groups:
        raise BadShape(f"gated_rms_norm: n_groups={n_groups} must divide H={x.shape[-1]}, the last size of x.")


def _draw(device: str, dtype: torch.dtype, seed: int, *sizes: int, mean: float = 0.0) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return (mean + torch.randn(*sizes, generator=generator)).to(dtype).to(device)


_SHAPES = ((5, 128), (2, 3, 96), (1, 2688), (7,), (33, 64), (0, 64))


def rms_norm_examples(device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Iterator[dict[str, object]]:
    """Small calls that cover the contract: odd sizes, one row, leading dimensions, no row."""
    for seed, shape in enumerate(_SHAPES):
        weight = _draw(device, dtype, seed + 100, shape[-1], mean=1.0)
        yield dict(x=_draw(device, dtype, seed, *shape), weight=weight, eps=1e-5 if seed % 2 else 1e-6)


def fused_add_rms_norm_examples(
    device: str = "cpu", dtype: torch.dtype = torch.bfloat16
) -> Iterator[dict[str, object]]:
    """As for rms_norm, with a residual larger than x."""
    for seed, call in enumerate(rms_norm_examples(device, dtype)):
        x = call["x"]
        assert isinstance(x, Tensor)
        yield dict(x=x, residual=4 * _draw(device, dtype, seed + 200, *x.shape), weight=call["weight"], eps=call["eps"])


def gated_rms_norm_examples(device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Iterator[dict[str, object]]:
    """As for rms_norm, with a gate and 1 to 8 groups."""
    for seed, (call, n_groups) in enumerate(zip(rms_norm_examples(device, dtype), (1, 3, 8, 7, 2, 4), strict=True)):
        x = call["x"]
        assert isinstance(x, Tensor)
        z = _draw(device, dtype, seed + 300, *x.shape)
        yield dict(x=x, z=z, weight=call["weight"], eps=call["eps"], n_groups=n_groups)
