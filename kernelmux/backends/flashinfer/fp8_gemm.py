"""fp8_gemm through FlashInfer: bmm_fp8 (one scale a tensor) and gemm_fp8_nt_groupwise (128 x 128 blocks)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .layouts import flashinfer, scalar

if TYPE_CHECKING:
    from torch import Tensor, dtype

BLOCK = 128
E4M3_MAX = 448.0
_FLOOR = 1e-12  # a row of zeros has no scale of its own


class Fp8Weights(NamedTuple):
    """w e4m3 [N, K] with scale fp32 [1] (tensor) or [N/128, K/128] (block)."""

    w: Tensor
    w_scale: Tensor


def prepare_tensor(device: object = None, *, w: Tensor, w_scale: Tensor) -> Fp8Weights:
    return Fp8Weights(w.contiguous(), scalar(w_scale, w))


def prepare_block(device: object = None, *, w: Tensor, w_scale: Tensor) -> Fp8Weights:
    import torch

    return Fp8Weights(w.contiguous(), w_scale.to(torch.float32).contiguous())


def quantize_tensor(x: Tensor, x_scale: Tensor) -> Tensor:
    """x [M, K] -> e4m3 [M, K] under one given scale."""
    return _to_e4m3(x.float() / scalar(x_scale, x))


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [M, K] -> e4m3 [M, K] and fp32 scales [M, 1], amax / 448 of each row."""
    scale = (x.abs().amax(dim=-1, keepdim=True).float() / E4M3_MAX).clamp(min=_FLOOR)
    return _to_e4m3(x.float() / scale), scale


def _to_e4m3(values: Tensor) -> Tensor:
    import torch

    return values.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def quantize_block(x: Tensor, x_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """x [M, K] -> e4m3 [M, K] and fp32 scales [M, K/128], one for each row and 128 columns."""
    import torch

    if x.dtype == torch.float8_e4m3fn:
        if x_scale is None:
            raise ValueError("x in FP8 needs x_scale, fp32 [M, K/128].")
        return x, x_scale
    blocks = x.float().reshape(x.shape[0], -1, BLOCK)
    scale = (blocks.abs().amax(dim=-1) / E4M3_MAX).clamp(min=_FLOOR)
    values = (blocks / scale.unsqueeze(-1)).clamp(-E4M3_MAX, E4M3_MAX)
    return values.to(torch.float8_e4m3fn).reshape(x.shape), scale


def out_dtype_of(x: Tensor, out_dtype: dtype | None) -> dtype:
    """The dtype asked for, else x's own, else bf16 for x in FP8."""
    import torch

    if out_dtype is not None:
        return out_dtype
    return torch.bfloat16 if x.dtype == torch.float8_e4m3fn else x.dtype


def _bmm(x: Tensor, weights: Fp8Weights, x_scale: Tensor | None, out_dtype: dtype | None, backend: str) -> Tensor:
    """The library takes one scale of x: of rows' scales the largest; their shares of it multiply the output."""
    import torch

    rows, shares = x.reshape(-1, x.shape[-1]).contiguous(), None
    if x.dtype == torch.float8_e4m3fn:
        values, scale = rows, torch.ones(1, device=x.device) if x_scale is None else x_scale.float()
    elif x_scale is not None:
        values, scale = quantize_tensor(rows, x_scale), scalar(x_scale, x)
    else:
        values, scale = quantize_rows(rows)
    if scale.numel() > 1:
        largest = scale.max().reshape(1)
        shares, scale = scale.reshape(-1, 1) / largest, largest
    wanted = out_dtype_of(x, out_dtype)
    out = flashinfer().bmm_fp8(
        values.unsqueeze(0),
        weights.w.unsqueeze(0).transpose(1, 2),  # [1, K, N], column-major
        scale.reshape(1),
        weights.w_scale,
        wanted,
        backend=backend,
    )
    out = out.reshape(rows.shape[0], -1)
    if shares is not None:
        out = (out * shares).to(wanted)
    return out.reshape(*x.shape[:-1], weights.w.shape[0])


def run_bmm_fp8_cublas(
    x: Tensor, weights: Fp8Weights, *, config: Any = None, x_scale: Tensor | None = None, out_dtype: dtype | None = None
) -> Tensor:
    return _bmm(x, weights, x_scale, out_dtype, "cublas")


def run_bmm_fp8_cudnn(
    x: Tensor, weights: Fp8Weights, *, config: Any = None, x_scale: Tensor | None = None, out_dtype: dtype | None = None
) -> Tensor:
    return _bmm(x, weights, x_scale, out_dtype, "cudnn")


def run_bmm_fp8_cutlass(
    x: Tensor, weights: Fp8Weights, *, config: Any = None, x_scale: Tensor | None = None, out_dtype: dtype | None = None
) -> Tensor:
    return _bmm(x, weights, x_scale, out_dtype, "cutlass")


def _groupwise(x: Tensor, weights: Fp8Weights, x_scale: Tensor | None, out_dtype: dtype | None, backend: str) -> Tensor:
    rows, scales = quantize_block(x.reshape(-1, x.shape[-1]).contiguous(), x_scale)
    if backend == "trtllm":  # it reads the activations' scales as [K/128, M]
        scales, mode = scales.t().contiguous(), None
    else:
        mode = "K"
    out = flashinfer("gemm").gemm_fp8_nt_groupwise(
        rows,
        weights.w,
        scales.contiguous(),
        weights.w_scale,
        scale_major_mode=mode,
        scale_granularity_mnk=(1, BLOCK, BLOCK),
        out_dtype=out_dtype_of(x, out_dtype),
        backend=backend,
    )
    return out.reshape(*x.shape[:-1], weights.w.shape[0])


def run_gemm_fp8_nt_groupwise_cutlass(
    x: Tensor, weights: Fp8Weights, *, config: Any = None, x_scale: Tensor | None = None, out_dtype: dtype | None = None
) -> Tensor:
    return _groupwise(x, weights, x_scale, out_dtype, "cutlass")


def run_gemm_fp8_nt_groupwise_trtllm(
    x: Tensor, weights: Fp8Weights, *, config: Any = None, x_scale: Tensor | None = None, out_dtype: dtype | None = None
) -> Tensor:
    return _groupwise(x, weights, x_scale, out_dtype, "trtllm")
