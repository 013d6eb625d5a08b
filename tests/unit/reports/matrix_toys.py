"""Kernels of relu2 that misbehave, a kernel a mode: announced as those of another package would be."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from functools import partial
from typing import Any

from kernelmux.registry import ANY, Kernel, Numerics, OnCapability

MODES = {
    "right": "ok", "zeros": "wrong", "nan": "wrong", "unwritten": "wrong", "scaled": "wrong", "odd": "wrong",
    "raises": "error", "segfault": "crash", "exit": "crash", "hang": "hang", "noisy": "ok", "slow": "ok",
    "shape": "wrong", "crash at 64": "crash",
}  # fmt: skip
"""Mode -> the status of its cells (of "crash at 64" the second alone)."""


def _run(mode: str, x: Any, weights: Any = None, *, config: Any = None, out: Any = None) -> Any:
    import torch

    mode = os.environ.get("TOY_MODE", mode)
    right = torch.relu(x.float()).square().to(x.dtype)
    if mode == "raises":
        raise RuntimeError("no <kernel> image & co")
    if mode == "segfault":
        ctypes.string_at(0)
    if mode == "exit":
        print("the library gives up", file=sys.stderr, flush=True)
        os._exit(7)
    if mode == "hang":
        time.sleep(600)
    if mode == "crash at 64" and x.shape[0] == 64 and x.shape[-1] > 1000:
        ctypes.string_at(0)
    if mode == "noisy":
        print('{"cell": 0, "result": {"status": "wrong"}}', flush=True)
    if mode == "slow":
        time.sleep(2e-2)
    if mode == "zeros" or (mode == "odd" and x.shape[0] % 2):
        right = torch.zeros_like(right)
    if mode == "nan":
        right = torch.full_like(right, float("nan"))
    if mode == "scaled":
        right = right * 1.1
    if mode == "shape":
        right = right[..., :-1]
    if out is None:
        out = torch.empty_like(x) if mode != "shape" else right.clone()
    if mode != "unwritten":
        out.copy_(right)
    elif out.dim() > 1:
        out[:, : out.shape[1] // 2].copy_(right[:, : out.shape[1] // 2])
    return out


def name(mode: str) -> str:
    return f"toy.relu2[{mode}]"


for _mode in MODES:
    globals()[f"run_{_mode.replace(' ', '_')}"] = partial(_run, _mode)

KERNELS = tuple(
    Kernel(
        name=name(mode),
        op="relu2",
        backend="torch",
        load=f"matrix_toys:run_{mode.replace(' ', '_')}",
        requirements=(OnCapability(ANY),),
        numerics=Numerics(promises=frozenset({"cast_before_mul", "fp32_mul"})),
    )
    for mode in MODES
)
