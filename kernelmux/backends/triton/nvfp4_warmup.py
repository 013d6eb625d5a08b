"""Warming the NVFP4 kernels: each token count once on zeros, so that no later call compiles or loads anything."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ...contracts.nvfp4 import GROUP
from ...errors import DeviceNotFound
from . import nvfp4_native, nvfp4_quantize, nvfp4_weight_only
from .nvfp4_planes import ROWS, PlanesWeights
from .nvfp4_shape import CHUNK, WORDS


def _place(selection: Any) -> tuple[torch.device, torch.dtype, int, int]:
    if not torch.cuda.is_available():
        raise DeviceNotFound(
            f"{selection.kernel} can be warmed only on a GPU, and torch sees none here. Warm it where it will run."
        )
    size = selection.problem.shape
    dtype = getattr(torch, selection.problem.dtype or "bfloat16")
    return torch.device("cuda", selection.device.index or 0), dtype, size.get("N", 0), size["K"]


def _planes(device: torch.device, n: int, k: int) -> PlanesWeights:
    chunks, rows = -(-k // CHUNK), -(-n // ROWS) * ROWS
    return PlanesWeights(
        torch.zeros(chunks, rows, WORDS, dtype=torch.int16, device=device),
        torch.zeros(chunks, rows, WORDS // GROUP, dtype=torch.int32, device=device),
        torch.ones(1, device=device), n, k,
    )  # fmt: skip


def weight_only(selection: Any, ms: Iterable[int]) -> None:
    """Raises DeviceNotFound where torch sees no GPU, as the others do."""
    _run(nvfp4_weight_only.run, selection, ms)


def few_tokens(selection: Any, ms: Iterable[int]) -> None:
    from ..jit_cuda import nvfp4_gemv

    _run(nvfp4_gemv.run_any, selection, ms)


def _run(run: Any, selection: Any, ms: Iterable[int]) -> None:
    device, dtype, n, k = _place(selection)
    weights = _planes(device, n, k)
    for m in ms:
        run(torch.zeros(m, k, dtype=dtype, device=device), weights, config=selection.config_at(m))
    torch.cuda.synchronize(device)


def native(selection: Any, ms: Iterable[int]) -> None:
    device, dtype, n, k = _place(selection)
    one = torch.ones(1, device=device)
    weights = nvfp4_native.prepare(
        w=torch.zeros(n, k // 2, dtype=torch.uint8, device=device),
        w_scale=torch.zeros(n, k // GROUP, device=device).to(torch.float8_e4m3fn),
        w_global_scale=one, input_scale=one,
    )  # fmt: skip
    for m in ms:
        nvfp4_native.run(torch.zeros(m, k, dtype=dtype, device=device), weights, config=selection.config_at(m))
    torch.cuda.synchronize(device)


def quantize(selection: Any, ms: Iterable[int]) -> None:
    device, dtype, _, k = _place(selection)
    one = torch.ones(1, device=device)
    for m in ms:
        nvfp4_quantize.quantize(torch.zeros(m, k, dtype=dtype, device=device), global_scale=one)
    torch.cuda.synchronize(device)
