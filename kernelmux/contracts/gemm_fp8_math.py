"""fp8_gemm in torch: quantization of x, the reference, the meta function, checks, example inputs.

Imported only where torch is about to be used.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import BadShape
from .gemm_fp8 import BLOCK, scheme_of
from .tensor_checks import require_contiguous_last, require_dtype, require_same_device, words

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
LEAST = (
    1e-10  # the least |x| a scale is made from, so that a row of zeros divides by no zero (vLLM's and SGLang's value)
)
_INPUTS = (torch.bfloat16, torch.float16, FP8)
_OUTPUTS = (torch.bfloat16, torch.float16, torch.float32)


def to_fp8(values: Tensor) -> Tensor:
    """e4m3, nearest even, saturating at 448; NaN stays NaN."""
    return values.float().clamp(-LARGEST, LARGEST).to(FP8)


def quantize_input(x: Tensor, scheme: str, x_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(e4m3 [M, K], fp32 scales) of x [M, K]: as given, else [] (tensor), [M, 1] (channel), [M, ceil(K/128)]."""
    if x_scale is not None:
        return to_fp8(x.float() / x_scale), x_scale
    if scheme != "fp8_block":
        largest = x.float().abs().amax(dim=-1, keepdim=True)
        if scheme == "fp8_tensor" and x.numel():
            largest = largest.amax()
        scale = largest.clamp_min(LEAST) / LARGEST
        return to_fp8(x.float() / scale), scale
    rows, depth = x.shape
    blocks = -(-depth // BLOCK)
    padded = torch.nn.functional.pad(x.float(), (0, blocks * BLOCK - depth)).view(rows, blocks, BLOCK)
    scale = padded.abs().amax(dim=-1).clamp_min(LEAST) / LARGEST
    return to_fp8(padded / scale.unsqueeze(-1)).view(rows, blocks * BLOCK)[:, :depth], scale


def dequantize_input(stored: Tensor, scale: Tensor) -> Tensor:
    """fp32 [M, K] of e4m3 [M, K] with scales [] or [1], [M, 1], or [M, ceil(K/128)]."""
    values = stored.float()
    if scale.numel() == 1:
        return values * scale.reshape(())
    if scale.dim() == 2 and scale.shape[1] > 1:
        return values * scale.repeat_interleave(BLOCK, dim=1)[:, : values.shape[1]]
    return values * scale.reshape(-1, 1)


def dequantize_weight(w: Tensor, w_scale: Tensor, scheme: str) -> Tensor:
    """fp32 [N, K] of e4m3 w [N, K] with the scales of that scheme."""
    values = w.float()
    if scheme == "fp8_tensor":
        return values * w_scale.reshape(())
    if scheme == "fp8_channel":
        return values * w_scale.reshape(-1, 1)
    rows = w_scale.repeat_interleave(BLOCK, dim=0)[: w.shape[0]]
    return values * rows.repeat_interleave(BLOCK, dim=1)[:, : w.shape[1]]


def quantize_weight(weight: Tensor, scheme: str) -> tuple[Tensor, Tensor]:
    """(e4m3 [N, K], fp32 scales [], [N] or [ceil(N/128), ceil(K/128)]) of a weight [N, K]; for examples and tests."""
    values = weight.float()
    if scheme == "fp8_tensor":
        scale = values.abs().amax().clamp_min(LEAST) / LARGEST
        return to_fp8(values / scale), scale
    if scheme == "fp8_channel":
        scale = values.abs().amax(dim=1).clamp_min(LEAST) / LARGEST
        return to_fp8(values / scale[:, None]), scale
    n, k = (-(-size // BLOCK) for size in values.shape)
    padded = torch.nn.functional.pad(values, (0, k * BLOCK - values.shape[1], 0, n * BLOCK - values.shape[0]))
    scale = padded.view(n, BLOCK, k, BLOCK).abs().amax(dim=(1, 3)).clamp_min(LEAST) / LARGEST
    spread = scale.repeat_interleave(BLOCK, dim=0).repeat_interleave(BLOCK, dim=1)
    return to_fp8(padded / spread)[: values.shape[0], : values.shape[1]].contiguous(), scale


def reference(
    x: Tensor, w: Tensor, w_scale: Tensor, x_scale: Tensor | None = None, *, out_dtype: torch.dtype | None = None
) -> Tensor:
    """Return [..., N] fp32: the product of the quantized operands, dequantized, in fp32."""
    scheme = scheme_of(w=w, w_scale=w_scale)
    rows = x.reshape(-1, x.shape[-1])
    if x.dtype == FP8:
        assert x_scale is not None
        values = dequantize_input(rows, x_scale)
    else:
        values = dequantize_input(*quantize_input(rows, scheme, x_scale))
    return (values @ dequantize_weight(w, w_scale, scheme).T).view(*x.shape[:-1], w.shape[0])


def output_dtype(x: Tensor, out_dtype: torch.dtype | None) -> torch.dtype:
    """What was asked for, else x's own, else bf16 for e4m3."""
    return out_dtype or (torch.bfloat16 if x.dtype == FP8 else x.dtype)


def meta(
    x: Tensor, w: Tensor, w_scale: Tensor, x_scale: Tensor | None = None, *, out_dtype: torch.dtype | None = None
) -> Tensor:
    """[..., N] of the output's dtype, unwritten. Checks the arguments as a call does."""
    check_arguments(x, w, w_scale, x_scale, out_dtype=out_dtype)
    return x.new_empty((*x.shape[:-1], w.shape[0]), dtype=output_dtype(x, out_dtype))


def check_arguments(
    x: Tensor, w: Tensor, w_scale: Tensor, x_scale: Tensor | None = None, *, out_dtype: torch.dtype | None = None
) -> None:
    """Raise BadShape naming the first argument whose shape or dtype does not fit."""
    if x.dim() < 1 or w.dim() != 2 or x.shape[-1] != w.shape[1] or w.shape[0] < 1 or w.shape[1] < 1:
        raise BadShape(f"fp8_gemm takes x [..., K] and w [N, K]; got {list(x.shape)} and {list(w.shape)}.")
    require_dtype("fp8_gemm", "x", x, _INPUTS)
    check_weights(w, w_scale)
    require_contiguous_last("fp8_gemm", "x", x)
    require_same_device("fp8_gemm", "w", w, x)
    if out_dtype is not None and out_dtype not in _OUTPUTS:
        raise BadShape(f"fp8_gemm: out_dtype must be {words(_OUTPUTS)}, not {words((out_dtype,))}.")
    if x_scale is None:
        if x.dtype == FP8:
            raise BadShape("fp8_gemm: x of float8_e4m3fn needs its x_scale.")
        return
    rows = x.numel() // x.shape[-1]
    _check_scale("x_scale", x_scale)
    allowed = [(), (1,)]
    if x.dtype == FP8:
        block = scheme_of(w=w, w_scale=w_scale) == "fp8_block"
        allowed += [(rows, -(-w.shape[1] // BLOCK))] if block else [(rows,), (rows, 1)]
    if tuple(x_scale.shape) not in allowed:
        raise BadShape(
            f"fp8_gemm: x_scale for x {list(x.shape)} of {words((x.dtype,))} must be "
            f"{' or '.join(str(list(shape)) for shape in allowed)}; got {list(x_scale.shape)}."
        )


def check_weights(w: Tensor, w_scale: Tensor) -> None:
    """Raise BadShape unless w is e4m3 [N, K] and w_scale fp32 of one of the three shapes."""
    require_dtype("fp8_gemm", "w", w, (FP8,))
    require_contiguous_last("fp8_gemm", "w", w)
    require_same_device("fp8_gemm", "w_scale", w_scale, w)
    _check_scale("w_scale", w_scale)
    n, k = w.shape
    block = (-(-n // BLOCK), -(-k // BLOCK))
    if tuple(w_scale.shape) not in ((), (1,), (1, 1), (n,), (n, 1), block):
        raise BadShape(
            f"fp8_gemm: w_scale for w {[n, k]} must be [] (tensor), [{n}] (channel) or {list(block)} (blocks of "
            f"{BLOCK} x {BLOCK}); got {list(w_scale.shape)}."
        )


def _check_scale(name: str, scale: Tensor) -> None:
    if scale.dtype != torch.float32:
        raise BadShape(f"fp8_gemm: {name} must be float32, not {words((scale.dtype,))}.")


def examples(device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Iterator[dict[str, object]]:
    """Small calls that cover the contract: each kind of scale, x quantized or not, one row, no row."""
    wide = torch.bfloat16 if dtype == FP8 else dtype
    for seed, (scheme, m, n, k, given) in enumerate(
        (
            ("fp8_tensor", 5, 48, 64, True),
            ("fp8_tensor", 16, 64, 256, False),
            ("fp8_channel", 33, 48, 96, False),
            ("fp8_block", 17, 256, 384, False),
            ("fp8_block", 3, 144, 160, False),
            ("fp8_channel", 1, 32, 128, False),
            ("fp8_channel", 0, 32, 128, False),
        )
    ):
        generator = torch.Generator(device="cpu").manual_seed(seed)
        x = torch.randn(m, k, generator=generator)
        w, w_scale = quantize_weight(torch.randn(n, k, generator=generator) * k**-0.5, scheme)
        x_scale = x.abs().amax() / LARGEST if given else None
        if dtype == FP8:
            x, x_scale = quantize_input(x, scheme, x_scale)
        yield dict(
            x=x.to(device) if dtype == FP8 else x.to(wide).to(device),
            w=w.to(device), w_scale=w_scale.to(device), x_scale=None if x_scale is None else x_scale.to(device),
        )  # fmt: skip
