"""What arguments of the NVFP4 ops must be: one BadShape that names the argument and the shape expected.

Imported only where torch is about to be used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import BadShape
from .norms_math import check_rms_norm as check_norm
from .nvfp4 import GROUP, LAYOUTS
from .nvfp4_layouts import scale_shape
from .tensor_checks import (
    FLOATS,
    require_contiguous_last,
    require_dtype,
    require_out,
    require_rows,
    words,
)

FP8 = torch.float8_e4m3fn
MOST_FACTOR = 1.265e35  # 6 * 448 times it is still an fp32 number
_WIDE = (torch.bfloat16, torch.float16)
_DEQUANTIZED = (torch.float32, torch.bfloat16)
_KIND = {
    "linear": "in linear layout (neither padded nor swizzled)",
    "swizzled_128x4": "swizzled in tiles of 128 x 4 and padded to whole ones",
}


def check_quantize(
    x: Tensor,
    global_scale: Tensor,
    layout: str = "linear",
    out: Tensor | None = None,
    scale_out: Tensor | None = None,
) -> None:
    """Raise BadShape naming the first argument that does not fit: x [..., K] with K % 16 == 0, one fp32 scale."""
    op = "nvfp4_quantize"
    require_rows(op, "x", x, "K")
    require_dtype(op, "x", x, FLOATS)
    _require_blocks(op, "K", x.shape[-1], ", the last size of x,")
    _check_quantized(op, x, x.shape[-1], global_scale, layout, out, scale_out)


def check_silu_and_mul(
    x: Tensor,
    global_scale: Tensor,
    layout: str = "linear",
    out: Tensor | None = None,
    scale_out: Tensor | None = None,
) -> None:
    """Raise BadShape unless x is [..., 2H] with H % 16 == 0, and the others as for nvfp4_quantize."""
    op = "silu_and_mul_nvfp4"
    require_rows(op, "x", x, "2H")
    require_dtype(op, "x", x, FLOATS)
    if x.shape[-1] % 2:
        raise BadShape(f"{op} takes x [..., 2H], gate and up side by side; {list(x.shape)} has an odd last size.")
    _require_blocks(op, "H", x.shape[-1] // 2, ", half the last size of x,")
    _check_quantized(op, x, x.shape[-1] // 2, global_scale, layout, out, scale_out)


def check_rms_norm(
    x: Tensor,
    weight: Tensor,
    global_scale: Tensor,
    eps: float = 1e-6,
    weight_bias: float = 0.0,
    layout: str = "linear",
    out: Tensor | None = None,
    scale_out: Tensor | None = None,
) -> None:
    """Raise BadShape unless x and the weight are as for rms_norm, H % 16 == 0, the others as for nvfp4_quantize."""
    op = "rms_norm_nvfp4"
    check_norm(x, weight, eps, weight_bias, op=op)
    _require_blocks(op, "H", x.shape[-1], ", the last size of x,")
    _check_quantized(op, x, x.shape[-1], global_scale, layout, out, scale_out)


def _check_quantized(
    op: str, x: Tensor, k: int, global_scale: Tensor, layout: str, out: Tensor | None, scale_out: Tensor | None
) -> None:
    require_layout(op, layout)
    require_factor(op, "global_scale", global_scale, x)
    lead = tuple(x.shape[:-1])
    require_out(op, "out", out, (*lead, k // 2), torch.uint8, x.device)
    require_out(op, "scale_out", scale_out, scale_shape(lead, k, layout), FP8, x.device)
    if layout != "linear" and scale_out is not None and not scale_out.is_contiguous():
        raise BadShape(f"{op}: a swizzled scale_out must be contiguous: its rows are no rows of scales.")


def check_dequantize(
    x: Tensor,
    scale: Tensor,
    global_scale: Tensor,
    layout: str = "linear",
    *,
    out_dtype: torch.dtype | None = None,
) -> None:
    """Raise BadShape unless x is uint8 [..., K/2], its scales fit it in that layout, the output is fp32 or bf16."""
    op = "nvfp4_dequantize"
    require_packed(op, "x", x)
    require_layout(op, layout)
    require_scale(op, "scale", scale, "x", x, layout)
    require_factor(op, "global_scale", global_scale, x)
    _require_out_dtype(op, out_dtype, _DEQUANTIZED)


def check_mm(
    a: Tensor,
    a_sf: Tensor,
    b: Tensor,
    b_sf: Tensor,
    alpha: Tensor,
    *,
    layout: str = "swizzled_128x4",
    out_dtype: torch.dtype | None = None,
) -> None:
    """Raise BadShape unless a is uint8 [M, K/2], b [N, K/2], their scales fit them in that layout, alpha is fp32."""
    op = "nvfp4_mm"
    for name, matrix in (("a", a), ("b", b)):
        if matrix.dim() != 2:
            raise BadShape(f"{op} takes {name} uint8 [rows, K/2], two values a byte; got {list(matrix.shape)}.")
        require_packed(op, name, matrix)
    if b.shape[0] < 1 or a.shape[1] != b.shape[1]:
        raise BadShape(
            f"{op}: b must be uint8 [N, K/2] = [N, {a.shape[1]}] with the K of a {list(a.shape)}; got {list(b.shape)}."
        )
    require_layout(op, layout)
    require_scale(op, "a_sf", a_sf, "a", a, layout)
    _require_beside(op, "b", b, "a", a)
    require_scale(op, "b_sf", b_sf, "b", b, layout)
    require_factor(op, "alpha", alpha, a, "a")
    _require_out_dtype(op, out_dtype, FLOATS)


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
    _require_beside("nvfp4_gemm", "w", w, "x", x)
    _require_out_dtype("nvfp4_gemm", out_dtype, FLOATS)


def check_gemm_weights(
    w: Tensor, w_scale: Tensor, w_global_scale: Tensor, input_scale: Tensor | None = None
) -> None:  # fmt: skip
    """Raise BadShape unless w is uint8 [N, K/2], w_scale e4m3 [N, K/16] linear, the others one fp32 number each."""
    op = "nvfp4_gemm"
    if w.dim() != 2 or w.shape[0] < 1 or w.shape[1] < 1:
        raise BadShape(f"{op} takes w uint8 [N, K/2], two values a byte; got {list(w.shape)}.")
    require_packed(op, "w", w)
    require_scale(op, "w_scale", w_scale, "w", w, "linear", axes="[N, K/16]")
    require_factor(op, "w_global_scale", w_global_scale, w, "w")
    if input_scale is not None:
        require_factor(op, "input_scale", input_scale, w, "w")


def check_weights(
    w: Tensor, w_scale: Tensor, w_global_scale: Tensor, input_scale: Tensor | None = None
) -> None:  # fmt: skip
    """``check_gemm_weights``, and the global scales must be positive and finite; for every kernel's ``prepare``.

    Their values are read, so it waits for the device; while a CUDA graph is being captured they are not looked at.
    """
    check_gemm_weights(w, w_scale, w_global_scale, input_scale)
    if w.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    require_usable_factor("nvfp4_gemm", "w_global_scale", w_global_scale)
    if input_scale is not None:
        require_usable_factor("nvfp4_gemm", "input_scale", input_scale)


def check_factor_values(x: Tensor, weights: object = None, *, global_scale: Tensor, **_: object) -> None:
    """Raise BadShape unless the global scale is a positive, finite number. Waits for the device."""
    require_usable_factor("an NVFP4 op", "global_scale", global_scale)


def check_mm_values(a: Tensor, weights: object = None, *, alpha: Tensor, **_: object) -> None:
    """Raise BadShape unless alpha is a positive, finite number. Waits for the device."""
    require_usable_factor("nvfp4_mm", "alpha", alpha)


def require_usable_factor(op: str, name: str, factor: Tensor) -> None:
    """Raise BadShape unless the factor is positive and all it can express is an fp32 number. Waits for the device."""
    value = float(factor)
    if not 0.0 < value <= MOST_FACTOR:
        raise BadShape(
            f"{op}: {name} must be a positive, finite number (at most {MOST_FACTOR:g}), usually amax / (448 * 6); "
            f"it is {value}."
        )


def require_layout(op: str, layout: str) -> None:
    """Raise BadShape for a layout nobody knows."""
    if layout not in LAYOUTS:
        raise BadShape(f"{op}: unknown layout {layout!r} of the block scales; use {' or '.join(LAYOUTS)}.")


def require_factor(op: str, name: str, factor: Tensor, x: Tensor, of: str = "x") -> None:
    """Raise BadShape unless the factor is one fp32 number on the device of x, which the caller knows as ``of``."""
    if tuple(factor.shape) not in ((), (1,)) or factor.dtype != torch.float32:
        raise BadShape(
            f"{op}: {name} must be one float32 number, [] or [1]; got {list(factor.shape)} of {words((factor.dtype,))}."
        )
    _require_beside(op, name, factor, of, x)


def _require_beside(op: str, name: str, tensor: Tensor, of: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise BadShape(f"{op}: {name} is on {tensor.device} and {of} on {other.device}. Move both to one device.")


def require_packed(op: str, name: str, packed: Tensor) -> None:
    """Raise BadShape unless the tensor is uint8 [..., K/2] with K a multiple of 16, contiguous along K."""
    if packed.dim() < 1 or packed.shape[-1] < 1:
        raise BadShape(f"{op} takes {name} uint8 [..., K/2], two values a byte; got {list(packed.shape)}.")
    require_dtype(op, name, packed, (torch.uint8,))
    require_contiguous_last(op, name, packed)
    _require_blocks(op, "K", 2 * packed.shape[-1], f", two values a byte of {name},")


def _require_blocks(op: str, axis: str, size: int, whose: str) -> None:
    if size % GROUP:
        raise BadShape(f"{op}: {axis}={size}{whose} must be a multiple of {GROUP}, the values that share a scale.")


def require_scale(
    op: str, name: str, scale: Tensor, of: str, packed: Tensor, layout: str, axes: str = "[.., K/16]"
) -> None:  # fmt: skip
    """Raise BadShape unless the block scales are those of ``packed`` [..., K/2] in this layout, as far as shapes tell.

    Scales of the other layout are named as such. Where both layouts have one shape (whole tiles of 128 x 4), nothing
    but the result can tell them apart.
    """
    require_dtype(op, name, scale, (FP8,))
    lead, k = tuple(packed.shape[:-1]), 2 * packed.shape[-1]
    want = scale_shape(lead, k, layout)
    if tuple(scale.shape) != want:
        other = next(word for word in LAYOUTS if word != layout)
        known = tuple(scale.shape) == scale_shape(lead, k, other)
        raise BadShape(
            f"{op}: {name} must be {axes} = {list(want)}, one scale a row and {GROUP} values of {of}, "
            f"{_KIND[layout]}; got {list(scale.shape)}{f', the shape of scales {_KIND[other]}' if known else ''}."
        )
    require_contiguous_last(op, name, scale)
    if layout != "linear" and not scale.is_contiguous():
        raise BadShape(f"{op}: swizzled {name} must be contiguous: its rows are no rows of scales. Copy it.")
    _require_beside(op, name, scale, of, packed)


def _require_out_dtype(op: str, out_dtype: torch.dtype | None, known: tuple[torch.dtype, ...]) -> None:
    if out_dtype is not None and out_dtype not in known:
        raise BadShape(f"{op}: out_dtype must be {words(known)}, not {words((out_dtype,))}.")
