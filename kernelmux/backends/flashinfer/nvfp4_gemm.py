"""nvfp4_gemm and nvfp4_mm through FlashInfer: mm_fp4 (x quantized inside, or both given) and mm_bf16_fp4 (x as it is).

``prepare`` makes the weight layout of one family of its kernels and refuses what does not fit, before anything runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import UsageError
from .layouts import EPILOGUE_TILE_M, flashinfer, scalar, swizzle_128x4
from .quantize import fp4_quantize

if TYPE_CHECKING:
    from torch import Tensor, dtype

GROUP = 16


class Fp4Weights(NamedTuple):
    """Weights in the layout of one family of kernels; global scales are fp32 [1]."""

    w: Tensor  # u8 [N, K/2], rows as the kernel wants them
    w_scale: Tensor  # e4m3 [N up to 128, K/16 up to 4], in the kernel's order
    alpha: Tensor  # w_global_scale * input_scale
    x_global: Tensor  # 1 / input_scale, which fp4_quantize multiplies by
    n: int


class W4A16Weights(NamedTuple):
    """What ``prepare_bf16_fp4_weights`` returned."""

    w: Tensor
    w_scale: Tensor
    alpha: Tensor | None
    n: int


def prepare_swizzled(
    device: object = None, *, w: Tensor, w_scale: Tensor, w_global_scale: Tensor, input_scale: Tensor | None = None
) -> Fp4Weights:
    """w u8 [N, K/2], w_scale e4m3 [N, K/16], dequantizing scales fp32: scales in blocks of 128 x 4."""
    _check(w, w_scale, w_global_scale, input_scale)
    return _with_scales(w.contiguous(), swizzle_128x4(w_scale), w_global_scale, input_scale, w.shape[0])


def prepare_shuffled(
    device: object = None, *, w: Tensor, w_scale: Tensor, w_global_scale: Tensor, input_scale: Tensor | None = None
) -> Fp4Weights:
    """The same for trtllm-gen, whose rows and scales are permuted within tiles of 128."""
    import torch

    _check(w, w_scale, w_global_scale, input_scale)
    library = flashinfer()
    rows = library.shuffle_matrix_a(w.contiguous().view(torch.uint8), EPILOGUE_TILE_M)
    scales = library.shuffle_matrix_sf_a(w_scale.contiguous().view(torch.uint8), EPILOGUE_TILE_M, GROUP)
    scales = scales.reshape(w_scale.shape).view(w_scale.dtype)
    return _with_scales(rows, scales, w_global_scale, input_scale, w.shape[0])


def _check(w: Tensor, w_scale: Tensor, w_global: Tensor, x_scale: Tensor | None) -> None:
    from ...contracts.nvfp4_checks import check_weights

    if x_scale is None:
        raise UsageError("mm_fp4 quantizes x and needs its input_scale: without one the scheme is nvfp4_w4a16.")
    check_weights(w, w_scale, w_global, x_scale)


def _with_scales(rows: Tensor, scales: Tensor, w_global: Tensor, x_scale: Any, n: int) -> Fp4Weights:
    x_scale = scalar(x_scale, rows)
    return Fp4Weights(rows, scales, scalar(w_global, rows) * x_scale, 1.0 / x_scale, n)


def _run(
    x: Tensor,
    weights: Fp4Weights,
    out_dtype: dtype | None,
    backend: str,
) -> Tensor:
    """x [..., K] bf16 or fp16 -> [..., N]."""
    dtype = x.dtype if out_dtype is None else out_dtype
    if not x.numel():
        return x.new_empty((*x.shape[:-1], weights.n), dtype=dtype)
    values, scales = fp4_quantize(x.reshape(-1, x.shape[-1]), weights.x_global, swizzled=True)
    out = _product(values, scales, weights.w, weights.w_scale, weights.alpha, dtype, backend)
    return out.reshape(*x.shape[:-1], weights.n)


def _product(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, alpha: Tensor, out_dtype: dtype, backend: str
) -> Tensor:
    """alpha * a [M, K/2] @ b [N, K/2].T, scales swizzled or as trtllm wants those of b."""
    return flashinfer().mm_fp4(
        a,
        b.T,
        a_scale,
        b_scale.T,
        alpha=alpha,
        out_dtype=out_dtype,
        block_size=GROUP,
        use_8x4_sf_layout=False,
        backend=backend,
        use_nvfp4=True,
    )


def run_cutlass(x: Tensor, weights: Fp4Weights, *, config: Any = None, out_dtype: dtype | None = None) -> Tensor:
    return _run(x, weights, out_dtype, "cutlass")


def run_cudnn(x: Tensor, weights: Fp4Weights, *, config: Any = None, out_dtype: dtype | None = None) -> Tensor:
    return _run(x, weights, out_dtype, "cudnn")


def run_trtllm(x: Tensor, weights: Fp4Weights, *, config: Any = None, out_dtype: dtype | None = None) -> Tensor:
    return _run(x, weights, out_dtype, "trtllm")


def run_cutedsl(x: Tensor, weights: Fp4Weights, *, config: Any = None, out_dtype: dtype | None = None) -> Tensor:
    return _run(x, weights, out_dtype, "cute-dsl")


def run_cutedsl_low_latency(
    x: Tensor, weights: Fp4Weights, *, config: Any = None, out_dtype: dtype | None = None
) -> Tensor:
    return _run(x, weights, out_dtype, "cutedsl_low_latency")


def run_b12x(x: Tensor, weights: Fp4Weights, *, config: Any = None, out_dtype: dtype | None = None) -> Tensor:
    return _run(x, weights, out_dtype, "b12x")


def _mm(
    a: Tensor, a_sf: Tensor, b: Tensor, b_sf: Tensor, alpha: Tensor, layout: str, out_dtype: dtype | None, backend: str
) -> Tensor:
    """nvfp4_mm: scales in linear layout are swizzled first."""
    import torch

    from ...contracts.nvfp4_checks import check_mm

    check_mm(a, a_sf, b, b_sf, alpha, layout=layout, out_dtype=out_dtype)
    result = torch.bfloat16 if out_dtype is None else out_dtype
    if result == torch.float32:
        raise UsageError("mm_fp4 writes bfloat16 or float16: use the triton or torch kernel of nvfp4_mm for float32.")
    if not a.shape[0]:
        return a.new_empty((0, b.shape[0]), dtype=result)
    if layout == "linear":
        a_sf, b_sf = swizzle_128x4(a_sf), swizzle_128x4(b_sf)
    return _product(a.contiguous(), a_sf, b.contiguous(), b_sf, alpha.reshape(1), result, backend)


def _mm_on(backend: str) -> Callable[..., Tensor]:
    def mm(
        a: Tensor, weights: None = None, *, config: Any = None, a_sf: Tensor, b: Tensor, b_sf: Tensor, alpha: Tensor,
        layout: str = "swizzled_128x4", out_dtype: dtype | None = None,
    ) -> Tensor:  # fmt: skip
        """a u8 [M, K/2], b u8 [N, K/2] -> [M, N]."""
        return _mm(a, a_sf, b, b_sf, alpha, layout, out_dtype, backend)

    return mm


mm_cutlass, mm_cudnn, mm_cutedsl, mm_b12x = map(_mm_on, ("cutlass", "cudnn", "cute-dsl", "b12x"))


def prepare_w4a16_cutedsl(
    device: object = None, *, w: Tensor, w_scale: Tensor, w_global_scale: Tensor, input_scale: Tensor | None = None
) -> W4A16Weights:
    """An input scale is read by nobody here: x stays as it is."""
    return _prepare_w4a16(w, w_scale, w_global_scale, "cute-dsl")


def prepare_w4a16_cudnn(
    device: object = None, *, w: Tensor, w_scale: Tensor, w_global_scale: Tensor, input_scale: Tensor | None = None
) -> W4A16Weights:
    """An input scale is read by nobody here: x stays as it is."""
    return _prepare_w4a16(w, w_scale, w_global_scale, "cudnn")


def _prepare_w4a16(w: Tensor, w_scale: Tensor, w_global_scale: Tensor, backend: str) -> W4A16Weights:
    from ...contracts.nvfp4_checks import check_weights

    check_weights(w, w_scale, w_global_scale)
    gemm = flashinfer("gemm")
    rows, scales, alpha = gemm.prepare_bf16_fp4_weights(
        w.contiguous(), swizzle_128x4(w_scale), scalar(w_global_scale, w), backend=backend, block_size=GROUP
    )
    return W4A16Weights(rows, scales, alpha, w.shape[0])


def _run_w4a16(x: Tensor, weights: W4A16Weights, out_dtype: dtype | None, backend: str) -> Tensor:
    if not x.numel():
        return x.new_empty((*x.shape[:-1], weights.n), dtype=out_dtype or x.dtype)
    out = flashinfer("gemm").mm_bf16_fp4(
        x.reshape(-1, x.shape[-1]).contiguous(),
        weights.w,
        weights.w_scale,
        weights.alpha,
        backend=backend,
        out_dtype=x.dtype if out_dtype is None else out_dtype,
        block_size=GROUP,
    )
    return out.reshape(*x.shape[:-1], weights.n)


def run_w4a16_cutedsl(
    x: Tensor, weights: W4A16Weights, *, config: Any = None, out_dtype: dtype | None = None
) -> Tensor:
    return _run_w4a16(x, weights, out_dtype, "cute-dsl")


def run_w4a16_cudnn(x: Tensor, weights: W4A16Weights, *, config: Any = None, out_dtype: dtype | None = None) -> Tensor:
    return _run_w4a16(x, weights, out_dtype, "cudnn")
