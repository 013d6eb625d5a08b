"""nvfp4_quantize through FlashInfer. Its global scale multiplies; the contract's dequantizes."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ...errors import UsageError
from .layouts import flashinfer, scalar

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 16


def fp4_quantize(rows: Tensor, multiplier: Tensor, *, swizzled: bool, backend: str = "cuda") -> tuple[Tensor, Tensor]:
    """[M, K] -> (u8 [M, K/2], e4m3 scales [M, K/16], or in blocks of 128 x 4), for every adapter of the library.

    Raises UsageError below 10.0: FlashInfer's quantizers are compiled to nothing there and return memory that was
    never written, without an error.
    """
    import torch

    if rows.is_cuda:
        _require_units(rows.device.index if rows.device.index is not None else torch.cuda.current_device())
    rows = rows.contiguous()
    if rows.data_ptr() % 16:
        rows = rows.clone()
    values, scales = flashinfer().fp4_quantize(
        rows,
        global_scale=multiplier,  # fp32: FlashInfer once misread bf16 (#3398)
        sf_vec_size=GROUP,
        sf_use_ue8m0=False,
        is_sf_swizzled_layout=swizzled,
        is_sf_8x4_layout=False,
        backend=backend,
        nvfp4_4over6=None,  # else an environment variable decides
    )
    return values, scales.view(torch.float8_e4m3fn)


@lru_cache(maxsize=64)
def _require_units(index: int) -> None:
    import torch

    major, minor = torch.cuda.get_device_capability(index)
    if major < 10:
        raise UsageError(
            f"FlashInfer's fp4_quantize writes nothing on {major}.{minor} and raises no error: it is for 10.0 and "
            "later. Use the triton or torch kernel of nvfp4_quantize there."
        )


def _quantize(
    x: Tensor, global_scale: Any, layout: str, backend: str, out: Tensor | None, scale_out: Tensor | None
) -> tuple[Tensor, Tensor]:
    from ...contracts.nvfp4_checks import check_quantize
    from ...contracts.nvfp4_layouts import scale_shape

    check_quantize(x, global_scale, layout, out, scale_out)
    lead, columns = tuple(x.shape[:-1]), x.shape[-1]
    shape = scale_shape(lead, columns, layout)
    if x.numel():
        rows, multiplier = x.reshape(-1, columns), 1.0 / scalar(global_scale, x)
        values, scales = fp4_quantize(rows, multiplier, swizzled=layout != "linear", backend=backend)
    else:
        import torch

        values, scales = x.new_empty(0, dtype=torch.uint8), x.new_empty(0, dtype=torch.float8_e4m3fn)
    values, scales = values.reshape(*lead, columns // 2), scales.reshape(shape)
    return values if out is None else out.copy_(values), scales if scale_out is None else scale_out.copy_(scales)


def run_jit_cuda(
    x: Tensor,
    weights: None = None,
    *,
    config: Any = None,
    global_scale: Any,
    layout: str = "linear",
    out: Tensor | None = None,
    scale_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x [..., K] -> (packed u8 [..., K/2], e4m3 scales in that layout)."""
    return _quantize(x, global_scale, layout, "cuda", out, scale_out)


def run_cutedsl(
    x: Tensor,
    weights: None = None,
    *,
    config: Any = None,
    global_scale: Any,
    layout: str = "linear",
    out: Tensor | None = None,
    scale_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same by its CuTe DSL kernel."""
    return _quantize(x, global_scale, layout, "cute-dsl", out, scale_out)
