"""kernelmux's own fused MoE kernels on a stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends.triton import fused_moe, moe_launch
from ..backends.triton.moe_rules import direct, most_blocks
from ..backends.triton.moe_variant import FUSED
from ..contracts.fused_moe_math import reference
from ..contracts.moe_shape import MoeShape
from ..device import Device
from ..tuning_configs.table import MoeConfig
from ..tuning_configs.tile import Tile
from .subject import WIDEST_M, Routing, Workspace, worst_row


class FusedSubject:
    """`Subject` of the fused kernels: the activation in the first GEMM, unquantized."""

    def __init__(self, shape: MoeShape, place: torch.device):
        self.shape, self.variant = shape, FUSED
        self.space = Workspace(place, getattr(torch, shape.dtype))
        self.weights = (
            [self.space.draw(shape.E, shape.up_n, shape.K, scale=shape.K**-0.5)],
            [self.space.draw(shape.E, shape.K, shape.N, scale=shape.N**-0.5)],
        )
        self.m = 0
        self._routes: list[Routing] = []
        self._x: list[Tensor] = []
        self._sorted: dict[int, list[moe_launch.Sorted]] = {}
        self._truth: tuple[int, Tensor, Tensor] | None = None

    def begin(self, m: int, routes: Sequence[Routing]) -> None:
        self.m, self._routes, self._sorted = m, list(routes), {}
        self._x = [self.space.draw(m, self.shape.K) for _ in routes]

    def runner(self, side: str, tile: Tile) -> Callable[[int], None]:
        shape, pairs = self.shape, self.m * self.shape.topk
        if direct(shape, self.m):
            run, rows = fused_moe.as_direct(tile), pairs
        else:
            run, rows = tile, most_blocks(pairs, shape.E, tile.block_m) * tile.block_m
        most = max(rows, most_blocks(pairs, shape.E, WIDEST_M) * WIDEST_M)
        self.space.buffer("inner", most, shape.N, fill=self.space.draw)
        self.space.buffer("inner_out", most, shape.N)
        inner, inner_out = (self.space.buffer(name, rows, shape.N) for name in ("inner", "inner_out"))
        pair_out = self.space.buffer("pair_out", pairs, shape.K)
        blocks = self._blocks(tile.block_m)
        w1, w2 = self.weights

        def call(r: int) -> None:
            pair_weights, ids = self._routes[r]
            common: dict[str, Any] = dict(pair_weights=pair_weights, topk_ids=ids, expert_map=None, blocks=blocks[r])
            if side == "up":
                moe_launch.gemm(shape, side, run, self._x[r], w1[r % len(w1)], inner_out, weighted=False, **common)
            else:
                moe_launch.gemm(shape, side, run, inner, w2[r % len(w2)], pair_out, weighted=True, **common)

        return call

    def sorter(self, block_m: int) -> Callable[[int], None] | None:
        if direct(self.shape, self.m):
            return None

        def call(r: int) -> None:
            moe_launch.sort_pairs(self._routes[r][1], self.shape.E, block_m)

        return call

    def error(self, m: int, route: Routing, up: Tile, down: Tile) -> float:
        shape, dtype, place = self.shape, self.space.dtype, self.space.place
        weights, ids = route
        w1, w2 = self.weights[0][0], self.weights[1][0]
        if self._truth is None or self._truth[0] != m:
            x = self.space.draw(m, shape.K)
            self._truth = (m, x, reference(x, w1, w2, weights, ids, shape.activation))
        _, x, truth = self._truth

        def poisoned(rows: int, columns: int) -> Tensor:
            return torch.full((rows, columns), torch.nan, dtype=dtype, device=place)

        out = poisoned(m, shape.K)
        fused_moe.launch(
            shape, x, w1, w2, poisoned(fused_moe.inner_rows(shape, m, up), shape.N),
            poisoned(m * shape.topk, shape.K), out, config=MoeConfig(up, down), pair_weights=weights, topk_ids=ids,
        )  # fmt: skip
        return worst_row(out, truth)

    def peak_tflops(self, device: Device) -> float:
        return device.peak(self.shape.dtype)

    def _blocks(self, block_m: int) -> list[Any]:
        if direct(self.shape, self.m):
            return [None] * len(self._routes)
        if block_m not in self._sorted:
            self._sorted[block_m] = [moe_launch.sort_pairs(ids, self.shape.E, block_m) for _, ids in self._routes]
        return self._sorted[block_m]
