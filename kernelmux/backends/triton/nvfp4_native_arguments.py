"""The arguments of a native NVFP4 launch, in one place for launching and for compiling ahead. Imports no torch."""

from __future__ import annotations

from typing import Any

from .nvfp4_native_rules import SCALE_K, SCALE_ROWS, NativeTile


def native_arguments(
    tile: NativeTile, a: Any, a_scales: Any, b: Any, b_scales: Any, alpha: Any, out: Any,
    *, m: int, n: int, k: int, stride_out: int,
) -> tuple[tuple[Any, ...], dict[str, Any], tuple[int, int]]:  # fmt: skip
    """Positional and keyword arguments and the grid of one ``nvfp4_native_gemm``."""
    if tile.use_tma:
        from triton.tools.tensor_descriptor import TensorDescriptor

        def values(of: Any, rows: int, block: int) -> Any:
            return TensorDescriptor(of, [rows, k // 2], [k // 2, 1], [block, tile.block_k // 2])

        def scales(of: Any, rows: int, block: int) -> Any:
            blocks, depth = -(-rows // SCALE_ROWS), -(-k // SCALE_K)
            return TensorDescriptor(
                of, [1, blocks, depth, 2, 256], [blocks * depth * 512, depth * 512, 512, 256, 1],
                [1, block // SCALE_ROWS, tile.block_k // SCALE_K, 2, 256],
            )  # fmt: skip

        a_scales, b_scales = scales(a_scales, m, tile.block_m), scales(b_scales, n, tile.block_n)
        a, b = values(a, m, tile.block_m), values(b, n, tile.block_n)
    args = (a, a_scales, b, b_scales, alpha, out, m, n, k, stride_out)
    kwargs = dict(
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, GROUP_M=tile.group_m,
        PARTS=tile.split > 1, EVEN_K=k % tile.block_k == 0, USE_TMA=tile.use_tma, STAGES=tile.stages,
        num_warps=tile.warps,
    )  # fmt: skip
    tiles = -(-m // tile.block_m) * -(-n // tile.block_n)
    return args, kwargs, (tiles, tile.split)
