"""The norms in torch: references, the roundings as specified, meta functions, checks, example inputs.

Imported only where torch is about to be used.

``*_reference`` is fp32 with nothing rounded, what tolerances are measured from. ``*_rounded`` rounds where a declared
order says so and nowhere else (fp64 between): a kernel of that order gives its bits but for a few in a thousand.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BadShape
from .gemm_fp8_math import FP8, LARGEST, LEAST
from .norms import RESIDUAL_ROUNDINGS, ROUNDINGS, WEIGHT_BIASES
from .rounding import round_to
from .tensor_checks import (
    FLOATS,
    require_dtype,
    require_like,
    require_out,
    require_rows,
    require_same_device,
    require_vector,
    words,
)

# references


def normalise(rows: Tensor, eps: float, n_groups: int = 1) -> Tensor:
    """fp32 [..., H], each of n_groups parts of the last dimension divided by its sqrt(mean of squares + eps)."""
    return _normalise(rows.float(), eps, n_groups)


def _normalise(rows: Tensor, eps: float, n_groups: int = 1) -> Tensor:
    parts = rows.unflatten(-1, (n_groups, rows.shape[-1] // n_groups))
    return (parts * torch.rsqrt(parts.square().mean(dim=-1, keepdim=True) + eps)).flatten(-2)


def biased(weight: Tensor, weight_bias: float = 0.0) -> Tensor:
    """fp32(weight) + weight_bias, what a row is multiplied by."""
    return weight.float() + weight_bias if weight_bias else weight.float()


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float = 1e-6, weight_bias: float = 0.0) -> Tensor:
    """Return [..., H] fp32."""
    return normalise(x, eps) * biased(weight, weight_bias)


def fused_add_rms_norm_reference(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6, weight_bias: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return (norm of the sum, sum), both [..., H] fp32, nothing rounded."""
    total = x.float() + residual.float()
    return normalise(total, eps) * biased(weight, weight_bias), total


def gated_rms_norm_reference(x: Tensor, z: Tensor, weight: Tensor, eps: float = 1e-6, n_groups: int = 1) -> Tensor:
    """Return [..., H] fp32."""
    return normalise(x.float() * F.silu(z.float()), eps, n_groups) * weight.float()


def token_scale(product: Tensor) -> Tensor:
    """fp32 [..., 1]: what a row of fp32 products is divided by to lie within e4m3; never 0."""
    return product.abs().amax(dim=-1, keepdim=True).clamp_min(LEAST) / LARGEST


