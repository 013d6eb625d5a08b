"""nvfp4_gemm in Triton where tensor cores lack NVFP4 (and for W4A16 anywhere): the weight is decoded on its way.

A scale times a value is exact in bf16 and in fp16, so the product of a decoded weight and x differs from the reference
only in the order of an fp32 sum and in the rounding of the output.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from ...errors import BadShape, UsageError
from . import jit_guard
from . import nvfp4_weight_only_kernels as kernels
from .nvfp4_arguments import gemm_arguments
from .nvfp4_configs import tile_at
from .nvfp4_planes import PlanesWeights, prepare
from .nvfp4_rules import Nvfp4Tile, fitted, most_split
from .nvfp4_shape import CHUNK, WORDS

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PlanesWeights", "decode_rows", "prepare", "run"]

_DTYPES = (torch.bfloat16, torch.float16)
_OUTPUTS = (torch.bfloat16, torch.float16, torch.float32)
SUM_BLOCK = 1024
DECODE_ROWS = 32


@lru_cache(maxsize=64)
def _facts(index: int) -> tuple[int, tuple[int, int]]:
    """(SMs, capability) of a live GPU."""
    found = torch.cuda.get_device_properties(index)
    return found.multi_processor_count, (found.major, found.minor)


def run(
    x: Tensor,  # [..., K] bf16 or fp16
    weights: PlanesWeights,
    *,
    config: Any = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Return [..., N] in out_dtype or x's dtype. Two calls with the same operands agree to the bit.

    A ``config`` that was chosen for a larger K is made to fit this one.
    """
    dtype = out_dtype or x.dtype
    if x.dim() < 1 or x.shape[-1] != weights.k:
        raise BadShape(f"nvfp4_gemm: these weights take x [..., {weights.k}]; got {list(x.shape)}.")
    if x.dtype not in _DTYPES or dtype not in _OUTPUTS:
        raise BadShape(f"nvfp4_gemm: x must be bfloat16 or float16, out_dtype a float; got {x.dtype} and {dtype}.")
    if x.device != weights.words.device:
        raise BadShape(f"nvfp4_gemm: x is on {x.device} but the weights are on {weights.words.device}.")
    rows = _rows(x)
    out = torch.empty(rows.shape[0], weights.n, dtype=dtype, device=x.device)
    if rows.shape[0]:
        m = rows.shape[0]
        tile = config.at(m) if hasattr(config, "at") else config
        if tile is None:
            tile = tile_at(m, weights.n, weights.k, *_facts(x.device.index or 0))
        launch(rows, weights, out, fitted(tile, weights.k))
    return out.reshape(*x.shape[:-1], weights.n)


def _rows(x: Tensor) -> Tensor:
    """x as [M, K]: rows contiguous, each at a multiple of 16 bytes."""
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    if rows.stride(1) != 1 or (rows.stride(0) % 8 and rows.shape[0] > 1) or rows.data_ptr() % 16:
        rows = rows.contiguous()
    return rows


def launch(x: Tensor, weights: PlanesWeights, out: Tensor, tile: Nvfp4Tile) -> None:
    """Write out [M, N] from x [M, K], both of contiguous rows."""
    jit_guard.install()
    if tile.kind == "decode":
        _decode_and_multiply(x, weights, out, tile.pieces)
        return
    if tile.split > most_split(weights.k):
        raise UsageError(f"{tile.short()} cuts K={weights.k} into {tile.split} parts of {CHUNK}: there are fewer.")
    m, n = out.shape
    parts = torch.empty(tile.split, m, n, dtype=torch.float32, device=x.device) if tile.split > 1 else None
    args, kwargs, grid = gemm_arguments(
        tile, x, weights.words, weights.scales, weights.factor, out if parts is None else parts,
        m=m, n=n, k=weights.k, rows=weights.words.shape[1],
        strides=(x.stride(0), out.stride(0) if parts is None else n),
    )  # fmt: skip
    kernels.nvfp4_weight_only_gemm[grid](*args, **kwargs)
    if parts is not None:
        more = {"launch_pdl": True} if tile.pdl else {}
        kernels.nvfp4_sum_parts[(-(-m * n // SUM_BLOCK),)](
            parts, weights.factor, out, m * n, n, out.stride(0),
            SPLIT=tile.split, BLOCK=SUM_BLOCK, PDL=tile.pdl, num_warps=4, **more,
        )  # fmt: skip


def decode_rows(weights: PlanesWeights, out: Tensor, first: int = 0) -> Tensor:
    """out [rows, K] = the weight's rows from ``first`` on, each value rounded once to out's dtype."""
    count = out.shape[0]
    chunks = -(-weights.k // CHUNK)
    kernels.nvfp4_decode[(-(-count // DECODE_ROWS), chunks)](
        weights.words, weights.scales, weights.factor, out, first + count, weights.k, weights.words.shape[1], first,
        out.stride(0), BLOCK_N=DECODE_ROWS, num_warps=4,
    )  # fmt: skip
    return out


def _decode_and_multiply(x: Tensor, weights: PlanesWeights, out: Tensor, pieces: int) -> None:
    n = weights.n
    step = -(-n // pieces)
    step += -step % WORDS
    space = torch.empty(min(step, n), weights.k, dtype=x.dtype, device=x.device)
    for begin in range(0, n, step):
        end = min(n, begin + step)
        part = decode_rows(weights, space[: end - begin], begin)
        into = out[:, begin:end]
        if out.dtype == x.dtype:
            torch.mm(x, part.T, out=into)
        else:
            into.copy_(torch.mm(x, part.T, out_dtype=out.dtype) if out.dtype == torch.float32 else torch.mm(x, part.T))
