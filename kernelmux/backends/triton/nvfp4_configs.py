"""Which launch a weight-only or native NVFP4 GEMM gets at a token count: a measured table's, else a rule's. No torch.

``nvfp4_tiles.json`` holds, for a capability and a shape, the fastest launch of a sweep for some token counts
(benchmarks/bench_nvfp4_gemm.py --sweep writes what ``--write-table`` turns into it). A shape that was not swept takes
the nearest one's, with as many parts of K as bring the same number of blocks.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...registry.value import Value
from ..jit_cuda import nvfp4_gemv_rules as gemv
from ..jit_cuda.nvfp4_gemv_rules import GemvTile
from . import nvfp4_native_rules as native
from .nvfp4_rules import Nvfp4Tile, fitted, heuristic

if TYPE_CHECKING:
    from ...device import Device
    from ...registry import Packages, Problem

TABLE = Path(__file__).parent / "nvfp4_tiles.json"
_SMS = 132


@lru_cache(maxsize=1)
def _table() -> dict[str, dict[tuple[int, int], dict[str, dict[int, Any]]]]:
    """Capability -> (n, k) -> ``triton`` | ``gemv`` -> M -> launch."""
    if not TABLE.exists():
        return {}
    read = json.loads(TABLE.read_text(encoding="utf-8"))
    made = {"triton": Nvfp4Tile, "gemv": GemvTile}
    return {
        capability: {
            (int(shape.split(",")[0]), int(shape.split(",")[1])): {
                kind: {int(m): made[kind](**tile) for m, tile in tiles.items()} for kind, tiles in kinds.items()
            }
            for shape, kinds in shapes.items()
        }
        for capability, shapes in read["launches"].items()
    }


def measured(kind: str, m: int, n: int, k: int, capability: tuple[int, int]) -> Any | None:
    """The table's launch for the least token count that holds ``m``, of the nearest shape; None without a table."""
    shapes = _table().get(f"{capability[0]}.{capability[1]}", {})
    found = {shape: kinds[kind] for shape, kinds in shapes.items() if kinds.get(kind)}
    if not found:
        return None
    near = min(found, key=lambda shape: abs(log(shape[0] / n)) + abs(log(shape[1] / k)))
    counts = sorted(found[near])
    if kind == "gemv" and m > counts[-1]:
        return None
    tile = found[near][min((count for count in counts if count >= m), default=counts[-1])]
    if isinstance(tile, GemvTile):
        return gemv.fitted(tile, k)
    if near == (n, k):
        return tile
    split = max(1, round(tile.split * -(-near[0] // tile.block_n) / -(-n // tile.block_n)))
    return fitted(replace(tile, split=split, pdl=tile.pdl and split > 1), k)


@lru_cache(maxsize=4096)
def tile_at(m: int, n: int, k: int, sms: int, capability: tuple[int, int]) -> Nvfp4Tile:
    """The Triton launch for this size on that GPU."""
    found = measured("triton", m, n, k, capability)
    return found if found is not None else heuristic(m, n, k, sms, capability)


@lru_cache(maxsize=4096)
def few_at(m: int, n: int, k: int, sms: int, capability: tuple[int, int]) -> GemvTile | None:
    """The launch of the CUDA C++ kernel for few tokens; None where the Triton kernel is the one to run."""
    if m > gemv.MOST_TOKENS:
        return None
    found = measured("gemv", m, n, k, capability)
    if found is not None and gemv.fault(found, m, k, capability) is None:
        return found
    if measured("triton", m, n, k, capability) is not None and m > 16:
        return None  # swept, and not the faster one
    return gemv.heuristic(m, n, k, sms, capability)


class Choice(Value):
    """A ConfigChoice for one problem."""

    kind: str  # "triton", "gemv" or "native"
    n: int
    k: int
    sms: int
    capability: tuple[int, int]
    source: str = "heuristic"
    grade: str = "heuristic"
    why: str = "a rule: enough blocks for every multiprocessor; nobody has measured this GPU"
    path: Path | None = None

    def at(self, m: int) -> Any:
        size = (m, self.n, self.k)
        if self.kind == "native":
            return native.heuristic(*size, self.capability, self.sms)
        few = few_at(*size, self.sms, self.capability) if self.kind == "gemv" else None
        return few if few is not None else tile_at(*size, self.sms, self.capability)

    def to_json(self, m: int | None) -> dict[str, Any] | None:
        if m is None:
            return {str(one): self.to_json(one) for one in (1, 16, 64, 256, 1024, 4096)}
        tile = self.at(m)
        return (
            {"warps": tile.warps, "row_tiles": tile.row_tiles, "cluster": tile.cluster}
            if isinstance(tile, GemvTile)
            else tile.to_json()
        )


def _choice(kind: str, device: Device, problem: Problem) -> Choice | None:
    size = problem.shape
    n, k = size.get("N"), size.get("K")
    if device.capability is None or not isinstance(n, int) or not isinstance(k, int):
        return None
    capability = (device.capability.major, device.capability.minor)
    if kind != "native" and f"{capability[0]}.{capability[1]}" in _table():
        exact = (n, k) in _table()[f"{capability[0]}.{capability[1]}"]
        said = "this shape" if exact else "the nearest shape that was swept"
        return Choice(
            kind, n, k, device.sm_count, capability, "measured", "exact" if exact else "family",
            f"a sweep on {capability[0]}.{capability[1]} of {said}", TABLE,
        )  # fmt: skip
    return Choice(kind, n, k, device.sm_count, capability)


def weight_only(device: Device, packages: Packages, problem: Problem) -> Choice | None:
    return _choice("triton", device, problem)


def few_tokens(device: Device, packages: Packages, problem: Problem) -> Choice | None:
    return _choice("gemv", device, problem)


def native_gemm(device: Device, packages: Packages, problem: Problem) -> Choice | None:
    return _choice("native", device, problem)
