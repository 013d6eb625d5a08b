"""nvfp4_quantize through FlashInfer. Its global scale multiplies; the contract's dequantizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import UsageError
from .layouts import flashinfer, scalar

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 16


def _quantize(x: Tensor, global_scale: Any, layout: str, backend: str) -> tuple[Tensor, Tensor]:
    import torch

    if layout != "linear":
        raise UsageError(f"nvfp4_quantize writes scales in layout 'linear', not {layout!r}.")
    values, scales = flashinfer().fp4_quantize(
        x.reshape(-1, x.shape[-1]).contiguous(),
        global_scale=1.0 / scalar(global_scale, x),
        sf_vec_size=GROUP,
        sf_use_ue8m0=False,
        is_sf_swizzled_layout=False,
        backend=backend,
        nvfp4_4over6=None,  # else an environment variable decides
    )
    lead, columns = x.shape[:-1], x.shape[-1]
    return values.reshape(*lead, columns // 2), scales.view(torch.float8_e4m3fn).reshape(*lead, columns // GROUP)


def run_jit_cuda(
    x: Tensor, weights: None = None, *, config: Any = None, global_scale: Any, layout: str = "linear"
) -> tuple[Tensor, Tensor]:
    """x [..., K] -> (packed u8 [..., K/2], scales e4m3 [..., K/16])."""
    return _quantize(x, global_scale, layout, "cuda")


def run_cutedsl(
    x: Tensor, weights: None = None, *, config: Any = None, global_scale: Any, layout: str = "linear"
) -> tuple[Tensor, Tensor]:
    """The same by its CuTe DSL kernel."""
    return _quantize(x, global_scale, layout, "cute-dsl")