def rms_norm_fp8_reference(
    x: Tensor, weight: Tensor, scale: Tensor | None = None, eps: float = 1e-6, weight_bias: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return (product / scale, at most 448, not yet rounded to e4m3; scale), both fp32."""
    product = rms_norm_reference(x, weight, eps, weight_bias)
    used = token_scale(product) if scale is None else scale
    return (product / used).clamp(-LARGEST, LARGEST), used


# the roundings as specified


def multiply_rounded(normal: Tensor, weight: Tensor, order: str, dtype: torch.dtype) -> Tensor:
    """fp64 normalised rows times the fp32 weight, rounded to the dtype as that order says."""
    if order not in ROUNDINGS:
        raise ValueError(f"{order!r} is no rounding order: {', '.join(ROUNDINGS)}")
    if order == "cast_before_mul":
        normal = round_to(normal, dtype).double()
    return round_to(normal * weight.double(), dtype)


def rms_norm_rounded(x: Tensor, weight: Tensor, order: str, eps: float = 1e-6, weight_bias: float = 0.0) -> Tensor:
    """[..., H] of x's dtype."""
    return multiply_rounded(_normalise(x.double(), eps), biased(weight, weight_bias), order, x.dtype)


def fused_add_rms_norm_rounded(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    order: str,
    residual_rounding: str,
    eps: float = 1e-6,
    weight_bias: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """(norm, sum), both [..., H] of x's dtype; the sum is formed in fp32 and rounded."""
    if residual_rounding not in RESIDUAL_ROUNDINGS:
        raise ValueError(f"{residual_rounding!r} is no residual rounding: {', '.join(RESIDUAL_ROUNDINGS)}")
    total = x.float() + residual.float()
    kept = total.to(x.dtype)
    normalised = _normalise((kept if residual_rounding == "residual_rounded" else total).double(), eps)
    return multiply_rounded(normalised, biased(weight, weight_bias), order, x.dtype), kept


def gated_rms_norm_rounded(
    x: Tensor, z: Tensor, weight: Tensor, order: str, eps: float = 1e-6, n_groups: int = 1
) -> Tensor:
    """[..., H] of x's dtype; x * silu(z) is not rounded, whatever n_groups is."""
    gated = x.double() * F.silu(z.double())
    return multiply_rounded(_normalise(gated, eps, n_groups), weight.float(), order, x.dtype)


def rms_norm_fp8_rounded(
    x: Tensor, weight: Tensor, scale: Tensor | None = None, eps: float = 1e-6, weight_bias: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(e4m3 [..., H], fp32 scale): the product in fp32, divided by the scale, rounded once, saturating."""
    product = (_normalise(x.double(), eps) * biased(weight, weight_bias).double()).float()
    used = token_scale(product) if scale is None else scale
    return round_to((product.double() / used.double()).clamp(-LARGEST, LARGEST), FP8), used


# meta functions


def _fresh(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def rms_norm_meta(x: Tensor, weight: Tensor, eps: float = 1e-6, weight_bias: float = 0.0) -> Tensor:
    """[..., H] like x, contiguous, unwritten. Checks the arguments as a call does."""
    check_rms_norm(x, weight, eps, weight_bias)
    return _fresh(x)


def fused_add_rms_norm_meta(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6, weight_bias: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Two tensors like x, contiguous, unwritten. Checks the arguments as a call does."""
    check_fused_add_rms_norm(x, residual, weight, eps, weight_bias)
    return _fresh(x), _fresh(x)


def gated_rms_norm_meta(x: Tensor, z: Tensor, weight: Tensor, eps: float = 1e-6, n_groups: int = 1) -> Tensor:
    """[..., H] like x, contiguous, unwritten. Checks the arguments as a call does."""
    check_gated_rms_norm(x, z, weight, eps, n_groups)
    return _fresh(x)


def rms_norm_fp8_meta(
    x: Tensor, weight: Tensor, scale: Tensor | None = None, eps: float = 1e-6, weight_bias: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(e4m3 [..., H], fp32 scale [..., 1], or of the given scale's shape), unwritten. Checks as a call does."""
    check_rms_norm_fp8(x, weight, scale, eps, weight_bias)
    shape = (*x.shape[:-1], 1) if scale is None else tuple(scale.shape)
    return x.new_empty(x.shape, dtype=FP8), x.new_empty(shape, dtype=torch.float32)


# checks


def check_rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float = 1e-6,
    weight_bias: float = 0.0,
    out: Tensor | None = None,
    *,
    op: str = "rms_norm",
) -> None:
    """Raise BadShape naming the first argument that does not fit: x [..., H], weight [H] of the same dtype."""
    require_rows(op, "x", x)
    require_dtype(op, "x", x, FLOATS)
    require_vector(op, "weight", weight, x)
    if not 0.0 <= eps < float("inf"):
        raise BadShape(f"{op}: eps={eps} must be a number of at least 0, as in 1e-6.")
    if weight_bias not in WEIGHT_BIASES:
        raise BadShape(f"{op}: weight_bias={weight_bias} must be 0 (the weight as stored) or 1 (Gemma's 1 + weight).")
    require_out(op, "out", out, tuple(x.shape), x.dtype, x.device)


def check_fused_add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float = 1e-6,
    weight_bias: float = 0.0,
    out: Tensor | None = None,
    residual_out: Tensor | None = None,
) -> None:
    """Raise BadShape naming the first argument that does not fit: as for rms_norm, and residual like x."""
    op = "fused_add_rms_norm"
    check_rms_norm(x, weight, eps, weight_bias, out, op=op)
    require_like(op, "residual", residual, x)
    require_out(op, "residual_out", residual_out, tuple(x.shape), x.dtype, x.device)
    if out is not None and out is residual_out:
        raise BadShape(f"{op}: out and residual_out are one tensor. Pass two.")


def check_gated_rms_norm(
    x: Tensor, z: Tensor, weight: Tensor, eps: float = 1e-6, n_groups: int = 1, out: Tensor | None = None
) -> None:
    """Raise BadShape naming the first argument that does not fit: as for rms_norm, z like x, n_groups divides H."""
    op = "gated_rms_norm"
    check_rms_norm(x, weight, eps, 0.0, out, op=op)
    require_like(op, "z", z, x)
    if n_groups < 1 or x.shape[-1] % n_groups:
        raise BadShape(f"{op}: n_groups={n_groups} must divide H={x.shape[-1]}, the last size of x.")


def check_rms_norm_fp8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    eps: float = 1e-6,
    weight_bias: float = 0.0,
    out: Tensor | None = None,
    scale_out: Tensor | None = None,
) -> None:
    """Raise BadShape naming the first argument that does not fit: as for rms_norm, scale fp32 [] or [1] or None."""
    op = "rms_norm_fp8"
    check_rms_norm(x, weight, eps, weight_bias, op=op)
    if scale is not None:
        if tuple(scale.shape) not in ((), (1,)) or scale.dtype != torch.float32:
            raise BadShape(
                f"{op}: scale must be one float32 number, [] or [1] (None: a scale a token); "
                f"got {list(scale.shape)} {words((scale.dtype,))}."
            )
        require_same_device(op, "scale", scale, x)
    require_out(op, "out", out, tuple(x.shape), FP8, x.device)
    shape = (*x.shape[:-1], 1) if scale is None else tuple(scale.shape)
    require_out(op, "scale_out", scale_out, shape, torch.float32, x.device)


# example inputs


def _draw(device: str, dtype: torch.dtype, seed: int, *sizes: int, mean: float = 0.0) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return (mean + torch.randn(*sizes, generator=generator)).to(dtype).to(device)


_SHAPES = ((5, 128), (2, 3, 96), (1, 2688), (7,), (33, 64), (0, 64), (4, 80))


def rms_norm_examples(device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Iterator[dict[str, object]]:
    """Small calls that cover the contract: odd sizes, one row, leading dimensions, no row, Gemma's weight."""
    for seed, shape in enumerate(_SHAPES):
        gemma = seed >= 6
        weight = _draw(device, dtype, seed + 100, shape[-1], mean=0.0 if gemma else 1.0)
        call = dict(x=_draw(device, dtype, seed, *shape), weight=weight, eps=1e-5 if seed % 2 else 1e-6)
        yield call | ({"weight_bias": 1.0} if gemma else {})


def fused_add_rms_norm_examples(
    device: str = "cpu", dtype: torch.dtype = torch.bfloat16
) -> Iterator[dict[str, object]]:
    """As for rms_norm, with a residual larger than x."""
    for seed, call in enumerate(rms_norm_examples(device, dtype)):
        x = call.pop("x")
        assert isinstance(x, Tensor)
        yield dict(x=x, residual=4 * _draw(device, dtype, seed + 200, *x.shape), **call)


def gated_rms_norm_examples(device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Iterator[dict[str, object]]:
    """As for rms_norm without Gemma's weight, with a gate and 1 to 8 groups."""
    for seed, (call, n_groups) in enumerate(zip(rms_norm_examples(device, dtype), (1, 3, 8, 7, 2, 4), strict=False)):
        x = call["x"]
        assert isinstance(x, Tensor)
        z = _draw(device, dtype, seed + 300, *x.shape)
        yield dict(x=x, z=z, weight=call["weight"], eps=call["eps"], n_groups=n_groups)


def rms_norm_fp8_examples(device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Iterator[dict[str, object]]:
    """As for rms_norm, with a scale a token, [1] and []; one row is zero, one scale makes values saturate."""
    saturating, plain = torch.tensor([0.001], device=device), torch.tensor(0.01, device=device)
    for seed, call in enumerate(rms_norm_examples(device, dtype)):
        x = call.pop("x")
        assert isinstance(x, Tensor)
        if seed == 4:
            x[0] = 0
        yield dict(x=x, weight=call.pop("weight"), scale={1: saturating, 2: plain, 6: plain}.get(seed), **call)
