"""Plain MoE kernels on a stand: ours of an engine's structure, or the engine's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ..backends.triton import plain_launch, plain_moe
from ..backends.triton.moe_launch import sort_pairs
from ..backends.triton.moe_rules import most_blocks
from ..backends.triton.moe_variant import MoeVariant
from ..contracts.moe_quant_math import reference_quantized, storage
from ..contracts.moe_shape import MoeShape
from ..device import Device
from ..errors import UsageError
from ..tuning_configs.table import MoeConfig
from ..tuning_configs.tile import Tile
from .subject import WIDEST_M, Routing, Workspace, worst_row


class PlainSubject:
    """`Subject` of the plain kernels of ``variant``.

    Weights of 8 bits are drawn as stored, with scales that differ from place to place, so that a scale misread shows
    in `error`. The sort that is timed is ours; an engine's own kernel reads its own form of it, made beforehand.
    """

    def __init__(self, shape: MoeShape, variant: MoeVariant, device: Device, place: torch.device):
        why = variant.quant.refusal(shape)
        if why is not None:
            raise UsageError(f"{variant.brief()} cannot run {shape.brief()}: {why}.")
        self.shape, self.variant, self.capability = shape, variant, device.capability
        self.space = Workspace(place, getattr(torch, shape.dtype))
        w1, self.w1_scale = self._weight(shape.up_n, shape.K)
        w2, self.w2_scale = self._weight(shape.K, shape.N)
        self.weights = ([w1], [w2])
        self.m = 0
        self._routes: list[Routing] = []
        self._x: list[tuple[Tensor, Tensor | None]] = []
        self._arranged: dict[int, list[plain_moe.Routes]] = {}
        self._truth: tuple[int, Tensor, Tensor] | None = None

    def begin(self, m: int, routes: Sequence[Routing]) -> None:
        self.m, self._routes, self._arranged = m, list(routes), {}
        self._x = [self._quantized(self.space.draw(m, self.shape.K)) for _ in routes]

    def runner(self, side: str, tile: Tile) -> Callable[[int], None]:
        why = self.variant.refusal(self.shape, side, tile, self.capability)
        if why is not None:
            raise UsageError(f"{tile.short()} ({side}) does not run in {self.variant.brief()}: {why}.")
        shape, variant, pairs = self.shape, self.variant, self.m * self.shape.topk
        routes = self._arrange(tile.block_m)
        gemm = partial(plain_moe.gemm, variant, shape, side, tile, self.capability)
        w1, w2 = self.weights
        if side == "up":
            out = self.space.buffer("hidden", pairs, shape.up_n)

            def up(r: int) -> None:
                gemm(routes[r], *self._x[r], w1[r % len(w1)], self.w1_scale, out, weighted=False)

            return up
        sorted_inner = variant.structure == "sglang" and tile.use_tma
        rows = most_blocks(pairs, shape.E, tile.block_m) * tile.block_m if sorted_inner else pairs
        inner, scale = self._inner(rows, max(rows, most_blocks(pairs, shape.E, WIDEST_M) * WIDEST_M))
        pair_out = self.space.buffer("pair_out", pairs, shape.K)

        def down(r: int) -> None:
            gemm(
                routes[r], inner, scale, w2[r % len(w2)], self.w2_scale, pair_out,
                weighted=True, sorted_inner=sorted_inner,
            )  # fmt: skip

        return down

    def sorter(self, block_m: int) -> Callable[[int], None] | None:
        if self.variant.direct(self.shape, self.m):
            return None

        def call(r: int) -> None:
            sort_pairs(self._routes[r][1], self.shape.E, block_m)

        return call

    def error(self, m: int, route: Routing, up: Tile, down: Tile) -> float:
        weights, ids = route
        layer = plain_moe.PlainWeights(self.weights[0][0], self.weights[1][0], self.w1_scale, self.w2_scale)
        if self._truth is None or self._truth[0] != m:
            x = self.space.draw(m, self.shape.K)
            truth = reference_quantized(
                x, layer.w1, layer.w2, weights, ids, self.variant.quant, w1_scale=layer.w1_scale,
                w2_scale=layer.w2_scale, activation=self.shape.activation,
            )  # fmt: skip
            self._truth = (m, x, truth)
        _, x, truth = self._truth
        out = plain_moe.run(
            self.variant, x, layer, config=MoeConfig(up, down), topk_weights=weights, topk_ids=ids,
            activation=self.shape.activation, capability=self.capability, allocate=_poisoned,
        )  # fmt: skip
        return worst_row(out, truth)

    def peak_tflops(self, device: Device) -> float:
        return device.peak(self.variant.quant.peak_dtype or self.shape.dtype)

    def _weight(self, rows: int, depth: int) -> tuple[Tensor, Tensor | None]:
        experts, quant = self.shape.E, self.variant.quant
        size, dtype = quant.scale_shape(experts, rows, depth), storage(quant)
        if size is None or dtype is None:
            return self.space.draw(experts, rows, depth, scale=depth**-0.5), None
        unit = depth**-0.5 / (64.0 if quant.fp8 else 32.0)
        return (
            self.space.eight_bits(experts, rows, depth, dtype=dtype),
            self.space.between(*size, low=0.5 * unit, high=1.5 * unit),
        )

    def _quantized(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return plain_launch.quantize(x, self.variant.quant) if self.variant.quant.quantizes_activations else (x, None)

    def _inner(self, rows: int, most: int) -> tuple[Tensor, Tensor | None]:
        """The down GEMM's A and its scales: ``rows`` of buffers that hold ``most``."""
        quant, depth, space = self.variant.quant, self.shape.N, self.space
        dtype = storage(quant)
        if not quant.quantizes_activations or dtype is None:
            space.buffer("inner", most, depth, fill=space.draw)
            return space.buffer("inner", rows, depth), None
        space.buffer("inner", most, depth, fill=lambda count: space.eight_bits(count, dtype=dtype))
        inner = space.buffer("inner", rows, depth)
        if quant.block_shape is None and not quant.per_channel:
            return inner, space.buffer("inner_scale", 1, 1, fill=_scales(space)).view(1)
        steps = depth // quant.block_shape[1] if quant.block_shape is not None else 1
        space.buffer("inner_scale", most, steps, fill=_scales(space))
        return inner, space.buffer("inner_scale", rows, steps)

    def _arrange(self, block_m: int) -> list[plain_moe.Routes]:
        if block_m not in self._arranged:
            self._arranged[block_m] = [
                plain_moe.arrange(self.variant, self.shape, weights, ids, block_m) for weights, ids in self._routes
            ]
        return self._arranged[block_m]


def _scales(space: Workspace) -> Callable[[int], Tensor]:
    return lambda count: space.between(count, low=0.005, high=0.015)


def _poisoned(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full(size, torch.nan, dtype=dtype, device=device)
