"""The stand on which fused MoE tiles are timed and checked: lives in the process that owns the GPU.

Method: every tile is captured as a small CUDA graph of several calls, each with another routing (and, where the
routings alone would leave the weights in L2, another copy of the weights). Graphs of all tiles are replayed in turn,
in an order drawn anew each round, so that drift of clocks and neighbours hits all alike. One sample is one replay,
between two events, divided by the calls in it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backends.triton import fused_moe, moe_launch
from ..backends.triton.moe_rules import direct, most_blocks
from ..contracts.fused_moe import experts_hit
from ..contracts.fused_moe_math import reference, routing
from ..contracts.moe_shape import MoeShape
from ..device import Device
from ..tuning_configs.table import MoeConfig
from ..tuning_configs.tile import Tile

MOST_CALLS = 8
REPLAY_US = 1500.0  # a replay about this long drowns the 1-2 us between an event and its graph
L2_TURNS = 3.0  # a replay must touch this many times the L2, or its end finds its beginning cached
HOPELESS = 3.0  # a tile this much slower than the leader after one sample is not sampled again
IDLE_S = 0.5  # after an idle time of this length the clocks are brought up again first
WIDEST_M = 256


@dataclass(slots=True)
class _Inputs:
    """What all tiles of one M share."""

    m: int
    calls: int
    x: list[Tensor]
    pair_weights: list[Tensor]
    topk_ids: list[Tensor]
    sorted: dict[int, list[moe_launch.Sorted]]
    graphs: dict[tuple[str, Tile], torch.cuda.CUDAGraph]
    truth: tuple[Tensor, Tensor, Tensor, Tensor] | None = None


class Stand:
    """Weights, buffers and graphs of one shape on one GPU."""

    def __init__(self, shape: MoeShape, device: Device):
        self.shape, self.device = shape, device
        self.place = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(self.place)
        self.dtype: torch.dtype = getattr(torch, shape.dtype)
        generator = torch.Generator(device=self.place).manual_seed(1)

        def draw(*size: int, scale: float) -> Tensor:
            values = torch.empty(size, dtype=self.dtype, device=self.place)
            return values.normal_(0.0, scale, generator=generator)

        self._draw = draw
        self.w1 = [draw(shape.E, shape.up_n, shape.K, scale=shape.K**-0.5)]
        self.w2 = [draw(shape.E, shape.K, shape.N, scale=shape.N**-0.5)]
        self._inputs: _Inputs | None = None
        self._buffers: dict[str, Tensor] = {}
        self._worked = 0.0

    def time(self, m: int, side: str, tiles: Sequence[Tile], samples: int, at: Callable[[int], None]) -> list[Any]:
        """For each tile its samples in microseconds, or the exception that its launch raised.

        ``at(i)`` is called before tile i is built and ``at(-1)`` before replays begin, so that a parent knows where a
        hang or a crash happened. A tile far behind after one sample gets no further ones.
        """
        inputs = self._inputs_for(m)
        answers: list[Any] = [None] * len(tiles)
        graphs: dict[int, torch.cuda.CUDAGraph] = {}
        for i, tile in enumerate(tiles):
            at(i)
            try:
                graphs[i] = self._graph(inputs, side, tile)
            except Exception as error:  # whatever a compiler or launcher raises is a fact about this tile
                torch.cuda.synchronize()  # raises in turn if the context is gone
                answers[i] = error
        at(-1)
        if graphs:
            for i, us in self._replay(graphs, samples, inputs.calls, seed=f"{m}/{side}/{samples}").items():
                answers[i] = us
        return answers

    def align(self, m: int, block_ms: Sequence[int]) -> dict[int, float]:
        """Median microseconds of the sort for each BLOCK_SIZE_M; 0 where a call of ``m`` tokens does not sort."""
        if direct(self.shape, m):
            return dict.fromkeys(block_ms, 0.0)
        inputs = self._inputs_for(m)
        graphs = {}
        for block_m in block_ms:

            def calls(block_m: int = block_m) -> None:
                for ids in inputs.topk_ids:
                    moe_launch.sort_pairs(ids, self.shape.E, block_m)

            graphs[block_m] = self._capture(calls)
        times = self._replay(graphs, 15, inputs.calls, seed=f"{m}/align")
        return {block_m: sorted(us)[len(us) // 2] for block_m, us in times.items()}

    def check(self, m: int, pairs: Sequence[tuple[Tile, Tile]], at: Callable[[int], None]) -> list[Any]:
        """For each (up, down) pair the relative L2 error of the worst row, or the exception it raised.

        Uneven routing, one expert without a token, every buffer poisoned with NaN beforehand.
        """
        inputs = self._inputs_for(m)
        shape = self.shape
        if inputs.truth is None:
            x = self._draw(m, shape.K, scale=1.0)
            weights, ids = routing(m, shape.E, shape.topk, seed=7, device=str(self.place), skew=1.0, idle=True)
            truth = reference(x, self.w1[0], self.w2[0], weights, ids, shape.activation)
            inputs.truth = (x, weights, ids, truth)
        x, weights, ids, truth = inputs.truth
        answers: list[Any] = []
        for i, (up, down) in enumerate(pairs):
            at(i)
            try:
                inner = torch.full(
                    (fused_moe.inner_rows(shape, m, up), shape.N), torch.nan, dtype=self.dtype, device=self.place
                )
                pair_out = torch.full((m * shape.topk, shape.K), torch.nan, dtype=self.dtype, device=self.place)
                out = torch.full((m, shape.K), torch.nan, dtype=self.dtype, device=self.place)
                fused_moe.launch(
                    shape, x, self.w1[0], self.w2[0], inner, pair_out, out,
                    config=MoeConfig(up, down), pair_weights=weights, topk_ids=ids,
                )  # fmt: skip
                error = (out.float() - truth).norm(dim=1) / truth.norm(dim=1).clamp_min(1e-30)
                answers.append(float("inf") if bool(error.isnan().any()) else float(error.max()))
            except Exception as error:  # as in time()
                torch.cuda.synchronize()
                answers.append(error)
        return answers

    def conditions(self) -> dict[str, str]:
        """Clocks, temperature, power and throttle reasons of the GPU now; empty where NVML does not answer."""
        try:
            import pynvml

            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByIndex(self.place.index)
            return {
                "sm_clock_mhz": str(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)),
                "memory_clock_mhz": str(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM)),
                "temperature_c": str(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
                "power_w": str(round(pynvml.nvmlDeviceGetPowerUsage(handle) / 1000)),
                "throttle": hex(pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)),
            }
        except Exception:  # NVML is a courtesy here: no answer is an answer
            return {}

    def _inputs_for(self, m: int) -> _Inputs:
        if self._inputs is not None and self._inputs.m == m:
            return self._inputs
        self._inputs = None
        shape, place = self.shape, str(self.place)
        calls = self._calls(m)
        routes = [routing(m, shape.E, shape.topk, seed=r, device=place, skew=0.4 * (r % 2)) for r in range(calls)]
        self._widen_weights(m, calls)
        self._inputs = _Inputs(
            m, calls,
            x=[self._draw(m, shape.K, scale=1.0) for _ in range(calls)],
            pair_weights=[weights for weights, _ in routes], topk_ids=[ids for _, ids in routes],
            sorted={}, graphs={},
        )  # fmt: skip
        return self._inputs

    def _calls(self, m: int) -> int:
        """Calls in one graph: as many routings as fit into a replay of about REPLAY_US, at least two."""
        shape, pairs = self.shape, m * self.shape.topk
        parts = shape.up_n * shape.K
        flops_us = 2e-6 * pairs * parts / self.device.peak(shape.dtype)
        bytes_us = 1e-3 * shape.element_bytes * experts_hit(shape.E, pairs) * parts / self.device.bandwidth_gbs
        return int(min(MOST_CALLS, max(2, REPLAY_US // max(1.4 * flops_us, bytes_us))))

    def _widen_weights(self, m: int, calls: int) -> None:
        """Add copies of the weights until one replay touches several times the L2."""
        hit = experts_hit(self.shape.E, m * self.shape.topk) / self.shape.E
        for copies in (self.w1, self.w2):
            touched = hit * copies[0].numel() * copies[0].element_size() * min(calls, MOST_CALLS)
            wanted = min(calls, -(-int(L2_TURNS * self.device.l2_bytes) // max(1, int(touched))))
            while len(copies) < wanted:
                copies.append(copies[0].clone())

    def _buffer(self, name: str, rows: int, columns: int, fill: bool = False) -> Tensor:
        """A view of a buffer that grows as needed and is shared by all tiles of all M."""
        have = self._buffers.get(name)
        if have is None or have.numel() < rows * columns:
            count = rows * columns
            have = self._draw(count, scale=1.0) if fill else torch.empty(count, dtype=self.dtype, device=self.place)
            self._buffers[name] = have
        return have[: rows * columns].view(rows, columns)

    def _sorted(self, inputs: _Inputs, block_m: int) -> list[Any]:
        if direct(self.shape, inputs.m):
            return [None] * inputs.calls
        if block_m not in inputs.sorted:
            inputs.sorted[block_m] = [moe_launch.sort_pairs(ids, self.shape.E, block_m) for ids in inputs.topk_ids]
        return inputs.sorted[block_m]

    def _graph(self, inputs: _Inputs, side: str, tile: Tile) -> torch.cuda.CUDAGraph:
        if (side, tile) in inputs.graphs:
            return inputs.graphs[side, tile]
        shape, pairs = self.shape, inputs.m * self.shape.topk
        if direct(shape, inputs.m):
            tile_run, rows = fused_moe.as_direct(tile), pairs
        else:
            tile_run, rows = tile, most_blocks(pairs, shape.E, tile.block_m) * tile.block_m
        # The largest size first, so that no later M or tile moves a buffer that a graph has captured.
        most = most_blocks(pairs, shape.E, WIDEST_M) * WIDEST_M
        self._buffer("inner", max(most, rows), shape.N, fill=True)
        self._buffer("inner_out", max(most, rows), shape.N)
        inner, inner_out = self._buffer("inner", rows, shape.N), self._buffer("inner_out", rows, shape.N)
        pair_out = self._buffer("pair_out", pairs, shape.K)
        blocks = self._sorted(inputs, tile.block_m)

        def call(r: int) -> None:
            common: dict[str, Any] = dict(
                pair_weights=inputs.pair_weights[r], topk_ids=inputs.topk_ids[r], expert_map=None, blocks=blocks[r]
            )
            if side == "up":
                w1 = self.w1[r % len(self.w1)]
                moe_launch.gemm(shape, side, tile_run, inputs.x[r], w1, inner_out, weighted=False, **common)
            else:
                w2 = self.w2[r % len(self.w2)]
                moe_launch.gemm(shape, side, tile_run, inner, w2, pair_out, weighted=True, **common)

        call(0)  # compiles or loads, and raises what it must outside of a capture
        torch.cuda.synchronize()

        def calls() -> None:
            for r in range(inputs.calls):
                call(r)

        graph = inputs.graphs[side, tile] = self._capture(calls)
        return graph

    def _capture(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        graph.replay()
        return graph

    def _replay(self, graphs: dict[Any, Any], samples: int, calls: int, seed: str) -> dict[Any, list[float]]:
        self._warm()
        order, rng = sorted(graphs, key=str), random.Random(seed)
        times: dict[Any, list[float]] = {key: [] for key in graphs}
        for part in [1, samples - 1] if samples > 1 else [1]:
            marks = []
            for _ in range(part):
                rng.shuffle(order)
                for key in order:
                    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                    start.record()
                    graphs[key].replay()
                    end.record()
                    marks.append((key, start, end))
            torch.cuda.synchronize()
            for key, start, end in marks:
                times[key].append(start.elapsed_time(end) * 1e3 / calls)
            best = min(us[0] for us in times.values())
            order = [key for key in order if times[key][0] <= HOPELESS * best]
            self._spin(0.3)  # the next part's launches get ahead of the GPU
        self._worked = time.monotonic()
        return times

    def _warm(self) -> None:
        """Bring the clocks up after an idle time, and let launches get ahead of the GPU in any case."""
        self._spin(60.0 if time.monotonic() - self._worked > IDLE_S else 0.3)

    def _spin(self, ms: float) -> None:
        torch.cuda._sleep(int(ms * 1.7e6))
