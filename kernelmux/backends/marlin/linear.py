"""nvfp4_gemm and fp8_gemm through Marlin, weight-only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import UsageError
from .layer import activation_dtype, layer, utils

if TYPE_CHECKING:
    from torch import Tensor, dtype

BLOCK = 128


class MarlinWeights(NamedTuple):
    """Weights and scales in Marlin's tiles."""

    w: Tensor
    w_scale: Tensor
    global_scale: Tensor | None
    n: int
    k: int


def prepare_nvfp4(
    device: Any = None, *, w: Tensor, w_scale: Tensor, w_global_scale: Tensor, input_scale: Tensor | None = None
) -> MarlinWeights:
    """w u8 [N, K/2], w_scale e4m3 [N, K/16]. An input scale is read by nobody here: x stays as it is."""
    import torch

    from ...contracts.nvfp4_checks import check_weights

    check_weights(w, w_scale, w_global_scale)
    n, k = w.shape[0], 2 * w.shape[1]
    made = layer(
        {"weight": w, "weight_scale": w_scale, "weight_global_scale": w_global_scale.to(torch.float32).reshape(())},
        output_size_per_partition=n,
        input_size_per_partition=k,
        params_dtype=activation_dtype(device, w),
    )
    utils("marlin_utils_fp4").prepare_fp4_layer_for_marlin(made)
    return MarlinWeights(made.weight.data, made.weight_scale.data, made.weight_global_scale.data, n, k)


def prepare_fp8(device: Any = None, *, w: Tensor, w_scale: Tensor) -> MarlinWeights:
    """w e4m3 [N, K] with scales of a tensor [], of channels [N] or of 128 x 128 blocks."""
    n, k = w.shape
    channels = w_scale.numel() == 1 or w_scale.dim() == 1 or tuple(w_scale.shape) == (n, 1)
    facts = {} if channels else {"weight_block_size": [BLOCK, BLOCK]}
    made = layer(
        {"weight": w, "weight_scale": w_scale},
        output_size_per_partition=n,
        input_size_per_partition=k,
        orig_dtype=activation_dtype(device, w),
        **facts,
    )
    utils("marlin_utils_fp8").prepare_fp8_layer_for_marlin(made, size_k_first=False)
    return MarlinWeights(made.weight.data, made.weight_scale.data, None, n, k)


def run_nvfp4(x: Tensor, weights: MarlinWeights, *, config: Any = None, out_dtype: dtype | None = None) -> Tensor:
    """x [..., K] -> [..., N] in x's dtype."""
    _same_dtype(x, out_dtype)
    return utils("marlin_utils_fp4").apply_fp4_marlin_linear(
        input=x,
        weight=weights.w,
        weight_scale=weights.w_scale,
        weight_global_scale=weights.global_scale,
        workspace=None,
        size_n=weights.n,
        size_k=weights.k,
    )


def run_fp8(
    x: Tensor,
    weights: MarlinWeights,
    *,
    config: Any = None,
    x_scale: Tensor | None = None,
    out_dtype: dtype | None = None,
) -> Tensor:
    """x [..., K] -> [..., N] in x's dtype; x is not quantized, so an x_scale is not read."""
    _same_dtype(x, out_dtype)
    return utils("marlin_utils_fp8").apply_fp8_marlin_linear(
        input=x,
        weight=weights.w,
        weight_scale=weights.w_scale,
        workspace=None,
        size_n=weights.n,
        size_k=weights.k,
        bias=None,
    )


def _same_dtype(x: Tensor, out_dtype: dtype | None) -> None:
    if out_dtype not in (None, x.dtype):
        raise UsageError(f"Marlin writes the dtype of x ({x.dtype}), not {out_dtype}: use another backend.")
