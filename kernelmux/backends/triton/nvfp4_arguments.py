"""The arguments of a weight-only NVFP4 launch, built in one place for launching and for compiling ahead. No torch."""

from __future__ import annotations

from typing import Any

from .nvfp4_rules import Nvfp4Tile, most_split
from .nvfp4_shape import CHUNK


def gemm_arguments(
    tile: Nvfp4Tile,
    x: Any,
    words: Any,
    scales: Any,
    factor: Any,
    out: Any,
    *,
    m: int,
    n: int,
    k: int,
    rows: int,
    strides: tuple[int, int],  # x rows, out rows; in elements
) -> tuple[tuple[Any, ...], dict[str, Any], tuple[int, int]]:
    """Positional and keyword arguments and the grid of one ``nvfp4_weight_only_gemm``."""
    args = (x, words, scales, factor, out, m, n, k, rows, most_split(k), *strides)
    kwargs = dict(
        BLOCK_N=tile.block_n, BLOCK_M=tile.block_m, BLOCK_J=tile.block_j, GROUP_M=tile.group_m, PARTS=tile.split > 1,
        EVEN_K=k % CHUNK == 0, FEW=tile.block_m <= 32, PDL=tile.pdl and tile.split > 1,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    tiles = -(-n // tile.block_n) * -(-m // tile.block_m)
    return args, kwargs, (tiles, tile.split)
