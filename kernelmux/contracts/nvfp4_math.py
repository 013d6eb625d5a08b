"""NVFP4 in torch: how values are quantized, to the bit; references and meta functions. These are the specification.

What is specified, all in fp32 with subnormals kept, for global scales from 2^-149 to 1.26e35:

- the block scale is ``amax / (6 * global_scale)``, at most 448, rounded to e4m3, nearest even;
- a value is ``x / (block_scale * global_scale)``, rounded to e2m1, nearest even, at most 6;
- where that divisor is 0, the value is a zero of x's sign;
- an infinite x becomes 6 of its sign under a block scale of 448; its finite neighbours are quantized under that scale;
- a NaN makes the scale of its block NaN (0x7F) and all 16 codes 7, so that the block dequantizes to NaN.

What was dequantized to fp32 quantizes to the same bytes where the stored scale is 0 or its e4m3 code is at least 3, as
long as the products are normal numbers (tests/unit/contracts/test_nvfp4_exhaustive.py; codes 1 and 2 are exceptions:
a scale that was rounded up to them leaves less than 5 of 6 for the largest value).

Imported only where torch is about to be used.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .norms_math import rms_norm_reference as norm_reference
from .nvfp4 import GROUP
from .nvfp4_checks import (
    FP8,
    check_dequantize,
    check_gemm,
    check_gemm_weights,
    check_mm,
    check_quantize,
    check_rms_norm,
    check_silu_and_mul,
    check_weights,
    require_usable_factor,
)
from .nvfp4_layouts import laid_out, linear, scale_shape

__all__ = [
    "E2M1",
    "check_dequantize",
    "check_gemm",
    "check_gemm_weights",
    "check_mm",
    "check_quantize",
    "check_rms_norm",
    "check_silu_and_mul",
    "check_weights",
    "decoded",
    "dequantize",
    "dequantize_meta",
    "dequantize_reference",
    "e2m1_codes",
    "e2m1_values",
    "gemm_examples",
    "gemm_meta",
    "gemm_reference",
    "mm_meta",
    "mm_reference",
    "pack",
    "quantize_examples",
    "quantize_meta",
    "quantize_reference",
    "require_usable_factor",
    "rms_norm_meta",
    "rms_norm_reference",
    "silu_and_mul_meta",
    "silu_and_mul_reference",
    "unpack",
    "usual_factor",
]  # fmt: skip

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
LARGEST = 6.0
LARGEST_SCALE = 448.0


def e2m1_codes(values: Tensor) -> Tensor:
    """uint8 codes 0..15 (sign in bit 3) of fp32 values: nearest, ties to the even code, saturating; 7 for NaN."""
    size = values.abs()
    codes = (
        (size > 0.25).to(torch.uint8) + (size >= 0.75) + (size > 1.25) + (size >= 1.75) + (size > 2.5) + (size >= 3.5)
        + (size > 5.0)
    )  # fmt: skip
    codes = codes + 8 * torch.signbit(values).to(torch.uint8)
    return torch.where(values.isnan(), 7, codes).to(torch.uint8)


def e2m1_values(codes: Tensor) -> Tensor:
    """fp32 values of codes 0..15. By arithmetic: a table made on the GPU could not be made in a graph capture."""
    size = (codes & 7).float()
    # Codes 0..3 are steps of 0.5, 4 and 5 steps of 1, 6 and 7 steps of 2.
    value = torch.where(size < 4, size * 0.5, torch.where(size < 6, size - 2, 2 * size - 8))
    return torch.where(codes >= 8, -value, value)


def pack(codes: Tensor) -> Tensor:
    """uint8 [..., K/2] of codes [..., K]: two a byte, the first in the low four bits."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack(packed: Tensor) -> Tensor:
    """Codes uint8 [..., K] of bytes [..., K/2]."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def quantize_reference(x: Tensor, global_scale: Tensor, layout: str = "linear") -> tuple[Tensor, Tensor]:
    """Return (packed uint8 [..., K/2], e4m3 block scales in that layout) of x [..., K], as specified above."""
    factor = global_scale.float().reshape(())
    blocks = x.float().unflatten(-1, (x.shape[-1] // GROUP, GROUP))
    ideal = blocks.abs().amax(dim=-1) / (LARGEST * factor)
    scale = ideal.clamp(max=LARGEST_SCALE).to(FP8)
    unit = (scale.float() * factor).unsqueeze(-1)
    values = torch.where(unit == 0, blocks * 0.0, blocks / unit)
    return pack(e2m1_codes(values).flatten(-2)), laid_out(scale, layout)


def dequantize(packed: Tensor, scale: Tensor, global_scale: Tensor) -> Tensor:
    """fp32 [..., K] of bytes [..., K/2], linear e4m3 scales [..., K/16] and the global scale."""
    values = e2m1_values(unpack(packed)).unflatten(-1, (scale.shape[-1], GROUP))
    return (values * (scale.float() * global_scale.float().reshape(())).unsqueeze(-1)).flatten(-2)


def dequantize_reference(
    x: Tensor,
    scale: Tensor,
    global_scale: Tensor,
    layout: str = "linear",
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Return [..., K] fp32: e2m1 * (block scale * global scale), each product in fp32."""
    lead = tuple(x.shape[:-1])
    return dequantize(x, linear(scale, lead, 2 * x.shape[-1], layout), global_scale)


