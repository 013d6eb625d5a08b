"""Rows as FlashInfer's norms and activations read them: [M, H] at one stride, every row aligned for vector loads."""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def aligned(rows: Tensor, widest: int = 16) -> bool:
    """Whether every row of [M, H] starts where a load may: at a multiple of the widest power of two that divides a row.

    The library chooses its vectors by H alone; a row elsewhere would be a misaligned access. ``widest`` is in bytes.
    """
    size = rows.element_size()
    step = min(widest, gcd(widest, rows.shape[1] * size))
    stride: int = rows.stride(0) * size if rows.shape[0] > 1 else 0
    return rows.data_ptr() % step == 0 and stride % min(16, step) == 0


def readable(x: Tensor, widest: int = 16) -> Tensor:
    """x [..., H] as [M, H]; a copy where its rows lie at several strides or are not aligned."""
    import torch

    rows = x.reshape(-1, x.shape[-1])
    return rows if aligned(rows, widest) else rows.clone(memory_format=torch.contiguous_format)


def vector(weight: Tensor) -> Tensor:
    """The weight [H]; a copy where vector loads cannot start at it."""
    return weight if aligned(weight.unsqueeze(0)) else weight.clone()


def writable(
    out: Tensor | None, rows: Tensor, widest: int = 16, *, dtype: Any = None, width: int | None = None
) -> Tensor:
    """Where to write as many rows, of that dtype and width: ``out`` as [M, H] if it is aligned, else a new tensor."""
    import torch

    if out is not None:
        place = out.view(-1, out.shape[-1])
        if aligned(place, widest):
            return place
    return torch.empty(rows.shape[0], width or rows.shape[1], dtype=dtype or rows.dtype, device=rows.device)


def settle(out: Tensor | None, written: Tensor, shape: tuple[int, ...]) -> Tensor:
    """What the caller gets: ``out``, holding what was written, or that in the caller's shape."""
    if out is None:
        return written.view(shape)
    if out.data_ptr() != written.data_ptr():
        out.copy_(written.view(shape))
    return out
