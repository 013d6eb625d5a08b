"""Weight and scale layouts of FlashInfer's kernels, in plain torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..libraries import module

if TYPE_CHECKING:
    from torch import Tensor

EPILOGUE_TILE_M = 128  # rows of a trtllm-gen epilogue tile; its shuffles depend on it


def flashinfer(part: str = "") -> Any:
    """The library, or one of its modules."""
    return module(f"flashinfer.{part}" if part else "flashinfer", "flashinfer-python>=0.7,<0.8", "FlashInfer's kernels")


def swizzle_128x4(scales: Tensor) -> Tensor:
    """Block scales [..., rows, columns] of one byte -> [..., rows up to 128, columns up to 4] in blocks of 128 x 4."""
    from ...contracts.nvfp4_layouts import swizzle

    return swizzle(scales)


def up_first(rows: Tensor) -> Tensor:
    """[E, 2N, ...] rows [gate; up] -> rows [up; gate], the order of FlashInfer's MoE; contiguous."""
    import torch

    gate, up = rows.chunk(2, dim=1)
    return torch.cat((up, gate), dim=1).contiguous()


def is_gated(w1: Tensor, w2: Tensor) -> bool:
    """Whether w1 [E, 2N or N, ...] holds a gate; w2 is [E, K, N] with as many elements a byte as w1."""
    return int(w1.shape[1]) == 2 * inner_size(w2)


def inner_size(w2: Tensor) -> int:
    """N of w2 [E, K, N], or of packed FP4 [E, K, N/2]."""
    import torch

    return int(w2.shape[2]) * (2 if w2.dtype == torch.uint8 else 1)


def scalar(value: Any, like: Tensor) -> Tensor:
    """A scale as fp32 [1] on the device of ``like``."""
    import torch

    return torch.as_tensor(value, dtype=torch.float32, device=like.device).reshape(-1)[:1].contiguous()
