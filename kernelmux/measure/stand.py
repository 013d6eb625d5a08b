"""The stand on which MoE tiles are timed and checked: lives in the process that owns the GPU.

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

from ..backends.triton.moe_variant import FUSED, MoeVariant
from ..contracts.fused_moe import experts_hit
from ..contracts.fused_moe_math import routing
from ..contracts.moe_shape import MoeShape
from ..device import Device
from ..tuning_configs.tile import Tile
from .subject import Routing, Subject, build

MOST_CALLS = 8
REPLAY_US = 1500.0  # a replay about this long drowns the 1-2 us between an event and its graph
L2_TURNS = 3.0  # a replay must touch this many times the L2, or its end finds its beginning cached
HOPELESS = 3.0  # a tile this much slower than the leader after one sample is not sampled again
IDLE_S = 0.5  # after an idle time of this length the clocks are brought up again first


@dataclass(slots=True)
class _Inputs:
    """What all tiles of one M share."""

    m: int
    calls: int
    graphs: dict[tuple[str, Tile], torch.cuda.CUDAGraph]
    check: Routing | None = None


class Stand:
    """Graphs of one subject's kernels on one GPU."""

    def __init__(self, shape: MoeShape, device: Device, variant: MoeVariant = FUSED):
        self.shape, self.device = shape, device
        self.place = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(self.place)
        self.subject: Subject = build(shape, variant, device)
        self._inputs: _Inputs | None = None
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
        inputs = self._inputs_for(m)
        graphs = {}
        for block_m in block_ms:
            sort = self.subject.sorter(block_m)
            if sort is None:
                return dict.fromkeys(block_ms, 0.0)
            graphs[block_m] = self._capture(sort, inputs.calls)
        times = self._replay(graphs, 15, inputs.calls, seed=f"{m}/align")
        return {block_m: sorted(us)[len(us) // 2] for block_m, us in times.items()}

    def check(self, m: int, pairs: Sequence[tuple[Tile, Tile]], at: Callable[[int], None]) -> list[Any]:
        """For each (up, down) pair the relative L2 error of the worst row, or the exception it raised.

        Uneven routing, one expert without a token, every buffer poisoned with NaN beforehand.
        """
        inputs = self._inputs_for(m)
        if inputs.check is None:
            shape = self.shape
            inputs.check = routing(m, shape.E, shape.topk, seed=7, device=str(self.place), skew=1.0, idle=True)
        answers: list[Any] = []
        for i, (up, down) in enumerate(pairs):
            at(i)
            try:
                answers.append(self.subject.error(m, inputs.check, up, down))
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
        self._widen_weights(m, calls)
        self.subject.begin(
            m, [routing(m, shape.E, shape.topk, seed=r, device=place, skew=0.4 * (r % 2)) for r in range(calls)]
        )
        self._inputs = _Inputs(m, calls, graphs={})
        return self._inputs

    def _calls(self, m: int) -> int:
        """Calls in one graph: as many routings as fit into a replay of about REPLAY_US, at least two."""
        shape, pairs = self.shape, m * self.shape.topk
        parts = shape.up_n * shape.K
        peak = self.subject.peak_tflops(self.device)
        flops_us = 2e-6 * pairs * parts / peak if peak else 0.0
        element = self.subject.weights[0][0].element_size()
        bytes_us = 1e-3 * element * experts_hit(shape.E, pairs) * parts / self.device.bandwidth_gbs
        return int(min(MOST_CALLS, max(2, REPLAY_US // max(1.4 * flops_us, bytes_us))))

    def _widen_weights(self, m: int, calls: int) -> None:
        """Add copies of the weights until one replay touches several times the L2."""
        hit = experts_hit(self.shape.E, m * self.shape.topk) / self.shape.E
        for copies in self.subject.weights:
            touched = hit * copies[0].numel() * copies[0].element_size() * min(calls, MOST_CALLS)
            wanted = min(calls, -(-int(L2_TURNS * self.device.l2_bytes) // max(1, int(touched))))
            while len(copies) < wanted:
                copies.append(copies[0].clone())

    def _graph(self, inputs: _Inputs, side: str, tile: Tile) -> torch.cuda.CUDAGraph:
        if (side, tile) not in inputs.graphs:
            call = self.subject.runner(side, tile)
            call(0)  # compiles or loads, and raises what it must outside of a capture
            torch.cuda.synchronize()
            inputs.graphs[side, tile] = self._capture(call, inputs.calls)
        return inputs.graphs[side, tile]

    def _capture(self, call: Callable[[int], None], calls: int) -> torch.cuda.CUDAGraph:
        def work() -> None:
            for r in range(calls):
                call(r)

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
