"""Whether a quantize kernel gives the bytes that tests/nvfp4_scalar.py gives; for every backend and device alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tests import nvfp4_scalar as scalar

ROW = 1024  # values a row; kernels lay out whole rows


def equal(got: Any, want: Any) -> bool:
    """The same bytes in both results."""
    return all(
        tuple(a.shape) == tuple(b.shape) and torch.equal(a.view(torch.uint8), b.view(torch.uint8))
        for a, b in zip(got, want, strict=True)
    )


def assert_same(
    quantize: Callable[..., Any],
    blocks: np.ndarray,
    factor: float,
    device: str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    layout: str = "linear",
) -> np.ndarray:
    """The kernel's bytes on blocks [.., 16] of bf16 values are the other implementation's; returns the scale codes.

    ``dtype`` is what the kernel is given: fp32 holds every bf16 value, for kernels interpreted without bf16.
    """
    rows = -(-len(blocks) * 16 // ROW)
    whole = np.zeros((rows * ROW // 16, 16), dtype=np.float32)
    whole[: len(blocks)] = blocks
    x = torch.from_numpy(whole).to(dtype)
    assert torch.equal(x.float().nan_to_num(nan=7e37), torch.from_numpy(whole).nan_to_num(nan=7e37))
    got = quantize(
        x.view(rows, ROW).to(device), global_scale=torch.tensor([factor], device=device), layout=layout
    )  # fmt: skip
    codes, scales = scalar.quantize(whole, factor)
    packed = torch.from_numpy(scalar.packed(codes)).view(rows, ROW // 2)
    held = torch.from_numpy(scales).view(rows, ROW // 16)
    if layout != "linear":
        from kernelmux.contracts.nvfp4_layouts import swizzle

        held = swizzle(held)
    values, found = (tensor.cpu().view(torch.uint8) for tensor in got)
    assert torch.equal(found, held), _first(found, held, whole, factor, "scale")
    assert torch.equal(values, packed), _first(values, packed, whole, factor, "values")
    return scales[: len(blocks)]


def _first(got: torch.Tensor, want: torch.Tensor, blocks: np.ndarray, factor: float, what: str) -> str:
    if got.shape != want.shape:
        return f"{what} are {list(got.shape)}, not {list(want.shape)}"
    wrong = (got != want).flatten().nonzero().flatten()
    at = int(wrong[0])
    block = at if what == "scale" else at // 8
    said = blocks[block].tolist() if block < len(blocks) else "padding"
    return (
        f"{len(wrong)} {what} bytes differ under {factor:g}; the first, of block {block}, is "
        f"{int(got.flatten()[at])} and not {int(want.flatten()[at])}: {said}"
    )
