"""nvfp4_gemm for few tokens in CUDA C++ (csrc/nvfp4_gemv.cu), on weights prepared as the Triton kernel wants them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ...errors import BadShape, UsageError
from ..triton import nvfp4_weight_only
from ..triton.nvfp4_configs import few_at
from ..triton.nvfp4_planes import PlanesWeights, prepare
from . import driver, launch
from .nvfp4_gemv_rules import ENTRY, MOST_TOKENS, SOURCE, GemvTile, candidates, defines, fault, fitted, heuristic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from ...device import Device
    from ..compile_job import CompileJob

__all__ = ["MOST_TOKENS", "GemvTile", "candidates", "compile_few", "prepare", "run", "run_any", "takes"]

_DTYPES = (torch.bfloat16, torch.float16)
COMMON = ((4096, 4096), (14336, 4096), (4096, 14336), (10240, 5120), (28672, 4096))
_launchers: dict[Any, tuple[int, Callable[..., None]]] = {}


def takes(m: int, n: int, k: int, index: int) -> bool:
    """Whether this kernel can run so many tokens on that GPU."""
    return m <= MOST_TOKENS and heuristic(m, n, k, 1, driver.capability(index)) is not None


def run(
    x: Tensor,  # [..., K] bf16 or fp16, at most 32 rows
    weights: PlanesWeights,
    *,
    config: Any = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Return [..., N] in out_dtype or x's dtype. Two calls with the same operands agree to the bit."""
    if x.shape[-1] != weights.k or x.dtype not in _DTYPES:
        raise BadShape(f"nvfp4_gemm: these weights take x [..., {weights.k}] of bf16 or fp16; got {list(x.shape)}.")
    if x.device != weights.words.device:
        raise BadShape(f"nvfp4_gemm: x is on {x.device} but the weights are on {weights.words.device}.")
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    if rows.stride(1) != 1 or (rows.stride(0) % 8 and rows.shape[0] > 1) or rows.data_ptr() % 16:
        rows = rows.contiguous()
    m = rows.shape[0]
    out = torch.empty(m, weights.n, dtype=out_dtype or x.dtype, device=x.device)
    if m:
        _launch(rows, weights, out, config)
    return out.reshape(*x.shape[:-1], weights.n)


def run_any(x: Tensor, weights: PlanesWeights, *, config: Any = None, out_dtype: torch.dtype | None = None) -> Tensor:
    """x of any number of rows: few here, more by the Triton kernel. ``config`` is either's launch.

    One that was chosen for other sizes is made to fit these; where it cannot be, the sizes' own is taken.
    """
    m = x.numel() // x.shape[-1] if x.shape[-1] else 0
    tile = config.at(m) if hasattr(config, "at") else config
    if not x.is_cuda:
        return nvfp4_weight_only.run(x, weights, config=tile, out_dtype=out_dtype)
    index = x.device.index if x.device.index is not None else torch.cuda.current_device()
    if isinstance(tile, GemvTile):
        tile = fitted(tile, weights.k)
        tile = tile if fault(tile, m, weights.k, driver.capability(index)) is None else None
    if tile is None and 0 < m <= MOST_TOKENS:
        sms = torch.cuda.get_device_properties(index).multi_processor_count
        tile = few_at(m, weights.n, weights.k, sms, driver.capability(index))
    if isinstance(tile, GemvTile):
        return run(x, weights, config=tile, out_dtype=out_dtype)
    return nvfp4_weight_only.run(x, weights, config=tile, out_dtype=out_dtype)


def compile_few(device: Device, dtype: str, shape: Mapping[str, Any]) -> Iterator[CompileJob]:
    """What calls of 1, 16 and 32 tokens (or of ``shape``'s M) need of a compiler; of common sizes where N, K miss."""
    from . import cache

    if device.capability is None:
        return
    sizes = ((shape["N"], shape["K"]),) if "N" in shape and "K" in shape else COMMON
    counts = shape.get("M", (1, 16, MOST_TOKENS))
    seen = set()
    for n, k in sizes:
        for m in (counts,) if isinstance(counts, int) else counts:
            tile = few_at(m, n, k, device.sm_count, device.capability)
            if tile is not None:
                seen.add(defines(tile, m, dtype, dtype))
    for given in sorted(seen):
        yield cache.job(SOURCE, ENTRY, dict(given), device.capability)


def _launch(x: Tensor, weights: PlanesWeights, out: Tensor, tile: GemvTile | None) -> None:
    m = x.shape[0]
    index = x.device.index if x.device.index is not None else torch.cuda.current_device()
    key = (m, weights.n, weights.k, x.dtype, out.dtype, index, tile)
    found = _launchers.get(key)
    if found is None:
        found = _launchers[key] = _made(m, weights.n, weights.k, x.dtype, out.dtype, index, tile)
    grid, call = found
    call(
        grid, launch.stream_getter()(index), x.data_ptr(), weights.words.data_ptr(), weights.scales.data_ptr(),
        weights.factor.data_ptr(), out.data_ptr(), m, weights.n, weights.k, weights.words.shape[1],
        x.stride(0), out.stride(0),
    )  # fmt: skip


def _made(
    m: int, n: int, k: int, dtype: torch.dtype, out_dtype: torch.dtype, index: int, tile: GemvTile | None
) -> tuple[int, Callable[..., None]]:
    capability = driver.capability(index)
    if tile is None:
        tile = heuristic(m, n, k, torch.cuda.get_device_properties(index).multi_processor_count, capability)
    why = "more than it takes" if tile is None else fault(tile, m, k, capability)
    if tile is None or why is not None:
        raise UsageError(f"nvfp4_gemm in CUDA C++ cannot run M={m} N={n} K={k} here: {why}.")
    names = (str(dtype).removeprefix("torch."), str(out_dtype).removeprefix("torch."))
    function = launch.function(SOURCE, ENTRY, defines(tile, m, *names), index)
    launcher = launch.Launcher(function, "PPPPPiiiiqq", block=tile.warps * 32, shared=tile.shared_bytes(m, k))
    return tile.grid(n), launcher.call
