"""Where the block scales of NVFP4 lie: row by row, or in the order in which tensor cores of 10.x and 12.x read them.

``linear``: [..., K/16], the scale of row r and block c at ``r * K/16 + c``.

``swizzled_128x4``: [rows up to 128, K/16 up to 4], all leading dimensions counted as rows. Tiles of 128 rows and 4
columns of 512 bytes follow each other along K, then along the rows; the scale of (r, c) lies at
``(r//128 * tiles + c//4) * 512 + r%32 * 16 + r%128//32 * 4 + c%4`` with ``tiles`` = columns / 4 rounded up. What was
padded is zero.

Imported only where torch is about to be used.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .nvfp4 import GROUP

ROWS, COLUMNS = 128, 4  # of a tile of swizzled scales


def scale_shape(lead: tuple[int, ...], k: int, layout: str) -> tuple[int, ...]:
    """The shape of the block scales of values [*lead, k] in this layout."""
    columns = -(-k // GROUP)
    if layout == "linear":
        return (*lead, columns)
    return padded(math.prod(lead), columns)


def padded(rows: int, columns: int) -> tuple[int, int]:
    """What [rows, columns] becomes in whole tiles."""
    return -(-rows // ROWS) * ROWS, -(-columns // COLUMNS) * COLUMNS


def swizzle(scales: Tensor) -> Tensor:
    """Linear scales [..., rows, columns] of one byte -> [..., rows up to 128, columns up to 4], padded with zeros.

    Each matrix of the leading dimensions is swizzled by itself.
    """
    *lead, rows, columns = scales.shape
    rows_up, columns_up = padded(rows, columns)
    held = scales.view(torch.uint8)
    if (rows, columns) != (rows_up, columns_up):
        whole = held.new_zeros(*lead, rows_up, columns_up)
        whole[..., :rows, :columns] = held
        held = whole
    split = held.reshape(math.prod(lead), rows_up // ROWS, 4, 32, columns_up // COLUMNS, COLUMNS)
    return split.permute(0, 1, 4, 3, 2, 5).reshape(*lead, rows_up, columns_up).view(scales.dtype)


def unswizzle(scales: Tensor, rows: int, columns: int) -> Tensor:
    """Linear scales [..., rows, columns] of swizzled ones [..., rows up to 128, columns up to 4], contiguous."""
    lead = scales.shape[:-2]
    rows_up, columns_up = padded(rows, columns)
    split = scales.reshape(*lead, rows_up, columns_up).view(torch.uint8)
    split = split.reshape(math.prod(lead), rows_up // ROWS, columns_up // COLUMNS, 32, 4, COLUMNS)
    whole = split.permute(0, 1, 4, 3, 2, 5).reshape(*lead, rows_up, columns_up)
    return whole[..., :rows, :columns].contiguous().view(scales.dtype)


def laid_out(scales: Tensor, layout: str) -> Tensor:
    """Linear scales [..., columns] in this layout; new memory unless they are linear already."""
    if layout == "linear":
        return scales
    return swizzle(scales.reshape(-1, scales.shape[-1]))


def linear(scales: Tensor, lead: tuple[int, ...], k: int, layout: str) -> Tensor:
    """The scales of values [*lead, k], [*lead, k/16], out of this layout."""
    columns = k // GROUP
    if layout == "linear":
        return scales
    rows = math.prod(lead)
    return unswizzle(scales, rows, columns).reshape(*lead, columns)
