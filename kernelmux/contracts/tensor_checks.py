"""Checks of tensor arguments that several contracts share. Imported only where torch is about to be used."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import BadShape

FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def words(dtypes: tuple[torch.dtype, ...]) -> str:
    """``bfloat16, float16 or float32``."""
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def require_dtype(op: str, name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise BadShape unless the tensor is of one of these dtypes."""
    if tensor.dtype not in dtypes:
        raise BadShape(f"{op}: {name} must be {words(dtypes)}, not {words((tensor.dtype,))}.")


def require_rows(op: str, name: str, tensor: Tensor, last: str = "H") -> None:
    """Raise BadShape unless the tensor is [..., at least 1] with its last dimension contiguous."""
    if tensor.dim() < 1 or tensor.shape[-1] < 1:
        raise BadShape(f"{op} takes {name} [..., {last}] with {last} of at least 1; got {list(tensor.shape)}.")
    require_contiguous_last(op, name, tensor)


def require_contiguous_last(op: str, name: str, tensor: Tensor) -> None:
    """Raise BadShape unless neighbours along the last dimension are neighbours in memory."""
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise BadShape(
            f"{op}: the last dimension of {name} must be contiguous (stride 1, not {tensor.stride(-1)}). "
            f"Pass {name}.contiguous()."
        )


def require_same_device(op: str, name: str, tensor: Tensor, x: Tensor) -> None:
    """Raise BadShape unless both tensors are on one device."""
    if tensor.device != x.device:
        raise BadShape(f"{op}: {name} is on {tensor.device} and x on {x.device}. Move both to one device.")


def require_vector(op: str, name: str, tensor: Tensor, x: Tensor) -> None:
    """Raise BadShape unless the tensor is [H], contiguous, of x's dtype and device, for x [..., H]."""
    if tensor.dim() != 1 or tensor.shape[0] != x.shape[-1]:
        raise BadShape(f"{op}: {name} must be [{x.shape[-1]}], the last size of x; got {list(tensor.shape)}.")
    if tensor.dtype != x.dtype:
        raise BadShape(f"{op}: {name} must have x's dtype, {words((x.dtype,))}, not {words((tensor.dtype,))}.")
    require_contiguous_last(op, name, tensor)
    require_same_device(op, name, tensor, x)


def require_like(op: str, name: str, tensor: Tensor, x: Tensor) -> None:
    """Raise BadShape unless the tensor has x's shape, dtype and device, and a contiguous last dimension."""
    if tensor.shape != x.shape or tensor.dtype != x.dtype:
        raise BadShape(
            f"{op}: {name} must be like x, {list(x.shape)} {words((x.dtype,))}; "
            f"got {list(tensor.shape)} {words((tensor.dtype,))}."
        )
    require_contiguous_last(op, name, tensor)
    require_same_device(op, name, tensor, x)


def row_stride(tensor: Tensor) -> int | None:
    """Elements from one row of [..., H] to the next, counted over all leading dimensions; None where they differ.

    0 for less than two rows, which no kernel steps between.
    """
    stride, rows = 0, 1
    for size, step in zip(reversed(tensor.shape[:-1]), reversed(tensor.stride()[:-1]), strict=True):
        if size == 1:
            continue
        if rows == 1:
            stride = step
        elif step != rows * stride:
            return None
        rows *= size
    return stride if rows > 1 else 0


def require_out(
    op: str, name: str, out: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    """Raise BadShape unless a result of that shape, dtype and device can be written there, row by row at one stride."""
    if out is None:
        return
    if tuple(out.shape) != tuple(shape) or out.dtype != dtype:
        raise BadShape(
            f"{op}: {name} must be {list(shape)} {words((dtype,))}; got {list(out.shape)} {words((out.dtype,))}."
        )
    if out.device != device:
        raise BadShape(f"{op}: {name} is on {out.device} and x on {device}. Move both to one device.")
    if not out.numel() or not shape:
        return
    require_contiguous_last(op, name, out)
    stride = row_stride(out)
    rows = out.numel() // shape[-1]
    if stride is None or (rows > 1 and stride < shape[-1]):
        raise BadShape(
            f"{op}: the rows of {name} must lie at one stride of at least {shape[-1]}, not strides "
            f"{list(out.stride())}. Pass a view of whole rows, or copy the result."
        )