def silu_and_mul_reference(x: Tensor, global_scale: Tensor, layout: str = "linear") -> tuple[Tensor, Tensor]:
    """NVFP4 of silu(gate) * up, computed in fp32 and rounded nowhere but to NVFP4."""
    gate, up = x.float().chunk(2, dim=-1)
    return quantize_reference(F.silu(gate) * up, global_scale, layout)


def rms_norm_reference(
    x: Tensor,
    weight: Tensor,
    global_scale: Tensor,
    eps: float = 1e-6,
    weight_bias: float = 0.0,
    layout: str = "linear",
) -> tuple[Tensor, Tensor]:
    """NVFP4 of the norm's fp32 product with its weight, which is rounded nowhere but to NVFP4."""
    return quantize_reference(norm_reference(x, weight, eps, weight_bias), global_scale, layout)


def decoded(results: tuple[Tensor, Tensor], *, layout: str = "linear", **_: object) -> tuple[Tensor, Tensor]:
    """What packed results mean, fp32: the values [..., K] without the global scale, and their linear block scales."""
    packed, scale = results
    found = linear(scale, tuple(packed.shape[:-1]), 2 * packed.shape[-1], layout)
    return dequantize(packed, found, scale.new_ones((), dtype=torch.float32)), found.float()


def mm_reference(
    a: Tensor,
    a_sf: Tensor,
    b: Tensor,
    b_sf: Tensor,
    alpha: Tensor,
    *,
    layout: str = "swizzled_128x4",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Return [M, N] fp32: alpha times the product of the dequantized blocks, whose elements are exact."""
    one = alpha.new_ones(())
    left, right = (dequantize_reference(values, scale, one, layout) for values, scale in ((a, a_sf), (b, b_sf)))
    return alpha.reshape(()) * (left @ right.T)


def gemm_reference(
    x: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_global_scale: Tensor,
    input_scale: Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Return [..., N] fp32: x, through NVFP4 where an input scale is given, times the dequantized weight."""
    values = x.float() if input_scale is None else dequantize(*quantize_reference(x, input_scale), input_scale)
    return values @ dequantize(w, w_scale, w_global_scale).T


# meta functions: shapes and dtypes on the arguments' device, unwritten; they check the arguments as a call does


def quantize_meta(x: Tensor, global_scale: Tensor, layout: str = "linear") -> tuple[Tensor, Tensor]:
    """(uint8 [..., K/2], e4m3 scales in that layout)."""
    check_quantize(x, global_scale, layout)
    return _packed(x, x.shape[-1], layout)


def silu_and_mul_meta(x: Tensor, global_scale: Tensor, layout: str = "linear") -> tuple[Tensor, Tensor]:
    """(uint8 [..., H/2], e4m3 scales in that layout) of x [..., 2H]."""
    check_silu_and_mul(x, global_scale, layout)
    return _packed(x, x.shape[-1] // 2, layout)


def rms_norm_meta(
    x: Tensor,
    weight: Tensor,
    global_scale: Tensor,
    eps: float = 1e-6,
    weight_bias: float = 0.0,
    layout: str = "linear",
) -> tuple[Tensor, Tensor]:
    """(uint8 [..., H/2], e4m3 scales in that layout)."""
    check_rms_norm(x, weight, global_scale, eps, weight_bias, layout)
    return _packed(x, x.shape[-1], layout)


def _packed(x: Tensor, k: int, layout: str) -> tuple[Tensor, Tensor]:
    lead = tuple(x.shape[:-1])
    return (
        x.new_empty((*lead, k // 2), dtype=torch.uint8),
        x.new_empty(scale_shape(lead, k, layout), dtype=FP8),
    )


def dequantize_meta(
    x: Tensor,
    scale: Tensor,
    global_scale: Tensor,
    layout: str = "linear",
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """[..., K] of out_dtype, fp32 by default."""
    check_dequantize(x, scale, global_scale, layout, out_dtype=out_dtype)
    return x.new_empty((*x.shape[:-1], 2 * x.shape[-1]), dtype=out_dtype or torch.float32)


def mm_meta(
    a: Tensor,
    a_sf: Tensor,
    b: Tensor,
    b_sf: Tensor,
    alpha: Tensor,
    *,
    layout: str = "swizzled_128x4",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """[M, N] of out_dtype, bf16 by default."""
    check_mm(a, a_sf, b, b_sf, alpha, layout=layout, out_dtype=out_dtype)
    return a.new_empty((a.shape[0], b.shape[0]), dtype=out_dtype or torch.bfloat16)


def gemm_meta(
    x: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_global_scale: Tensor,
    input_scale: Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """[..., N] of out_dtype or x's dtype."""
    check_gemm(x, w, w_scale, w_global_scale, input_scale, out_dtype=out_dtype)
    return x.new_empty((*x.shape[:-1], w.shape[0]), dtype=out_dtype or x.dtype)


# example inputs that kernels of linear scales take as well; nvfp4_examples has the others


def quantize_examples(device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Iterator[dict[str, object]]:
    """Small calls: values of mixed size, a block of zeros, leading dimensions, no row; linear scales."""
    for seed, shape in enumerate(((5, 64), (2, 3, 48), (1, 2688), (16,), (0, 32))):
        generator = torch.Generator(device="cpu").manual_seed(seed)
        x = torch.randn(shape, generator=generator) * torch.exp(2 * torch.randn(shape, generator=generator))
        x[..., :16] *= 0.0 if seed == 1 else 1.0
        x = x.to(dtype).to(device)
        yield dict(x=x, global_scale=usual_factor(x))


def usual_factor(x: Tensor) -> Tensor:
    """The global scale under which x's largest block scale is 448; 1 where x is empty."""
    if not x.numel():
        return torch.ones((), device=x.device)
    return (x.float().abs().amax() / (LARGEST * LARGEST_SCALE)).clamp_min(1e-30)


def gemm_examples(device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Iterator[dict[str, object]]:
    """Small calls that cover the contract: with and without an input scale, leading dimensions, one row, no row."""
    for seed, (shape, n, with_scale) in enumerate(
        (((5, 64), 48, True), ((33, 128), 40, False), ((2, 3, 96), 16, True), ((1, 256), 8, False), ((0, 64), 16, True))
    ):
        generator = torch.Generator(device="cpu").manual_seed(seed)
        x = torch.randn(shape, generator=generator).to(dtype)
        weight = torch.randn(n, shape[-1], generator=generator) * shape[-1] ** -0.5
        factor = usual_factor(weight)
        w, w_scale = quantize_reference(weight, factor)
        yield dict(
            x=x.to(device), w=w.to(device), w_scale=w_scale.to(device), w_global_scale=factor.to(device),
            input_scale=usual_factor(x).to(device) if with_scale else None,
        )  # fmt: skip
