"""A small tuning run as ``kernelmux tune --json`` prints it."""

from __future__ import annotations

import copy
from typing import Any

TILE = {
    "BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1, "num_warps": 4, "num_stages": 4,
}  # fmt: skip
OTHER = {**TILE, "GROUP_SIZE_M": 8, "num_stages": 3}
WIDE = {**TILE, "BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 256, "num_warps": 8, "USE_TMA": True}


def line(m: int, tile: dict[str, Any], us: float | None, default_us: float | None, half: float = 0.5) -> dict[str, Any]:
    return {
        "m": m, "up": tile, "down": tile, "us": us, "up_us": us and us * 0.6, "down_us": us and us * 0.4,
        "align_us": None if us is None else 2.5, "interval_us": None if us is None else [us - half, us + half],
        "default": {"up": TILE, "down": TILE}, "default_us": default_us, "gain": None, "ties": 3, "from_m": None,
    }  # fmt: skip


MEASURED: dict[str, Any] = {
    "shape": {"E": 128, "N": 384, "K": 2048, "topk": 8, "activation": "silu", "dtype": "bfloat16"},
    "device": "h200",
    "config_source": "measured",
    "effort": "full",
    "paths": ["build/triton_3_6_0/E=128,N=384,device_name=NVIDIA_H200.json"],
    "table": [
        line(1, OTHER, 20.0, 25.0),
        line(8, OTHER, 60.0, 60.5),
        line(64, TILE, 140.0, 140.0),
        line(1024, WIDE, 200.0, 190.0),
    ],
    "seconds": {"compile": 20.0, "race": 50.0, "total": 100.0},
    "discards": {
        "up": {"more shared memory than a block may have": 308, "M=64: behind the first 128 of the order": 43},
        "down": {"more shared memory than a block may have": 192, "M=1024: behind the first 128 of the order": 1112},
    },
    "failures": ["up 16x64x128 g1 w4 s4: crash: illegal memory access (first at M=8)"],
    "notes": ["M=1024: the budget allowed 1 of 3 rungs."],
    "counts": {"measured": 6753, "recalled": 0, "compiled": 1598},
    "conditions": {
        "before": {"sm_clock_mhz": "1980", "throttle": "0x0"}, "after": {"sm_clock_mhz": "1755", "throttle": "0x24"},
    },
    "fingerprint": {"driver": "580.1", "triton": "3.6.0", "torch": "2.11.0", "kernel": "caf429aedcc1a603"},
}  # fmt: skip


def measured() -> dict[str, Any]:
    return copy.deepcopy(MEASURED)


def predicted() -> dict[str, Any]:
    tuned = {**measured(), "config_source": "predicted", "align_us": {}, "conditions": {}, "failures": [], "notes": []}
    tuned["table"] = [line(m, OTHER, None, None) for m in (1, 64)]
    return tuned
