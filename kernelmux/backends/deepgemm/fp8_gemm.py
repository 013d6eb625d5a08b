"""fp8_gemm through DeepGEMM's fp8_gemm_nt."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import MissingPackage, UsageError
from ..libraries import module
from .exports import MODULES

if TYPE_CHECKING:
    from torch import Tensor, dtype

BLOCK = 128
E4M3_MAX = 448.0
_FLOOR = 1e-12  # a block of zeros has no scale of its own


class BlockWeights(NamedTuple):
    """w e4m3 [N, K], fp32 scales [N/128, K/128]; ``ue8m0``: every scale is a power of two."""

    w: Tensor
    w_scale: Tensor
    ue8m0: bool


def deep_gemm() -> Any:
    """The library, from whichever distribution holds it. Raises MissingPackage."""
    for name in dict.fromkeys(MODULES.values()):
        if find_spec(name.partition(".")[0]) is not None:
            return module(name, "sgl-deep-gemm", "fp8_gemm on deepgemm")
    raise MissingPackage("DeepGEMM", "fp8_gemm on deepgemm", "pip install sgl-deep-gemm")


def prepare(device: Any = None, *, w: Tensor, w_scale: Tensor) -> BlockWeights:
    """On 9.0 as they are; later GPUs want power-of-two scales, for which the weights are quantized anew."""
    import torch

    scales = w_scale.to(torch.float32).contiguous()
    if not takes_ue8m0(device, w):
        return BlockWeights(w.contiguous(), scales, False)
    return BlockWeights(*requantize(w, scales), True)


def takes_ue8m0(device: Any, w: Tensor) -> bool:
    """Whether DeepGEMM casts scales to UE8M0 on this GPU: everything but 9.0."""
    import torch

    capability = getattr(device, "capability", None)
    major = capability.major if capability is not None else torch.cuda.get_device_capability(w.device)[0]
    return bool(major >= 10)


def requantize(w: Tensor, w_scale: Tensor) -> tuple[Tensor, Tensor]:
    """w e4m3 [N, K] under scales [N/128, K/128] -> the same under the next powers of two."""
    import torch

    n, k = w.shape
    each = w_scale.repeat_interleave(BLOCK, 0)[:n].repeat_interleave(BLOCK, 1)[:, :k]
    scales = power_of_two(w_scale)
    values = w.float() * (each / scales.repeat_interleave(BLOCK, 0)[:n].repeat_interleave(BLOCK, 1)[:, :k])
    return values.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn), scales


def power_of_two(scales: Tensor) -> Tensor:
    """The smallest power of two that is no smaller."""
    import torch

    return torch.exp2(torch.ceil(torch.log2(scales.clamp(min=_FLOOR))))


def quantize(x: Tensor, ue8m0: bool) -> tuple[Tensor, Tensor]:
    """x [M, K] -> e4m3 and fp32 scales [M, K/128]."""
    import torch

    blocks = x.float().reshape(x.shape[0], -1, BLOCK)
    scales = (blocks.abs().amax(dim=-1) / E4M3_MAX).clamp(min=_FLOOR)
    if ue8m0:
        scales = power_of_two(scales)
    values = (blocks / scales.unsqueeze(-1)).clamp(-E4M3_MAX, E4M3_MAX)
    return values.to(torch.float8_e4m3fn).reshape(x.shape), scales


def run(
    x: Tensor,  # [..., K] bf16, or e4m3 with x_scale [M, K/128]
    weights: BlockWeights,
    *,
    config: Any = None,
    x_scale: Tensor | None = None,
    out_dtype: dtype | None = None,
) -> Tensor:
    """Return [..., N] bf16. Raises UsageError for another output dtype."""
    import torch

    if out_dtype not in (None, torch.bfloat16):
        raise UsageError(f"DeepGEMM writes bfloat16, not {out_dtype}: use another backend.")
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    if x.dtype == torch.float8_e4m3fn:
        if x_scale is None:
            raise UsageError("x in FP8 needs x_scale, fp32 [M, K/128].")
        operand = (rows, x_scale)
    else:
        operand = quantize(rows, weights.ue8m0)
    n = weights.w.shape[0]
    out = torch.empty(rows.shape[0], n, dtype=torch.bfloat16, device=x.device)
    deep_gemm().fp8_gemm_nt(operand, (weights.w, weights.w_scale), out, disable_ue8m0_cast=not weights.ue8m0)
    return out.reshape(*x.shape[:-1], n)
