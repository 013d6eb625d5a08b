"""NVFP4 in torch: how values are quantized, to the bit; references, meta functions, checks, example inputs.

What is specified, all in fp32 with subnormals kept:

- the block scale is ``amax / (6 * global_scale)``, at most 448, rounded to e4m3, nearest even;
- a value is ``x / (block_scale * global_scale)``, rounded to e2m1, nearest even, at most 6;
- where that divisor is 0, the value is a zero of x's sign;
- an infinite x becomes 6 of its sign under a block scale of 448; its finite neighbours are quantized under that scale;
- a NaN makes the scale of its block NaN (0x7F) and all 16 codes 7, so that the block dequantizes to NaN.

Imported only where torch is about to be used.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import BadShape
from .nvfp4 import GROUP, LAYOUTS
from .tensor_checks import (
    FLOATS,
    require_contiguous_last,
    require_dtype,
    require_rows,
    require_same_device,
    words,
)

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
LARGEST = 6.0
LARGEST_SCALE = 448.0
_WIDE = (torch.bfloat16, torch.float16)
_OUTPUTS = (torch.bfloat16, torch.float16, torch.float32)


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
    """Return (packed uint8 [..., K/2], block scales e4m3 [..., K/16]) of x [..., K], as specified above."""
    factor = global_scale.float().reshape(())
    blocks = x.float().unflatten(-1, (x.shape[-1] // GROUP, GROUP))
    ideal = blocks.abs().amax(dim=-1) / (LARGEST * factor)
    scale = ideal.clamp(max=LARGEST_SCALE).to(torch.float8_e4m3fn)
    unit = (scale.float() * factor).unsqueeze(-1)
    values = torch.where(unit == 0, blocks * 0.0, blocks / unit)
    return pack(e2m1_codes(values).flatten(-2)), scale


def dequantize(packed: Tensor, scale: Tensor, global_scale: Tensor) -> Tensor:
    """fp32 [..., K] of bytes [..., K/2], e4m3 scales [..., K/16] and the global scale."""
    values = e2m1_values(unpack(packed)).unflatten(-1, (scale.shape[-1], GROUP))
    return (values * (scale.float() * global_scale.float().reshape(())).unsqueeze(-1)).flatten(-2)


def quantize_meta(x: Tensor, global_scale: Tensor, layout: str = "linear") -> tuple[Tensor, Tensor]:
    """(uint8 [..., K/2], e4m3 [..., K/16]) on x's device, unwritten. Checks the arguments as a call does."""
    check_quantize(x, global_scale, layout)
    rows, depth = x.shape[:-1], x.shape[-1]
    return (
        x.new_empty((*rows, depth // 2), dtype=torch.uint8),
        x.new_empty((*rows, depth // GROUP), dtype=torch.float8_e4m3fn),
    )


def check_quantize(x: Tensor, global_scale: Tensor, layout: str = "linear") -> None:
    """Raise BadShape naming the first argument that does not fit: x [..., K] with K % 16 == 0, one fp32 scale."""
    require_rows("nvfp4_quantize", "x", x, "K")
    require_dtype("nvfp4_quantize", "x", x, FLOATS)
    if x.shape[-1] % GROUP:
        raise BadShape(f"nvfp4_quantize: K={x.shape[-1]}, the last size of x, must be a multiple of {GROUP}.")
    if layout not in LAYOUTS:
        raise BadShape(f"nvfp4_quantize: unknown layout {layout!r} of the block scales; use {' or '.join(LAYOUTS)}.")
    _check_factor("nvfp4_quantize", "global_scale", global_scale, x)


def check_quantize_values(x: Tensor, weights: None = None, *, global_scale: Tensor, **_: object) -> None:
    """Raise BadShape unless the global scale is a positive, finite number. Waits for the device."""
    require_usable_factor("nvfp4_quantize", "global_scale", global_scale)


def require_usable_factor(op: str, name: str, factor: Tensor) -> None:
    """Raise BadShape unless the factor is a positive, finite number. Waits for the device."""
    value = float(factor)
    if not 0.0 < value < float("inf"):
        raise BadShape(f"{op}: {name} must be a positive, finite number, usually amax / (448 * 6); it is {value}.")


def _check_factor(op: str, name: str, factor: Tensor, x: Tensor) -> None:
    if factor.numel() != 1 or factor.dtype != torch.float32:
        raise BadShape(
            f"{op}: {name} must be one float32 number, [] or [1]; got {list(factor.shape)} of {words((factor.dtype,))}."
        )
    require_same_device(op, name, factor, x)


def quantize_examples(device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Iterator[dict[str, object]]:
    """Small calls that cover the contract: values of mixed size, a block of zeros, leading dimensions, no row."""
    for seed, shape in enumerate(((5, 64), (2, 3, 48), (1, 2688), (16,), (0, 32))):
        generator = torch.Generator(device="cpu").manual_seed(seed)
        x = torch.randn(shape, generator=generator) * torch.exp(2 * torch.randn(shape, generator=generator))
        x[..., :16] *= 0.0 if seed == 1 else 1.0
        x = x.to(dtype).to(device)
        yield dict(x=x, global_scale=_usual_factor(x))


def _usual_factor(x: Tensor) -> Tensor:
    """The global scale under which x's largest block scale is 448; 1 where x is empty."""
    if not x.numel():
        return torch.ones((), device=x.device)
    return (x.float().abs().amax() / (LARGEST * LARGEST_SCALE)).clamp_min(1e-30)


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


def gemm_meta(
    x: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_global_scale: Tensor,
    input_scale: Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """[..., N] of out_dtype or x's dtype, unwritten. Checks the arguments as a call does."""
    check_gemm(x, w, w_scale, w_global_scale, input_scale, out_dtype=out_dtype)
    return x.new_empty((*x.shape[:-1], w.shape[0]), dtype=out_dtype or x.dtype)


def check_gemm(
    x: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_global_scale: Tensor,
    input_scale: Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
) -> None:
    """Raise BadShape naming the first argument whose shape or dtype does not fit."""
    require_rows("nvfp4_gemm", "x", x, "K")
    require_dtype("nvfp4_gemm", "x", x, _WIDE)
    check_gemm_weights(w, w_scale, w_global_scale, input_scale)
    if x.shape[-1] != 2 * w.shape[1]:
        raise BadShape(
            f"nvfp4_gemm: w {list(w.shape)} holds two values a byte, [N, K/2], so x must be [..., {2 * w.shape[1]}]; "
            f"got {list(x.shape)}."
        )
    require_same_device("nvfp4_gemm", "w", w, x)
    if out_dtype is not None and out_dtype not in _OUTPUTS:
        raise BadShape(f"nvfp4_gemm: out_dtype must be {words(_OUTPUTS)}, not {words((out_dtype,))}.")


def check_gemm_weights(
    w: Tensor, w_scale: Tensor, w_global_scale: Tensor, input_scale: Tensor | None = None
) -> None:  # fmt: skip
    """Raise BadShape unless w is uint8 [N, K/2], w_scale e4m3 [N, K/16], the others one fp32 number each."""
    op = "nvfp4_gemm"
    if w.dim() != 2 or w.shape[0] < 1 or w.shape[1] < 1:
        raise BadShape(f"{op} takes w uint8 [N, K/2], two values a byte; got {list(w.shape)}.")
    require_dtype(op, "w", w, (torch.uint8,))
    require_contiguous_last(op, "w", w)
    n, k = w.shape[0], 2 * w.shape[1]
    if k % GROUP:
        raise BadShape(f"{op}: K={k} must be a multiple of {GROUP}, the values that share a scale.")
    require_dtype(op, "w_scale", w_scale, (torch.float8_e4m3fn,))
    if tuple(w_scale.shape) != (n, k // GROUP):
        raise BadShape(
            f"{op}: w_scale must be [N, K/16] = [{n}, {k // GROUP}], one scale a row and 16 values, in linear layout "
            f"(neither padded nor swizzled); got {list(w_scale.shape)}."
        )
    require_contiguous_last(op, "w_scale", w_scale)
    require_same_device(op, "w_scale", w_scale, w)
    _check_factor(op, "w_global_scale", w_global_scale, w)
    if input_scale is not None:
        _check_factor(op, "input_scale", input_scale, w)


def gemm_examples(device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Iterator[dict[str, object]]:
    """Small calls that cover the contract: with and without an input scale, leading dimensions, one row, no row."""
    for seed, (shape, n, with_scale) in enumerate(
        (((5, 64), 48, True), ((33, 128), 40, False), ((2, 3, 96), 16, True), ((1, 256), 8, False), ((0, 64), 16, True))
    ):
        generator = torch.Generator(device="cpu").manual_seed(seed)
        x = torch.randn(shape, generator=generator).to(dtype)
        weight = torch.randn(n, shape[-1], generator=generator) * shape[-1] ** -0.5
        factor = _usual_factor(weight)
        w, w_scale = quantize_reference(weight, factor)
        yield dict(
            x=x.to(device), w=w.to(device), w_scale=w_scale.to(device), w_global_scale=factor.to(device),
            input_scale=_usual_factor(x).to(device) if with_scale else None,
        )  # fmt: skip
